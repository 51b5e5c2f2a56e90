package oci

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Between fork and exec the files of a shell are moved about among the numbers
// above their own. The runtime must be found whatever those are.
func TestRuntimeIsFoundAmongTheShellsFiles(t *testing.T) {
	dir := t.TempDir()
	runtime := filepath.Join(dir, "runtime")
	// With --preserve-fds 3, descriptors 3 to 5 are the shell's.
	script := "#!/bin/sh\n[ -e /proc/self/fd/3 ] && [ -e /proc/self/fd/4 ] && [ -e /proc/self/fd/5 ] || exit 9\n"
	if err := os.WriteFile(runtime, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	r := &Runtime{kind: Crun, binary: &binary{path: runtime}, mountNS: -1}
	defer r.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	sealed := r.binary.open()
	if sealed == nil {
		t.Fatal("no sealed copy was made")
	}
	for least := max(0, int(sealed.Fd())-12); least < int(sealed.Fd())+6; least++ {
		var files []*os.File
		for range 3 {
			fd, err := unix.FcntlInt(null.Fd(), unix.F_DUPFD_CLOEXEC, least)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, os.NewFile(uintptr(fd), "shell's"))
		}
		cmd := r.command(t.Context(), &Start{Shell: &Shell{ID: "x"}, Bundle: dir, Files: files})
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("files from %d: %v: %s", files[0].Fd(), err, out)
		}
		for _, f := range files {
			f.Close()
		}
	}
}

// An update of the package takes effect with the next shell.
func TestReplacedRuntimeIsTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "runtime")
	b := &binary{path: path}
	defer b.close()
	if b.open() != nil {
		t.Error("a copy of nothing")
	}
	for _, content := range []string{"one", "another"} {
		if err := os.WriteFile(path+".new", []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64)
		f := b.open()
		if f == nil {
			t.Fatal("no copy")
		}
		n, _ := f.ReadAt(buf, 0)
		if got := string(buf[:n]); got != content {
			t.Errorf("got %q, want %q", got, content)
		}
		if b.open() != f {
			t.Error("another copy of the same")
		}
		if _, err := f.WriteAt([]byte("x"), 0); err == nil {
			t.Error("the copy can be written to")
		}
	}
}
