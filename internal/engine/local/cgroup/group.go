package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// v1 control files of the memory controller.
const (
	memLimit   = "memory.limit_in_bytes"
	memswLimit = "memory.memsw.limit_in_bytes"
)

// Group is one sandbox's cgroup. Its methods may be called concurrently, but
// what they do to the same group is not ordered.
type Group struct {
	p  *Parent
	id string
}

// ID is the name under which the group was created.
func (g *Group) ID() string { return g.id }

// Limits bound a group. Zero means unlimited.
type Limits struct {
	// CPUMillis is thousandths of one CPU.
	CPUMillis int64
	// MemoryBytes bounds memory. A group with a limit uses no swap.
	MemoryBytes int64
	// PIDs bounds processes and threads.
	PIDs int64
}

// SetLimits writes all limits. A limit that is lowered below what is in use
// makes the kernel reclaim memory or kill; with v1 it fails with EBUSY when
// reclaim is not enough. An error wraps ErrUnsupported when a limit is asked
// for whose controller the host lacks.
func (g *Group) SetLimits(l Limits) error {
	for _, c := range []struct {
		name  string
		d     *dir
		value int64
		set   func(int64) error
	}{
		{cpu, g.p.cpu, l.CPUMillis, g.setCPU},
		{memory, g.p.memory, l.MemoryBytes, g.setMemory},
		{pids, g.p.pids, l.PIDs, g.setPIDs},
	} {
		switch {
		case c.value < 0:
			return fmt.Errorf("%s limit %d: must not be negative", c.name, c.value)
		case c.d == nil && c.value > 0:
			return fmt.Errorf("%s limit: the host has no cgroup controller of that name: %w", c.name, ErrUnsupported)
		case c.d == nil:
			continue
		}
		if err := c.set(c.value); err != nil {
			return fmt.Errorf("setting the %s limit: %w", c.name, err)
		}
	}
	return nil
}

// quota turns thousandths of a CPU into microseconds per period. The kernel's
// shortest quota is 1 ms and its longest period 1 s (Documentation/scheduler/
// sched-bwc.rst), so the usual 100 ms do for 0.01 CPU and more.
func quota(millis int64) (quotaMicros, periodMicros int64) {
	if millis < 10 {
		return millis * 1000, 1_000_000
	}
	return millis * 100, 100_000
}

func (g *Group) setCPU(millis int64) error {
	q, period := quota(millis)
	if g.p.cpu.v2 {
		if millis == 0 {
			return g.p.cpu.write(g.id+"/cpu.max", "max")
		}
		return g.p.cpu.write(g.id+"/cpu.max", strconv.FormatInt(q, 10)+" "+strconv.FormatInt(period, 10))
	}
	if millis == 0 {
		return g.p.cpu.write(g.id+"/cpu.cfs_quota_us", "-1")
	}
	if err := g.p.cpu.write(g.id+"/cpu.cfs_period_us", strconv.FormatInt(period, 10)); err != nil {
		return err
	}
	return g.p.cpu.write(g.id+"/cpu.cfs_quota_us", strconv.FormatInt(q, 10))
}

func (g *Group) setMemory(bytes int64) error {
	m := g.p.memory
	if m.v2 {
		limit, swap := "max", "max"
		if bytes > 0 {
			limit, swap = strconv.FormatInt(bytes, 10), "0"
		}
		// The file is missing when the kernel was built without swap.
		if err := m.write(g.id+"/memory.swap.max", swap); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
		return m.write(g.id+"/memory.max", limit)
	}
	limit := "-1"
	if bytes > 0 {
		limit = strconv.FormatInt(bytes, 10)
	}
	// The kernel holds memory <= memory+swap at every moment, with EINVAL. So
	// when the new limit is above the old sum, the sum goes first.
	err := m.write(g.id+"/"+memLimit, limit)
	if errors.Is(err, unix.EINVAL) {
		if err := m.write(g.id+"/"+memswLimit, limit); err != nil {
			return err
		}
		return m.write(g.id+"/"+memLimit, limit)
	}
	if err != nil {
		return err
	}
	err = m.write(g.id+"/"+memswLimit, limit)
	if errors.Is(err, unix.ENOENT) {
		// No accounting of swap. Discouraging it is all that can be done;
		// Host.Problems tells the administrator.
		return m.write(g.id+"/memory.swappiness", "0")
	}
	return err
}

func (g *Group) setPIDs(n int64) error {
	limit := "max"
	if n > 0 {
		limit = strconv.FormatInt(n, 10)
	}
	return g.p.pids.write(g.id+"/pids.max", limit)
}

// Usage is what a group uses now, in all its processes. What the host can't
// count is zero.
type Usage struct {
	// CPU is the time used since the group was made.
	CPU time.Duration
	// MemoryBytes includes the page cache that is charged to the group.
	MemoryBytes int64
	// PIDs counts processes and threads.
	PIDs int64
}

// Usage measures the group.
func (g *Group) Usage() (Usage, error) {
	var u Usage
	if d := g.p.unified; d != nil {
		micros, err := d.field(g.id+"/cpu.stat", "usage_usec")
		if err != nil {
			return u, err
		}
		u.CPU = time.Duration(micros) * time.Microsecond
	} else if d := g.p.cpuacct; d != nil {
		nanos, err := d.number(g.id + "/cpuacct.usage")
		if err != nil {
			return u, err
		}
		u.CPU = time.Duration(nanos)
	}
	var err error
	if d := g.p.memory; d != nil {
		name := "/memory.usage_in_bytes"
		if d.v2 {
			name = "/memory.current"
		}
		if u.MemoryBytes, err = d.number(g.id + name); err != nil {
			return u, err
		}
	}
	if d := g.p.pids; d != nil {
		if u.PIDs, err = d.number(g.id + "/pids.current"); err != nil {
			return u, err
		}
	}
	return u, nil
}

// Procs returns the host's ids of the processes in the group and in groups
// below it.
func (g *Group) Procs() ([]int, error) {
	d := g.p.life()
	groups, err := tree(d, g.id)
	if err != nil {
		return nil, err
	}
	var all []int
	for _, name := range groups {
		list, err := d.procs(name)
		if gone(err) && name != g.id {
			continue // a child group was removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	return all, nil
}

// life is the hierarchy that says which processes a group has.
func (p *Parent) life() *dir {
	for _, d := range []*dir{p.unified, p.freezer, p.pids, p.memory, p.cpu} {
		if d != nil {
			return d
		}
	}
	return p.dirs[0]
}

// tree returns the group and all below it, children before their parents.
func tree(d *dir, group string) ([]string, error) {
	children, err := d.children(group)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, c := range children {
		below, err := tree(d, filepath.Join(group, c))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, below...)
	}
	return append(all, group), nil
}
