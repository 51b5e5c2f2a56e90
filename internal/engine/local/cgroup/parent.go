package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrUnsupported is wrapped by errors of operations for which the host lacks a
// controller; see Host.Problems.
var ErrUnsupported = errors.New("not possible on this host")

// names are allowed for parents and groups. There is no dot in them, so that
// none can be a control file's.
var names = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)

// hostLeaf takes the processes that sit in the root of a cgroup namespace,
// where they stop controllers from being handed to children.
const hostLeaf = "init"

// Parent is the directory, in every hierarchy, below which an instance's
// groups are. It is safe for concurrent use until Close.
type Parent struct {
	name string
	// dirs are the hierarchies in which each group has a directory.
	dirs []*dir
	// By purpose, each one of dirs or nil.
	unified, cpu, memory, pids, cpuacct, freezer *dir
	// devices is the parent's own directory in the v1 hierarchy of that name,
	// nil where an eBPF program does its work.
	devices *dir
	// granting: each group has a device policy of its own, and the parent has
	// none.
	granting bool

	mu     sync.Mutex
	events *watcher    // made on first use
	ooms   *oomWatcher // made on first use, with v1 only
	closed bool
}

// Parent makes the directory name in every hierarchy that is needed, or opens
// what an earlier process made; enables the controllers for groups in it; and
// installs the device policy. Close the Parent when done; groups live on.
func (h *Host) Parent(name string) (*Parent, error) { return h.parent(name, false) }

// GrantingParent is Parent for groups that may use devices beside those that
// every group may; see CreateWith. The kernel lets a process use what all
// policies on the way to the root allow, so such groups can't be under a parent
// with a policy of its own.
func (h *Host) GrantingParent(name string) (*Parent, error) { return h.parent(name, true) }

func (h *Host) parent(name string, granting bool) (*Parent, error) {
	if !names.MatchString(name) {
		return nil, fmt.Errorf("cgroup name %q: letters, digits, _ and - are allowed, at most 64", name)
	}
	p := &Parent{name: name, granting: granting}
	if err := p.open(h); err != nil {
		p.Close()
		return nil, fmt.Errorf("preparing the cgroup %s: %w", name, err)
	}
	return p, nil
}

func (p *Parent) open(h *Host) error {
	opened := map[*mount]*dir{}
	open := func(m *mount) (*dir, error) {
		if m == nil || opened[m] != nil {
			return opened[m], nil
		}
		path := filepath.Join(m.path, p.name)
		if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
		d, err := openDir(path, m == h.unified)
		opened[m] = d
		return d, err
	}
	var err error
	if p.unified, err = open(h.unified); err != nil {
		return err
	}
	for _, use := range []struct {
		d *(*dir)
		m *mount
	}{
		{&p.cpu, h.limitMount(cpu)}, {&p.memory, h.limitMount(memory)}, {&p.pids, h.limitMount(pids)},
		{&p.cpuacct, h.v1[cpuacct]}, {&p.freezer, h.v1[freezer]},
	} {
		if p.unified != nil && (use.d == &p.cpuacct || use.d == &p.freezer) {
			continue // built into the v2 hierarchy
		}
		if *use.d, err = open(use.m); err != nil {
			return err
		}
	}
	for _, d := range []*dir{p.unified, p.cpu, p.memory, p.pids, p.cpuacct, p.freezer} {
		if d != nil && !slices.Contains(p.dirs, d) {
			p.dirs = append(p.dirs, d)
		}
	}
	if p.devices, err = open(h.v1[devices]); err != nil {
		return err
	}
	if h.unified != nil {
		if err := p.enable(h); err != nil {
			return err
		}
	}
	if !p.granting {
		return p.denyDevices()
	}
	if p.devices != nil && !slices.Contains(p.dirs, p.devices) {
		p.dirs = append(p.dirs, p.devices)
	}
	return nil
}

// enable hands the limiting controllers of the v2 hierarchy to the parent and
// from there to the groups.
func (p *Parent) enable(h *Host) error {
	root, err := openDir(h.unified.path, true)
	if err != nil {
		return err
	}
	defer root.close()
	for _, c := range limiting {
		if h.limitMount(c) != h.unified {
			continue
		}
		err := root.write("cgroup.subtree_control", "+"+c)
		if errors.Is(err, unix.EBUSY) {
			// Not the real root but that of a cgroup namespace, with
			// processes in it: "no internal processes" (cgroups(7)).
			if err = vacate(root); err == nil {
				err = root.write("cgroup.subtree_control", "+"+c)
			}
		}
		if err != nil {
			return fmt.Errorf("enabling the controller %s: %w", c, err)
		}
		if err := p.unified.write("cgroup.subtree_control", "+"+c); err != nil {
			return fmt.Errorf("enabling the controller %s: %w", c, err)
		}
	}
	return nil
}

