package cli

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestOpenDestination(t *testing.T) {
	if top := os.Getenv("DESTINATION_OF_ANOTHER"); top != "" {
		// As a user who can't write in the directory with the link.
		d, err := openDestination(filepath.Join(top, "link", "new"), false)
		if err != nil {
			t.Fatal(err)
		}
		d.close()
		return
	}
	top := t.TempDir()
	t.Chdir(top)
	for _, dir := range []string{"dir/inner", "elsewhere"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile("file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"link": "elsewhere", "absolute": top + "/elsewhere", "tofile": "file", "nowhere": "none", "loop": "loop", "up": "dir/.."} {
		if err := os.Symlink(to, name); err != nil {
			t.Fatal(err)
		}
	}
	const refused = "symbolic link"
	for _, c := range []struct {
		path    string
		through bool
		// holder is the directory that is opened, name what is in it.
		holder, name string
		err          string
	}{
		{path: "new", holder: ".", name: "new"},
		{path: "file", holder: ".", name: "file"},
		{path: "dir", holder: "dir"},
		{path: "dir/", holder: "dir"},
		{path: "./dir//inner/.", holder: "dir/inner"},
		{path: "dir/inner/../../file", holder: ".", name: "file"},
		{path: ".", holder: "."},
		{path: top + "/dir/new", holder: "dir", name: "new"},
		{path: "made/deep/", holder: "made/deep"},
		{path: "none/new", err: "no such file"},
		{path: "file/", err: "not a directory"},
		{path: "file/new", err: "not a directory"},
		{path: "link", err: refused}, {path: "link/", err: refused}, {path: "link/new", err: refused}, {path: "link/made/", err: refused},
		{path: "absolute/new", err: refused}, {path: "tofile", err: refused}, {path: "nowhere", err: refused}, {path: "up/new", err: refused},
		{path: "link", through: true, holder: "elsewhere"},
		{path: "link/new", through: true, holder: "elsewhere", name: "new"},
		{path: "absolute/new", through: true, holder: "elsewhere", name: "new"},
		{path: "tofile", through: true, holder: ".", name: "file"},
		{path: "nowhere", through: true, holder: ".", name: "none"},
		{path: "up/new", through: true, holder: ".", name: "new"},
		{path: "loop", through: true, err: "too many levels"},
	} {
		d, err := openDestination(c.path, c.through)
		if c.err != "" || err != nil {
			if err == nil || c.err == "" || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %q", c.path, err, c.err)
			}
			continue
		}
		got, _ := os.Readlink(descriptorPath(d.dir))
		if want := filepath.Join(top, c.holder); got != want || d.name != c.name || (d.st != nil) != (c.name == "file") {
			t.Errorf("%s: %s in %s, want %s in %s", c.path, d.name, got, c.name, want)
		}
		d.close()
	}
	if left, err := os.ReadDir("elsewhere"); err != nil || len(left) > 0 {
		t.Errorf("made behind the link: %v, %v", left, err)
	}

	d, err := openDestination("dir", false)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	if err := os.Symlink("inner", "dir/planted"); err != nil {
		t.Fatal(err)
	}
	var refusal *linkError
	if _, err := d.into("planted"); !errors.As(err, &refusal) || refusal.target != "inner" {
		t.Errorf("a link within the directory: %v", err)
	}

	if os.Geteuid() != 0 {
		t.Skip("needs root to be another user")
	}
	if err := os.Chmod(filepath.Dir(top), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestOpenDestination$")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "DESTINATION_OF_ANOTHER="+top)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("a link in a directory of another user: %v: %s", err, out)
	}
}
