package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// dir is an open directory of a cgroup hierarchy. Names given to its methods
// are relative to it. Working from the descriptor saves the walk from the root
// and works in whatever mount namespace the thread is.
type dir struct {
	fd   int
	path string // for messages, and for inotify
	v2   bool
}

func openDir(path string, v2 bool) (*dir, error) {
	fd, err := retry(func() (int, error) {
		return unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &dir{fd: fd, path: path, v2: v2}, nil
}

func (d *dir) close() { unix.Close(d.fd) }

// write puts value into a control file.
func (d *dir) write(name, value string) error {
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	})
	if err == nil {
		_, err = retry(func() (int, error) { return unix.Write(fd, []byte(value)) })
		unix.Close(fd)
	}
	if err != nil {
		return fmt.Errorf("writing %q to %s: %w", value, filepath.Join(d.path, name), err)
	}
	return nil
}

// read returns a control file's content. The file's length is bounded only by
// the kernel.
func (d *dir) read(name string) ([]byte, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(d.fd, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(d.path, name), Err: err}
	}
	defer unix.Close(fd)
	buf := make([]byte, 0, 512)
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := retry(func() (int, error) { return unix.Read(fd, buf[len(buf):cap(buf)]) })
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: filepath.Join(d.path, name), Err: err}
		}
		if n == 0 {
			return buf, nil
		}
		buf = buf[:len(buf)+n]
	}
}

// number reads a control file that holds one number.
func (d *dir) number(name string) (int64, error) {
	b, err := d.read(name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(string(bytes.TrimSpace(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", filepath.Join(d.path, name), err)
	}
	return n, nil
}

// field reads the number behind key in a control file of "key number" lines.
func (d *dir) field(name, key string) (int64, error) {
	b, err := d.read(name)
	if err != nil {
		return 0, err
	}
	n, ok := lookup(b, key)
	if !ok {
		return 0, fmt.Errorf("%s: no number for %q", filepath.Join(d.path, name), key)
	}
	return n, nil
}

func lookup(b []byte, key string) (int64, bool) {
	for line := range strings.Lines(string(b)) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || k != key {
			continue
		}
		n, err := strconv.ParseInt(v, 10, 64)
		return n, err == nil
	}
	return 0, false
}

// procs reads the process ids in a cgroup.procs file.
func (d *dir) procs(group string) ([]int, error) {
	b, err := d.read(filepath.Join(group, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var list []int
	for _, f := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(d.path, group, "cgroup.procs"), err)
		}
		// 0 stands for a process of an outer pid namespace.
		if pid > 0 {
			list = append(list, pid)
		}
	}
	return list, nil
}

// children lists the cgroups directly in group ("." for the directory itself).
func (d *dir) children(group string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(d.path, group))
	if err != nil {
		return nil, err
	}
	var list []string
	for _, e := range entries {
		if e.IsDir() {
			list = append(list, e.Name())
		}
	}
	return list, nil
}

func (d *dir) exists(group string) bool {
	var st unix.Stat_t
	err := unix.Fstatat(d.fd, group, &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// gone reports whether err says that the cgroup does not exist (any more):
// ENODEV comes from files that were open while it was removed.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV)
}

// retry repeats a system call that a signal interrupted; the Go runtime's
// preemption does so all the time.
func retry(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
