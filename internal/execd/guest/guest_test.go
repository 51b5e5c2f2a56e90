package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
)

func TestParseEnvFile(t *testing.T) {
	outer := map[string]string{"HOME": "/root", "N": "1"}
	for _, tc := range []struct {
		text string
		want map[string]string
	}{
		{"", nil},
		{"A=1\nB = 2 \n#C=3\n  # D=4\nE\n=F\n", map[string]string{"A": "1", "B": "2"}},
		{"A=1\r\nexport B=2\r\n", map[string]string{"A": "1", "B": "2"}},
		{"A='$HOME \\n \"x\"'", map[string]string{"A": `$HOME \n "x"`}},
		{`A="it's \"q\" \\ \n\r\t\$HOME $HOME"`, map[string]string{"A": "it's \"q\" \\ \n\r\t$HOME /root"}},
		{"A=$HOME/x\nB=${A}y$\nC=$UNSET.", map[string]string{"A": "/root/x", "B": "/root/xy$", "C": "."}},
		{"A='two\nlines'\nB=\"also\ntwo\"\nC=3", map[string]string{"A": "two\nlines", "B": "also\ntwo", "C": "3"}},
		{"A='open\nB=2", map[string]string{"B": "2"}},
		{"A=\"open\nB=2", map[string]string{"B": "2"}},
		{"A=1\nA=2", map[string]string{"A": "2"}},
		{"9A=1\nA-B=1\nA B=1\nOK=", map[string]string{"OK": ""}},
		{"A=x\x00y\nB=" + strings.Repeat("z", maxEnvValue) + "\nC=3", map[string]string{"C": "3"}},
		{"A=${HOME\nB=${}\nC=$1", map[string]string{"A": "${HOME", "B": "${}", "C": "$1"}},
	} {
		got := parseEnvFile(tc.text, func(n string) string { return outer[n] })
		if len(got) != len(tc.want) {
			t.Errorf("%q: got %q", tc.text, got)
		}
		for k, v := range tc.want {
			if got[k] != v {
				t.Errorf("%q: %s is %q, want %q", tc.text, k, got[k], v)
			}
		}
	}
}

func FuzzEnvFile(f *testing.F) {
	f.Add("A='x'\nB=\"y$A\"\nC=${B}")
	f.Add("A=\"\\")
	f.Add("A='")
	f.Fuzz(func(t *testing.T, text string) {
		for k, v := range parseEnvFile(text, func(string) string { return "v" }) {
			if !isName(k) || strings.ContainsRune(v, 0) || len(v) > maxEnvValue {
				t.Errorf("bad variable %q=%q", k, v)
			}
		}
	})
}

func TestEnvironPrecedence(t *testing.T) {
	file := filepath.Join(t.TempDir(), "deep", "env")
	g := New(map[string]string{"A": "base", "B": "base", "C": "base", EnvFileVar: file},
		account.Identity{Home: "/home/default"}, "")
	env, path := g.Environ(account.Identity{Home: "/home/other"}, nil)
	if path != DefaultPath || !slices.Contains(env, "HOME=/home/other") {
		t.Errorf("completed environment: %q", env)
	}
	// The file is made by the first use, so that commands can append to it.
	if err := os.WriteFile(file, []byte("B=file\nC=file\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	env, _ = g.Environ(g.Identity, map[string]string{"C": "request"})
	for _, want := range []string{"A=base", "B=file", "C=request", "HOME=/home/default"} {
		if !slices.Contains(env, want) {
			t.Errorf("%q is not in %q", want, env)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	env, _ = g.Environ(g.Identity, nil)
	if !slices.Contains(env, "B=base") {
		t.Error("a FIFO was read as environment file")
	}
}

func TestPath(t *testing.T) {
	g := New(map[string]string{"HOME": "/home/u", "D": "dir"}, account.Identity{}, "/work")
	for in, want := range map[string]string{
		"a":         "/work/a",
		"./a/../b":  "/work/b",
		"/x//y/":    "/x/y",
		"~":         "/home/u",
		"~/a":       "/home/u/a",
		"~other":    "/work/~other",
		"$D/x":      "/work/dir/x",
		"/${D}/x$":  "/dir/x$",
		"../../../": "/",
		"/a\nb":     "/a\nb",
	} {
		if got, err := g.Path(in); err != nil || got != want {
			t.Errorf("%q: got %q, %v, want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]error{
		"":                          ErrPath,
		"a\x00b":                    ErrPath,
		strings.Repeat("a", 5000):   ErrPath,
		"$UNSET/x":                  ErrUndefined,
		"/${ALSO_UNSET}/etc/passwd": ErrUndefined,
	} {
		if _, err := g.Path(in); !errors.Is(err, want) {
			t.Errorf("%.20q: got %v, want %v", in, err, want)
		}
	}
}

func TestCheckEnv(t *testing.T) {
	for _, bad := range []map[string]string{{"": "x"}, {"A=B": "x"}, {"A\x00": "x"}, {"A": "\x00"}} {
		if CheckEnv(bad) == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
	if err := CheckEnv(map[string]string{"A": "", "strange name": "x\ny"}); err != nil {
		t.Error(err)
	}
}

// Variables may come while commands start.
func TestAddEnv(t *testing.T) {
	g := New(map[string]string{"A": "1", "D": "/d"}, account.Identity{}, "")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			g.AddEnv(map[string]string{"A": "2", fmt.Sprint("N", i): "x"})
			if env, _ := g.Environ(g.Identity, nil); !slices.Contains(env, "A=2") || !slices.Contains(env, "D=/d") {
				t.Errorf("the environment is %q", env)
			}
		})
	}
	wg.Wait()
	env, _ := g.Environ(g.Identity, nil)
	for i := range 8 {
		if !slices.Contains(env, fmt.Sprint("N", i, "=x")) {
			t.Errorf("N%d was lost", i)
		}
	}
}