// vacate moves the processes in root's own cgroup to a leaf. Processes may
// fork meanwhile, so it goes on until none is left, in a bounded number of
// rounds.
func vacate(root *dir) error {
	if err := unix.Mkdirat(root.fd, hostLeaf, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("making %s: %w", filepath.Join(root.path, hostLeaf), err)
	}
	var last error
	for range 16 {
		list, err := root.procs(".")
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return nil
		}
		for _, pid := range list {
			err := root.write(hostLeaf+"/cgroup.procs", strconv.Itoa(pid))
			if err != nil && !errors.Is(err, unix.ESRCH) {
				last = err
			}
		}
	}
	return fmt.Errorf("moving the processes in %s out of the way: %w", root.path, last)
}

// Create makes a group. os.ErrExist is wrapped when it, or a part of it,
// exists.
func (p *Parent) Create(id string) (*Group, error) {
	if p.granting {
		return p.CreateWith(id, nil)
	}
	return p.create(id)
}

// CreateWith makes a group of a GrantingParent whose processes may read and
// write the given devices, too. Nobody is in the group before its policy holds.
func (p *Parent) CreateWith(id string, devices []Device) (*Group, error) {
	if !p.granting {
		return nil, fmt.Errorf("making the cgroup %s: its parent %s grants no devices", id, p.name)
	}
	g, err := p.create(id)
	if err != nil {
		return nil, err
	}
	if err := p.grant(id, devices); err != nil {
		for _, d := range p.dirs {
			unix.Unlinkat(d.fd, id, unix.AT_REMOVEDIR)
		}
		return nil, err
	}
	return g, nil
}

func (p *Parent) create(id string) (*Group, error) {
	g, err := p.Open(id)
	if err != nil {
		return nil, err
	}
	for i, d := range p.dirs {
		if err := unix.Mkdirat(d.fd, id, 0o755); err != nil {
			for _, made := range p.dirs[:i] {
				unix.Unlinkat(made.fd, id, unix.AT_REMOVEDIR)
			}
			return nil, &os.PathError{Op: "making the cgroup", Path: filepath.Join(d.path, id), Err: err}
		}
	}
	return g, nil
}

// Open returns the group of that id without looking whether it exists: the
// operations of one that doesn't fail with os.ErrNotExist, but Kill and Remove
// succeed.
func (p *Parent) Open(id string) (*Group, error) {
	if !names.MatchString(id) {
		return nil, fmt.Errorf("cgroup id %q: letters, digits, _ and - are allowed, at most 64", id)
	}
	return &Group{p: p, id: id}, nil
}

// List returns the ids of all groups, those included of which only a part is
// left.
func (p *Parent) List() ([]string, error) {
	var all []string
	for _, d := range p.dirs {
		ids, err := d.children(".")
		if err != nil {
			return nil, fmt.Errorf("listing cgroups: %w", err)
		}
		all = append(all, ids...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// Remove removes the parent's directories. It fails while there are groups.
func (p *Parent) Remove() error {
	ids, err := p.List()
	if err != nil {
		return err
	}
	if len(ids) > 0 {
		return fmt.Errorf("removing the cgroup %s: %d groups are in it, the first is %s", p.name, len(ids), ids[0])
	}
	dirs := p.dirs
	if p.devices != nil {
		dirs = append(slices.Clone(dirs), p.devices)
	}
	for _, d := range dirs {
		if err := unix.Rmdir(d.path); err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "removing the cgroup", Path: d.path, Err: err}
		}
	}
	return nil
}

// Close frees the descriptors. Nothing of the Parent or its groups may be used
// afterwards.
func (p *Parent) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	if p.events != nil {
		p.events.close()
	}
	if p.ooms != nil {
		p.ooms.close()
	}
	for _, d := range p.dirs {
		d.close()
	}
	if p.devices != nil && !slices.Contains(p.dirs, p.devices) {
		p.devices.close()
	}
}
