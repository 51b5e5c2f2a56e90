package metrics

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	// tick is USER_HZ, the unit of CPU times in /proc (proc(5)).
	tick = 10 * time.Millisecond
	// maxFile bounds what is read of a file in /proc or of a cgroup, in bytes.
	maxFile = 64 << 10
	// noV1Limit is about where cgroup v1 shows "unlimited": the largest
	// number that is a multiple of the page size.
	noV1Limit = 1 << 62
)

// The sandbox's own cgroup, where the runtime mounts it: version 2, then the
// controllers of version 1.
const (
	v2CPU     = "/sys/fs/cgroup/cpu.stat"
	v2Memory  = "/sys/fs/cgroup/memory.current"
	v2Limit   = "/sys/fs/cgroup/memory.max"
	v2MemStat = "/sys/fs/cgroup/memory.stat"
	v1CPU     = "/sys/fs/cgroup/cpuacct/cpuacct.usage"
	v1Memory  = "/sys/fs/cgroup/memory/memory.usage_in_bytes"
	v1Limit   = "/sys/fs/cgroup/memory/memory.limit_in_bytes"
	v1MemStat = "/sys/fs/cgroup/memory/memory.stat"
	memInfo   = "/proc/meminfo"
)

// source reads the kernel's accounts.
type source struct {
	// root is put in front of every path; empty outside of tests.
	root string
}

// cpu measures the CPU time of all processes of the sandbox, those that have
// ended included.
func (s source) cpu() (usage, error) {
	now := time.Now()
	if text, err := s.read(v2CPU); err == nil {
		// Only a cgroup below the root has usage of its own; the root has
		// this file on new kernels as well, for the whole machine.
		if usec, ok := keyed(text, "usage_usec"); ok && s.exists(v2Memory) {
			return usage{at: now, cpu: time.Duration(usec) * time.Microsecond}, nil
		}
	}
	if n, err := s.number(v1CPU); err == nil {
		return usage{at: now, cpu: time.Duration(n)}, nil
	}
	ticks, _, err := s.processes()
	return usage{at: now, cpu: time.Duration(ticks) * tick}, err
}

// memory returns the limit and the use in bytes.
func (s source) memory(limit int64) (total, used int64, err error) {
	info, err := s.read(memInfo)
	if err != nil {
		return 0, 0, err
	}
	kib, ok := keyed(info, "MemTotal:")
	if !ok {
		return 0, 0, fmt.Errorf("%s has no MemTotal", memInfo)
	}
	total = kib << 10
	if limit > 0 && limit < total {
		total = limit
	}
	for _, v := range []struct{ use, limit, stat, cache string }{
		{v2Memory, v2Limit, v2MemStat, "inactive_file"},
		{v1Memory, v1Limit, v1MemStat, "total_inactive_file"},
	} {
		n, err := s.number(v.use)
		if err != nil {
			continue
		}
		if m, err := s.number(v.limit); err == nil && m < noV1Limit && m < total {
			total = m
		}
		// File cache that nobody looks at is free for the taking, so it is not
		// counted, as `docker stats` does it.
		if text, err := s.read(v.stat); err == nil {
			if cache, ok := keyed(text, v.cache); ok && cache < n {
				n -= cache
			}
		}
		return total, min(n, total), nil
	}
	_, used, err = s.processes()
	return total, min(used, total), err
}

// processes sums CPU ticks and private memory over /proc. A process that ended
// is in the sum of the one that collected it, in the end execd, so the ticks
// never fall.
func (s source) processes() (ticks, bytes int64, err error) {
	dir, err := os.Open(s.root + "/proc")
	if err != nil {
		return 0, 0, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return 0, 0, err
	}
	page := int64(os.Getpagesize())
	for _, name := range names {
		if name[0] < '1' || name[0] > '9' {
			continue
		}
		// One that ends meanwhile is not there.
		if text, err := s.read("/proc/" + name + "/stat"); err == nil {
			ticks += statTicks(text)
		}
		if text, err := s.read("/proc/" + name + "/statm"); err == nil {
			bytes += statmPrivate(text) * page
		}
	}
	return ticks, bytes, nil
}

// statTicks adds up utime, stime, cutime and cstime, fields 14 to 17 of
// /proc/PID/stat.
func statTicks(text string) int64 {
	end := strings.LastIndexByte(text, ')')
	if end < 0 {
		return 0
	}
	f := strings.Fields(text[end+1:])
	if len(f) < 15 {
		return 0
	}
	sum := int64(0)
	for _, field := range f[11:15] {
		// No process can have used more than fits.
		if n, err := strconv.ParseInt(field, 10, 48); err == nil && n > 0 {
			sum += n
		}
	}
	return sum
}

// statmPrivate is resident less shared pages, fields 2 and 3 of
// /proc/PID/statm.
func statmPrivate(text string) int64 {
	f := strings.Fields(text)
	if len(f) < 3 {
		return 0
	}
	resident, err1 := strconv.ParseInt(f[1], 10, 48)
	shared, err2 := strconv.ParseInt(f[2], 10, 48)
	if err1 != nil || err2 != nil || shared < 0 || resident < shared {
		return 0
	}
	return resident - shared
}

// keyed finds the number after a word at the start of a line.
func keyed(text, key string) (int64, bool) {
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(line, key)
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '\t' {
			continue
		}
		f := strings.Fields(rest)
		if len(f) == 0 {
			return 0, false
		}
		n, err := strconv.ParseInt(f[0], 10, 64)
		return n, err == nil && n >= 0
	}
	return 0, false
}

func (s source) number(path string) (int64, error) {
	text, err := s.read(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err == nil && n < 0 {
		err = errors.New("negative")
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}

func (s source) exists(path string) bool {
	_, err := os.Stat(s.root + path)
	return err == nil
}

func (s source) read(path string) (string, error) {
	f, err := os.Open(s.root + path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var b bytes.Buffer
	buf := make([]byte, 4096)
	for b.Len() < maxFile {
		n, err := f.Read(buf)
		b.Write(buf[:n])
		if err != nil || n == 0 {
			break
		}
	}
	return b.String(), nil
}
