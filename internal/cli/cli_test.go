package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/paddock-sandbox/paddock/internal/config"
)

var update = flag.Bool("update", false, "write the golden files anew")

// sealed keeps the machine's own servers and settings out of a test.
func sealed(t *testing.T) {
	t.Helper()
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "PADDOCK_") {
			t.Setenv(name, "") // restores it at the end of the test
			os.Unsetenv(name)
		}
	}
	empty := filepath.Join(t.TempDir(), "empty.toml")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv(config.EnvConfig, empty)
	t.Setenv(config.EnvDataDir, filepath.Join(t.TempDir(), "data"))
}

// invoke runs a command line and returns what it printed.
func invoke(t *testing.T, line ...string) (out, errs string, err error) {
	t.Helper()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var stdout, stderr bytes.Buffer
	err = Execute(context.Background(), line, Streams{In: null, Out: &stdout, Err: &stderr})
	return stdout.String(), stderr.String(), err
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (go test -update makes it)", err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update accepts it):\n%s", path, got)
	}
}

// The help of every command is what it was, or was changed on purpose.
func TestHelp(t *testing.T) {
	sealed(t)
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		words := strings.Fields(c.CommandPath())[1:]
		out, _, err := invoke(t, append(words, "--help")...)
		if err != nil {
			t.Errorf("%s: %v", c.CommandPath(), err)
		}
		golden(t, "help/"+strings.ReplaceAll(c.CommandPath(), " ", "-")+".txt", out)
		for _, sub := range c.Commands() {
			if sub.Name() != "completion" && sub.Name() != "help" {
				walk(sub)
			}
		}
	}
	walk(New(Streams{Out: new(bytes.Buffer), Err: new(bytes.Buffer)}))
}

// Every command says in one line what it is for.
func TestEveryCommandIsDescribed(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: %q", c.CommandPath(), c.Short)
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(New(Streams{}))
}

func TestUsageErrors(t *testing.T) {
	sealed(t)
	for _, c := range []struct {
		line []string
		want string
	}{
		{[]string{"rnu"}, `"rnu" is not a command` + "\nTry: paddock run"},
		{[]string{"zzzzzz"}, "Try: paddock --help"},
		{[]string{"exec"}, "Try: paddock exec ID COMMAND [ARG...]"},
		{[]string{"exec", "id"}, "Try: paddock exec ID COMMAND"},
		{[]string{"exec", "id", "-e", "A=b", "true"}, "flags of exec stand before the id"},
		{[]string{"run", "image", "--memory", "1g"}, "flags of run stand before the image"},
		{[]string{"run", "--memory", "lots", "i"}, `--memory "lots"`},
		{[]string{"run", "--cpu", "fast", "i"}, `--cpu "fast"`},
		{[]string{"run", "--timeout", "3s", "i"}, "the shortest lifetime is 1m"},
		{[]string{"run", "--pull", "sometimes", "i"}, "want missing or always"},
		{[]string{"run", "-v", "x", "i"}, `--volume "x"`},
		{[]string{"run", "-e", "=x", "i"}, `--env "=x"`},
		{[]string{"run", "--platform", "linux", "i"}, "want OS/ARCH"},
		{[]string{"create", "-l", "x", "i"}, "want KEY=VALUE"},
		{[]string{"ls", "extra"}, `does not know what to do with "extra"`},
		{[]string{"ls", "--nonsense"}, "Try: paddock ls --help"},
		{[]string{"ls", "-o", "xml"}, "want table or json"},
		{[]string{"renew", "id", "soon"}, `duration "soon"`},
		{[]string{"renew", "id", "-3m"}, "unknown shorthand"},
		{[]string{"port", "id", "99999"}, `port "99999"`},
		{[]string{"logs", "--since", "yesterday", "id"}, `--since "yesterday"`},
		{[]string{"cp", "a", "b"}, "exactly one of"},
		{[]string{"cp", "x:a", "y:b"}, "exactly one of"},
		{[]string{"cp", "x:/a", ""}, "a path is empty"},
		{[]string{"ls", "--state", "bogus"}, "want one of Pending, Running"},
		{[]string{"port", "id", "80", "--expires", "0s"}, "want at least 1s"},
		{[]string{"logs", "--denied", "--exec", "x", "id"}, "exclude one another"},
		{[]string{"policy", "allow", "id"}, "needs ID TARGET..."},
		{[]string{"policy", "alow", "id"}, "Try: paddock policy allow"},
		{[]string{"image", "pul"}, "Try: paddock image pull"},
		{[]string{"serve", "--set", "x"}, "want SECTION.KEY=VALUE"},
	} {
		_, _, err := invoke(t, c.line...)
		var usage *UsageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "Try: ") {
			t.Errorf("paddock %s: %v, want a usage error with %q", strings.Join(c.line, " "), err, c.want)
		}
	}
}

func TestConfigCommand(t *testing.T) {
	sealed(t)
	t.Setenv(config.EnvAPIKey, "0123456789abcdef-secret")
	out, _, err := invoke(t, "config", "--set", "pool.size=3")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"size = 3 # flag --set", `api_key = "********" # environment variable PADDOCK_API_KEY`, "listen = \"127.0.0.1:8080\" # default"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if out, _, err = invoke(t, "config", "-o", "json"); err != nil || strings.Contains(out, "secret") || !strings.Contains(out, `"listen": "127.0.0.1:8080"`) {
		t.Errorf("%v\n%s", err, out)
	}
	if _, _, err = invoke(t, "config", "--set", "pool.sise=3"); err == nil || !strings.Contains(err.Error(), `Did you mean "pool.size"`) {
		t.Errorf("error %v", err)
	}
}

func TestCompletion(t *testing.T) {
	sealed(t)
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		out, _, err := invoke(t, "completion", shell)
		if err != nil || !strings.Contains(out, "paddock") {
			t.Errorf("%s: %v, %d bytes", shell, err, len(out))
		}
	}
}

func TestVersion(t *testing.T) {
	sealed(t)
	out, _, err := invoke(t, "version")
	if err != nil || !strings.HasPrefix(out, "paddock "+Version) {
		t.Errorf("%q, %v", out, err)
	}
}

func TestNoServer(t *testing.T) {
	sealed(t)
	if _, _, err := invoke(t, "ls"); !errors.Is(err, errNoServer) {
		t.Errorf("error %v", err)
	}
}

func TestCleanupKeepsTheExitCode(t *testing.T) {
	bad := errors.New("clean-up")
	var exit *ExitError
	if err := also(&ExitError{Code: 3}, bad); !errors.As(err, &exit) || exit.Code != 3 || !errors.Is(err, bad) {
		t.Errorf("got %v", err)
	}
	if err := also(nil, nil); err != nil {
		t.Errorf("got %v", err)
	}
	if err := also(nil, bad); !errors.Is(err, bad) {
		t.Errorf("got %v", err)
	}
}
