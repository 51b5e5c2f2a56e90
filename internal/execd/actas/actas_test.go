package actas

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("changing identity needs root")
	}
}

// open is a directory that everyone may reach.
func open(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestTheKernelDecides(t *testing.T) {
	needRoot(t)
	dir := open(t)
	os.Mkdir(filepath.Join(dir, "mine"), 0o700)
	os.Chown(filepath.Join(dir, "mine"), 1234, 5678)
	os.WriteFile(filepath.Join(dir, "secret"), []byte("x"), 0o600)
	os.WriteFile(filepath.Join(dir, "shared"), []byte("x"), 0o640)
	os.Chown(filepath.Join(dir, "shared"), 0, 777)
	id := account.Identity{UID: 1234, GID: 5678}
	err := Do(id, func() {
		if _, err := os.ReadFile(filepath.Join(dir, "secret")); !errors.Is(err, os.ErrPermission) {
			t.Errorf("reading root's file: %v", err)
		}
		if err := os.Chown(filepath.Join(dir, "mine"), 0, 0); !errors.Is(err, syscall.EPERM) {
			t.Errorf("giving a directory away: %v", err)
		}
		if err := os.WriteFile(filepath.Join(dir, "mine/made"), nil, 0o644); err != nil {
			t.Error(err)
		}
		if _, err := os.ReadFile(filepath.Join(dir, "shared")); !errors.Is(err, os.ErrPermission) {
			t.Errorf("reading a file of a group that it is not in: %v", err)
		}
		if err := unix.Mknod(filepath.Join(dir, "mine/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); !errors.Is(err, syscall.EPERM) {
			t.Errorf("making a device: %v", err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "mine/made"), &st); err != nil || st.Uid != 1234 || st.Gid != 5678 {
		t.Errorf("the new file is owned by %d:%d (%v)", st.Uid, st.Gid, err)
	}
	id.Groups = []uint32{777}
	err = Do(id, func() {
		if _, err := os.ReadFile(filepath.Join(dir, "shared")); err != nil {
			t.Errorf("reading a file of one of its groups: %v", err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	// Root with another group is still root.
	err = Do(account.Identity{GID: 99}, func() {
		if err := os.WriteFile(filepath.Join(dir, "mine/root"), nil, 0o644); err != nil {
			t.Error(err)
		}
	})
	if unix.Stat(filepath.Join(dir, "mine/root"), &st); err != nil || st.Uid != 0 || st.Gid != 99 {
		t.Errorf("root's new file is owned by %d:%d (%v)", st.Uid, st.Gid, err)
	}
}

// Many users at one time, and the program's own work beside them: nobody gets
// another's identity, and no thread keeps one.
func TestIdentitiesDoNotMix(t *testing.T) {
	needRoot(t)
	dir := open(t)
	os.Chmod(dir, 0o777)
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			uid := 2000 + i
			path := filepath.Join(dir, fmt.Sprint(uid))
			err := Do(account.Identity{UID: uint32(uid), GID: uint32(uid)}, func() {
				if err := os.WriteFile(path, nil, 0o600); err != nil {
					t.Error(err)
				}
			})
			if err != nil {
				t.Error(err)
				return
			}
			st, err := os.Stat(path)
			if err != nil || st.Sys().(*syscall.Stat_t).Uid != uint32(uid) {
				t.Errorf("user %d: %v, %+v", uid, err, st)
			}
			own := filepath.Join(dir, "own-"+fmt.Sprint(uid))
			os.WriteFile(own, nil, 0o600)
			if st, err := os.Stat(own); err != nil || st.Sys().(*syscall.Stat_t).Uid != 0 {
				t.Errorf("execd's own file: %v, %+v", err, st)
			}
		})
	}
	wg.Wait()
	tasks, _ := filepath.Glob("/proc/self/task/*/status")
	for _, task := range tasks {
		status, _ := os.ReadFile(task)
		for line := range strings.Lines(string(status)) {
			if strings.HasPrefix(line, "Uid:") && line != "Uid:\t0\t0\t0\t0\n" {
				t.Errorf("%s: %s", task, line)
			}
		}
	}
}

func TestPanicsAndRefusals(t *testing.T) {
	needRoot(t)
	id := account.Identity{UID: 1234, GID: 1234}
	func() {
		defer func() {
			if v := recover(); v != "oops" {
				t.Errorf("recovered %v", v)
			}
		}()
		_ = Do(id, func() { panic("oops") })
		t.Error("the panic was lost")
	}()
	called := false
	// The largest number means "keep" to the kernel and is never an id.
	const none = 1<<32 - 1
	for _, id := range []account.Identity{{UID: none, GID: 1}, {UID: 1, GID: none}, {UID: 1, GID: 1, Groups: []uint32{none}}} {
		if err := Do(id, func() { called = true }); !errors.Is(err, ErrNotMapped) || called {
			t.Errorf("%+v: %v, called %v", id, err, called)
		}
	}
	if os.Geteuid() != 0 {
		t.Error("the identity stayed")
	}
}

func BenchmarkDo(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("changing identity needs root")
	}
	id := account.Identity{UID: 1234, GID: 1234}
	for b.Loop() {
		if err := Do(id, func() {}); err != nil {
			b.Fatal(err)
		}
	}
}
