package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// ErrNotFound is returned by Look when no such program exists.
var ErrNotFound = errors.New("no such file or directory")

// ErrNotExecutable is returned by Look when the file is there but can't be run.
var ErrNotExecutable = errors.New("permission denied")

// Look finds the program file for name: a name with a slash is a path, relative
// to dir; any other is looked for in the directories of pathList (the value of
// PATH). Only the presence of an execute bit is checked: whether the user may
// run it is for execve to say.
func Look(name, pathList, dir string) (string, error) {
	if name == "" {
		return "", fmt.Errorf("the program's name is empty: %w", ErrNotFound)
	}
	if strings.Contains(name, "/") {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		return path, executable(path)
	}
	found := ErrNotFound
	for _, d := range filepath.SplitList(pathList) {
		if !filepath.IsAbs(d) {
			d = filepath.Join(dir, d)
		}
		path := filepath.Join(d, name)
		err := executable(path)
		if err == nil {
			return path, nil
		}
		if errors.Is(err, ErrNotExecutable) {
			found = err
		}
	}
	if errors.Is(found, ErrNotExecutable) {
		return "", found
	}
	return "", fmt.Errorf("%q was not found in PATH %q: %w", name, pathList, ErrNotFound)
}

func executable(path string) error {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%q: %w", path, ErrNotFound)
	case err != nil:
		return fmt.Errorf("%q: %w: %w", path, ErrNotExecutable, err)
	case st.IsDir():
		return fmt.Errorf("%q is a directory: %w", path, ErrNotExecutable)
	case st.Mode().Perm()&0o111 == 0:
		return fmt.Errorf("%q has no execute permission: %w", path, ErrNotExecutable)
	}
	return nil
}

// ExplainExec puts the error of an execve into words. The kernel answers
// "no such file" for a script whose interpreter is missing, which misleads.
func ExplainExec(path string, err error) error {
	if !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.ENOEXEC) {
		return err
	}
	if _, statErr := os.Stat(path); statErr != nil {
		return err
	}
	if errors.Is(err, syscall.ENOEXEC) {
		return fmt.Errorf("%q is neither a program for this machine nor a script that begins with #!: %w", path, err)
	}
	if interp := interpreter(path); interp != "" {
		return fmt.Errorf("bad interpreter: %q, which %q asks for: %w", interp, path, err)
	}
	return fmt.Errorf("%q needs a dynamic loader that this sandbox does not have: %w", path, err)
}

// interpreter reads the program named by a script's first line. The file
// belongs to the sandbox: only a bounded part of a regular file is read.
func interpreter(path string) string {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return ""
	}
	var head [256]byte
	n, _ := f.Read(head[:])
	line, _, _ := strings.Cut(string(head[:n]), "\n")
	rest, ok := strings.CutPrefix(line, "#!")
	if !ok {
		return ""
	}
	fields := strings.Fields(rest)
	if len(fields) == 0 {
		return ""
	}
	return fields[0]
}
