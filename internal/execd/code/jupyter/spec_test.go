package jupyter

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestPaths(t *testing.T) {
	env := map[string]string{"JUPYTER_PATH": "/a:relative:/b", "VIRTUAL_ENV": "/venv", "XDG_DATA_HOME": "/data"}
	got := strings.Join(Paths(func(n string) string { return env[n] }, []string{"/usr", "/venv"}, "/home/u"), " ")
	want := "/a/kernels /b/kernels /venv/share/jupyter/kernels /usr/share/jupyter/kernels /data/jupyter/kernels " +
		"/home/u/.local/share/jupyter/kernels /usr/local/share/jupyter/kernels /home/u/.ipython/kernels"
	if got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

func TestSpecs(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	good := `{"argv":["k","-f","{connection_file}"],"language":"Lang","display_name":"K","env":{"A":"1"},"interrupt_mode":"message"}`
	write(t, filepath.Join(one, "Good/kernel.json"), good)
	write(t, filepath.Join(two, "good/kernel.json"), `{"argv":["other"],"language":"x"}`)
	write(t, filepath.Join(two, "second/kernel.json"), `{"argv":["second"],"language":"x"}`)
	for name, text := range map[string]string{
		"bad json": good, "broken": `{"argv":["x"`, "list": `[]`, "noargv": `{"language":"x"}`, "empty": `{"argv":[""]}`, "nul": `{"argv":["a\u0000"]}`,
		"badenv": `{"argv":["a"],"env":{"A=B":"c"}}`, "large": `{"argv":["` + strings.Repeat("x", maxSpecFile) + `"]}`,
		"many": `{"argv":[` + strings.Repeat(`"a",`, maxArgs) + `"a"]}`, "kind": `{"argv":"a"}`,
	} {
		write(t, filepath.Join(one, name, "kernel.json"), text)
	}
	write(t, filepath.Join(one, "file"), "")
	if err := os.MkdirAll(filepath.Join(one, "dir/kernel.json"), 0o755); err != nil {
		t.Fatal(err)
	}
	specs := Specs([]string{filepath.Join(one, "missing"), one, two})
	var names []string
	for _, s := range specs {
		names = append(names, s.Name)
	}
	if fmt.Sprint(names) != "[good second]" {
		t.Fatalf("kernels %v", names)
	}
	s := specs[0]
	if !s.ByMessage() || !s.Is("lang") || s.Python() || s.Dir != filepath.Join(one, "Good") {
		t.Errorf("%+v", s)
	}
	if got := s.Command("/c"); !slices.Equal(got, []string{"k", "-f", "/c"}) {
		t.Errorf("command %q", got)
	}
}

func TestProgram(t *testing.T) {
	prefix := t.TempDir()
	spec := func(argv0 string) *Spec {
		return &Spec{Name: "k", Dir: filepath.Join(prefix, "share/jupyter/kernels/k"), Argv: []string{argv0, "{prefix}", "{resource_dir}"}}
	}
	look := func(name string) (string, error) {
		if name == "python" {
			return "", os.ErrNotExist
		}
		return "/path/" + name, nil
	}
	check := func(argv0, want string) {
		t.Helper()
		if got, err := spec(argv0).Program(look); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", argv0, got, err, want)
		}
	}
	check("python", "/path/python3")
	check("python3", "/path/python3")
	check("pythonista", "/path/pythonista")
	check("/opt/python", "/path//opt/python")
	write(t, filepath.Join(prefix, "bin/python"), "")
	check("python", filepath.Join(prefix, "bin/python"))
	if got := spec("x").Command("f"); got[1] != prefix || got[2] != filepath.Join(prefix, "share/jupyter/kernels/k") {
		t.Errorf("command %q", got)
	}
}

func TestEnviron(t *testing.T) {
	s := &Spec{Env: map[string]string{"B": "${A}/x", "C": "new", "D": "$NONE"}}
	env := []string{"A=1", "C=old"}
	got := s.Environ(env, func(n string) string { return map[string]string{"A": "1", "C": "old"}[n] })
	if want := "A=1 B=1/x C=new D="; strings.Join(got, " ") != want {
		t.Errorf("%q; want %q", got, want)
	}
	if env[1] != "C=old" {
		t.Errorf("the environment was changed: %q", env)
	}
}

func FuzzSpec(f *testing.F) {
	f.Add([]byte(`{"argv":["python","-m","ipykernel_launcher","-f","{connection_file}"],"language":"python","env":{"A":"${B}"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := parseSpec("/p/share/jupyter/kernels/k", b)
		if s == nil {
			return
		}
		if argv := s.Command("/file"); len(argv) == 0 || len(argv) > maxArgs || argv[0] == "" {
			t.Fatalf("command %q", argv)
		}
		s.Environ([]string{"A=b"}, func(string) string { return "" })
		s.Python()
	})
}
