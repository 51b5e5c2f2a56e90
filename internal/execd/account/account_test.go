package account

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

const passwd = `root:x:0:0:root:/root:/bin/bash
# a comment
app:x:1000:1000::/home/app:/bin/sh

broken line
neg:x:-1:1::/:
huge:x:4294967295:1::/:
1234:x:77:78::/named-by-digits:
nohome:x:5:6
`

const group = `root:x:0:
app:x:1000:
wheel:x:10:root,app
video:x:44:app
dup:x:44:app
bad
`

func files(t *testing.T) Files {
	t.Helper()
	dir := t.TempDir()
	f := Files{Passwd: filepath.Join(dir, "passwd"), Group: filepath.Join(dir, "group")}
	for path, text := range map[string]string{f.Passwd: passwd, f.Group: group} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func TestResolve(t *testing.T) {
	f := files(t)
	for _, tc := range []struct {
		spec   string
		uid    uint32
		gid    uint32
		groups []uint32
		home   string
	}{
		{"", 0, 0, []uint32{10}, "/root"},
		{"root", 0, 0, []uint32{10}, "/root"},
		{"app", 1000, 1000, []uint32{10, 44}, "/home/app"},
		{"1000", 1000, 1000, []uint32{10, 44}, "/home/app"},
		{"app:video", 1000, 44, nil, "/home/app"},
		{"app:", 1000, 1000, []uint32{10, 44}, "/home/app"},
		{"1000:55", 1000, 55, nil, "/home/app"},
		{"9999", 9999, 0, nil, "/"},
		{"9999:app", 9999, 1000, nil, "/"},
		{"1234", 77, 78, nil, "/named-by-digits"},
		{"nohome", 5, 6, nil, "/"},
	} {
		got, err := f.Resolve(tc.spec)
		if err != nil {
			t.Errorf("%q: %v", tc.spec, err)
			continue
		}
		if got.UID != tc.uid || got.GID != tc.gid || !slices.Equal(got.Groups, tc.groups) || got.Home != tc.home {
			t.Errorf("%q: got %+v", tc.spec, got)
		}
	}
	for _, spec := range []string{"nobody", "app:nogroup", "4294967295", "-1", "huge", "neg"} {
		if _, err := f.Resolve(spec); !errors.Is(err, ErrUnknown) {
			t.Errorf("%q: got %v, want ErrUnknown", spec, err)
		}
	}
}

func TestMissingAndHostileFiles(t *testing.T) {
	none := Files{Passwd: "/nonexistent/passwd", Group: "/nonexistent/group"}
	if id, err := none.Resolve(""); err != nil || id.UID != 0 || id.Home != "/" {
		t.Errorf("root without a passwd file: %+v, %v", id, err)
	}
	if _, err := none.Resolve("app"); !errors.Is(err, ErrUnknown) {
		t.Errorf("name without a passwd file: %v", err)
	}
	// Opening a FIFO for reading would block until a writer comes.
	fifo := filepath.Join(t.TempDir(), "passwd")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (Files{Passwd: fifo, Group: fifo}).Resolve("app"); err == nil {
		t.Error("a FIFO was accepted as passwd file")
	}
	if got := (Files{Passwd: "/dev/zero", Group: "/dev/zero"}).Names().User(7); got != "7" {
		t.Errorf("name from a device: %q", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(passwd)
	f.Add(group)
	f.Add(strings.Repeat("a", maxLine+5) + "\nroot:x:0:0::/:\n")
	f.Fuzz(func(t *testing.T, text string) {
		_ = parseUsers(strings.NewReader(text), func(u User) bool {
			if u.Name == "" || strings.ContainsAny(u.Name+u.Home, ":\n") {
				t.Errorf("bad user %+v", u)
			}
			return true
		})
		_ = parseGroups(strings.NewReader(text), func(g Group) bool {
			if g.Name == "" || strings.ContainsAny(g.Name, ":\n") {
				t.Errorf("bad group %+v", g)
			}
			return true
		})
	})
}
