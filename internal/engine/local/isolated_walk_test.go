package local

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/execd/isolated"
)

// nest makes directories in each other, and calls f with a descriptor of the
// innermost.
func nest(t *testing.T, top int, name string, levels int, f func(fd int)) {
	t.Helper()
	at := top
	for range levels {
		if err := unix.Mkdirat(at, name, 0o755); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if at != top {
			unix.Close(at)
		}
		if err != nil {
			t.Fatal(err)
		}
		at = fd
	}
	f(at)
	if at != top {
		unix.Close(at)
	}
}

// What a session makes does not decide how much of the server a comparison
// takes.
func TestIsolatedWalksAreBounded(t *testing.T) {
	for _, c := range []struct {
		name   string
		dir    string
		levels int
		files  int
		file   string
		want   error
	}{
		{"shallow", "d", maxDepth, 1, "f", nil},
		{"deep", "d", maxDepth + 1, 0, "", errTooDeep},
		{"long directories", strings.Repeat("d", 250), 17, 0, "", errTooLong},
		{"a long file", strings.Repeat("d", 250), 16, 1, strings.Repeat("f", 200), errTooLong},
		{"the longest file", strings.Repeat("d", 250), 16, 1, strings.Repeat("f", 60), nil},
		{"many long files", strings.Repeat("\x01", 250), 15, 2000, strings.Repeat("f", 200), errEnough},
	} {
		t.Run(c.name, func(t *testing.T) {
			top, err := unix.Open(t.TempDir(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			upper := newUpperDir(top, "/work")
			defer upper.close()
			nest(t, top, c.dir, c.levels, func(fd int) {
				for i := range c.files {
					f, err := unix.Openat(fd, c.file+fmt.Sprintf("%04d", i), unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
					if err != nil {
						t.Fatal(err)
					}
					unix.Close(f)
				}
			})
			d := &differ{budget: maxEntries}
			if err := d.compare(t.Context(), upper, -1, 0); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			listed := 0
			for _, ch := range d.list {
				listed += len(ch.Path)
			}
			if listed != d.listed || listed > maxListed || c.want == nil && len(d.list) != c.levels+c.files {
				t.Errorf("%d changes with %d bytes of paths are listed, counted as %d", len(d.list), listed, d.listed)
			}
		})
	}
}

func TestIsolatedCommitIsBounded(t *testing.T) {
	for _, c := range []struct {
		name, dir string
		levels    int
		want      error
	}{
		{"shallow", "d", maxDepth, nil},
		{"deep", "d", maxDepth + 1, errTooDeep},
		{"long", strings.Repeat("d", 250), 17, errTooLong},
	} {
		t.Run(c.name, func(t *testing.T) {
			var fds [2]int
			for i := range fds {
				fd, err := unix.Open(t.TempDir(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer unix.Close(fd)
				fds[i] = fd
			}
			nest(t, fds[0], c.dir, c.levels, func(int) {})
			com := &committer{budget: maxEntries, answer: &isolated.Commit{}}
			err := com.directory(t.Context(), newUpperDir(fds[0], "/work"), fds[1], 0)
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if err := removeTree(t.Context(), fds[1], c.dir, &com.budget, 0); err != nil {
				t.Errorf("removing what was made: %v", err)
			}
		})
	}
}

func TestIsolatedSkippedIsBounded(t *testing.T) {
	for _, p := range []string{"/a", strings.Repeat("/\xff\x01", 1300), strings.Repeat("/ab", 1365)} {
		c := &committer{answer: &isolated.Commit{}}
		for range 3 * maxSkipped {
			c.skip(p, "there is no change")
		}
		total := 0
		for _, s := range c.answer.Skipped {
			total += len(s.Path) + len(s.Reason)
		}
		if len(c.answer.Skipped) > maxSkipped || total > maxListed || total != c.listed {
			t.Errorf("%d entries of %d bytes, counted as %d", len(c.answer.Skipped), total, c.listed)
		}
		if len(p) < 10 && len(c.answer.Skipped) != maxSkipped {
			t.Errorf("only %d short entries", len(c.answer.Skipped))
		}
	}
}

func TestIsolatedCommitPaths(t *testing.T) {
	set := &isolated.Settings{Workspace: &isolated.Workspace{Path: "/work"}}
	if err := set.Complete(); err != nil {
		t.Fatal(err)
	}
	for p, says := range map[string]string{
		"/work":                              "",
		"/work/a":                            "",
		"/workshop":                          "in no overlay",
		"/wor":                               "in no overlay",
		"/":                                  "in no overlay",
		"/work/":                             "plain",
		"/work/" + strings.Repeat("a", 4089): "",
		"/work/" + strings.Repeat("a", 4090): "at most 4095",
	} {
		c := &committer{}
		err := c.choose(&isolated.CommitRequest{Paths: []string{p}}, set)
		if says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("%.20q of %d bytes: got %v, want %q", p, len(p), err, says)
		}
	}
	c := &committer{}
	if err := c.choose(&isolated.CommitRequest{Paths: []string{"/work/a/b", "/work/c"}}, set); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string][2]bool{
		"/work": {false, true}, "/work/a": {false, true}, "/work/a/b": {true, true}, "/work/a/b/c": {true, true},
		"/work/a/bc": {}, "/work/cc": {}, "/work/c": {true, true}, "/work/": {}, "/w": {},
	} {
		if this, beneath := c.wanted(p); [2]bool{this, beneath} != want {
			t.Errorf("%s: %v, %v, want %v", p, this, beneath, want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { c.wanted("/work/a/b/c") }); n > 0 {
		t.Errorf("asking whether a path is wanted makes %v strings", n)
	}
}
