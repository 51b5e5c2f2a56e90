package local

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRootsOfAnImage(t *testing.T) {
	const path = "etc/ssl/certs/ca-certificates.crt"
	layer := func(t *testing.T, fill func(dir, file string)) string {
		dir := t.TempDir()
		file := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		fill(dir, file)
		return dir
	}
	write := func(text string) func(string, string) {
		return func(_, file string) { os.WriteFile(file, []byte(text), 0o644) }
	}
	link := func(target string) func(string, string) {
		return func(_, file string) { os.Symlink(target, file) }
	}
	secret := filepath.Join(t.TempDir(), "secret")
	os.WriteFile(secret, []byte("secret"), 0o600)
	empty := func(_, _ string) {}
	for name, x := range map[string]struct {
		layers []func(dir, file string)
		want   string
	}{
		"one":               {[]func(string, string){write("a")}, "a"},
		"the topmost":       {[]func(string, string){empty, write("b"), write("a")}, "b"},
		"none":              {[]func(string, string){empty}, ""},
		"a link to outside": {[]func(string, string){link(secret), write("a")}, ""},
		"a link within":     {[]func(string, string){link("other"), write("a")}, ""},
		"a directory":       {[]func(string, string){func(_, f string) { os.Mkdir(f, 0o755) }}, ""},
		"a pipe":            {[]func(string, string){func(_, f string) { unix.Mkfifo(f, 0o644) }}, ""},
		"a linked directory": {[]func(string, string){func(d, _ string) {
			os.RemoveAll(filepath.Join(d, "etc"))
			os.Symlink("/etc", filepath.Join(d, "etc"))
		}, write("a")}, ""},
		"too large": {[]func(string, string){func(_, f string) { os.WriteFile(f, make([]byte, maxRoots+1), 0o644) }}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var layers []string
			for _, f := range x.layers {
				layers = append(layers, layer(t, f))
			}
			if got := string(readInLayers(layers, path)); got != x.want {
				t.Errorf("%.20q, want %q", got, x.want)
			}
		})
	}
	t.Run("removed", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("needs root, to make a device node")
		}
		top := layer(t, func(_, f string) {
			if err := unix.Mknod(f, unix.S_IFCHR, 0); err != nil {
				t.Fatal(err)
			}
		})
		if got := readInLayers([]string{top, layer(t, write("a"))}, path); got != nil {
			t.Errorf("%q", got)
		}
		if inLayers([]string{top}, []string{path}) {
			t.Error("a whiteout passes for what it hides")
		}
	})
	if !inLayers([]string{layer(t, empty), layer(t, write("a"))}, []string{"nowhere", path}) {
		t.Error("it is there, and not found")
	}
}

func TestTrustEnvironment(t *testing.T) {
	env := map[string]string{"A": "image", "JAVA_TOOL_OPTIONS": "-Xmx1g"}
	addTrust(env, map[string]string{"A": "ours", "B": "ours", "C": "ours", "JAVA_TOOL_OPTIONS": "-Dours"}, map[string]string{"B": "theirs"})
	for k, want := range map[string]string{"A": "ours", "B": "", "C": "ours", "JAVA_TOOL_OPTIONS": "-Xmx1g -Dours"} {
		if env[k] != want {
			t.Errorf("%s=%q, want %q", k, env[k], want)
		}
	}
}
