package rmtree

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestRemove(t *testing.T) {
	for name, make := range map[string]func(t *testing.T, path string){
		"nothing":         func(*testing.T, string) {},
		"file":            func(t *testing.T, path string) { write(t, path) },
		"dangling link":   func(t *testing.T, path string) { check(t, os.Symlink("nowhere", path)) },
		"empty directory": func(t *testing.T, path string) { check(t, os.Mkdir(path, 0o755)) },
		"pipe":            func(t *testing.T, path string) { check(t, unix.Mkfifo(path, 0o600)) },
		"files and directories": func(t *testing.T, path string) {
			for i := range 20 {
				check(t, os.MkdirAll(filepath.Join(path, fmt.Sprint(i), "a", "b"), 0o755))
				write(t, filepath.Join(path, fmt.Sprint(i), "a", "file"))
			}
		},
		"as deep as stays in place": func(t *testing.T, path string) { chain(t, path, maxLevels) },
		"one level deeper":          func(t *testing.T, path string) { chain(t, path, maxLevels+1) },
		"two levels deeper":         func(t *testing.T, path string) { chain(t, path, maxLevels+2) },
		"as deep as is moved twice": func(t *testing.T, path string) { chain(t, path, 2*maxLevels+2) },
		"many deep branches":        comb,
		"wide":                      wide,
		"names like those of a moved": func(t *testing.T, path string) {
			check(t, os.MkdirAll(filepath.Join(path, ".deep.0", ".deep."), 0o755))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dirs := filesystems(t)
			if name == "many deep branches" {
				// A disk takes longer to make them than all other tests take.
				dirs = dirs[len(dirs)-1:]
			}
			for _, dir := range dirs {
				path := filepath.Join(dir, "tree")
				make(t, path)
				check(t, Remove(t.Context(), path))
				gone(t, path)
			}
		})
	}
}

func TestRemoveRefusesWhatIsNoName(t *testing.T) {
	for _, path := range []string{"", ".", "..", "/", "../.."} {
		if err := Remove(t.Context(), path); err == nil {
			t.Errorf("%q: no error", path)
		}
	}
	dir := t.TempDir()
	check(t, os.Symlink(t.TempDir(), filepath.Join(dir, "link")))
	fd := open(t, dir)
	for _, path := range []string{"", ".", "..", "/", "../tree", "/tmp/tree", "link/tree"} {
		if err := RemoveAt(t.Context(), fd, path); err == nil {
			t.Errorf("at: %q: no error", path)
		}
	}
}

func TestRemoveAt(t *testing.T) {
	dir := t.TempDir()
	check(t, os.Mkdir(filepath.Join(dir, "a"), 0o755))
	chain(t, filepath.Join(dir, "a", "tree"), 100)
	fd := open(t, dir)
	for _, path := range []string{"a/tree", "a/tree", "not/there", "a"} {
		check(t, RemoveAt(t.Context(), fd, path))
		gone(t, filepath.Join(dir, path))
	}
}

// What links lead to is somebody else's.
func TestLinksAreNotFollowed(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	kept := filepath.Join(outside, "kept")
	write(t, kept)
	path := filepath.Join(dir, "tree")
	check(t, os.Mkdir(path, 0o755))
	for name, to := range map[string]string{"dir": outside, "file": kept, "up": "..", "root": "/"} {
		check(t, os.Symlink(to, filepath.Join(path, name)))
	}
	check(t, os.Link(kept, filepath.Join(path, "hard")))
	check(t, Remove(t.Context(), path))
	gone(t, path)
	link := filepath.Join(dir, "link")
	check(t, os.Symlink(outside, link))
	check(t, Remove(t.Context(), link))
	gone(t, link)
	if _, err := os.Stat(kept); err != nil {
		t.Fatal(err)
	}
}

// A depth that no number of descriptors suffices for, in a process that has few.
// Every file that it opens counts, so this is another process.
func TestDeepWithFewDescriptors(t *testing.T) {
	const few = "PADDOCK_TEST_RMTREE"
	if path := os.Getenv(few); path != "" {
		check(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: maxLevels + 16, Max: maxLevels + 16}))
		check(t, Remove(t.Context(), path))
		return
	}
	depth := 100_000
	if testing.Short() {
		depth = 10_000
	}
	path := filepath.Join(fast(t), "tree")
	chain(t, path, depth)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestDeepWithFewDescriptors$", "-test.count=1")
	cmd.Env = append(os.Environ(), few+"="+path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	gone(t, path)
}

func TestMountsStay(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	for _, depth := range []int{0, 1, maxLevels - 1, maxLevels, maxLevels + 1, 3 * maxLevels} {
		t.Run(fmt.Sprint(depth), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "tree")
			at := path + strings.Repeat("/d", depth)
			check(t, os.MkdirAll(at, 0o755))
			check(t, unix.Mount("tmpfs", at, "tmpfs", 0, "size=64k"))
			mounted := open(t, at)
			// Wherever the mount has been moved to.
			unmount := func() error { return unix.Unmount(fmt.Sprintf("/proc/self/fd/%d", mounted), unix.MNT_DETACH) }
			t.Cleanup(func() { _ = unmount() })
			write(t, filepath.Join(at, "kept"))
			if depth > 0 {
				write(t, filepath.Join(path, "file"))
			}

			err := Remove(t.Context(), path)
			if !errors.Is(err, errMount) {
				t.Errorf("error %v, want %v", err, errMount)
			} else if len(err.Error()) > len(path)+200 {
				t.Errorf("a long error: %v", err)
			}
			var st unix.Stat_t
			if err := unix.Fstatat(mounted, "kept", &st, 0); err != nil {
				t.Errorf("a file of the mount: %v", err)
			}
			gone(t, filepath.Join(path, "file"))

			check(t, unmount())
			check(t, Remove(t.Context(), path))
			gone(t, path)
		})
	}
}

// countdown is a context that ends at the n-th look at it.
type countdown struct {
	context.Context
	left int
}

func (c *countdown) Err() error {
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// Wherever a removal is cancelled, another one finishes it.
func TestCancelledAndContinued(t *testing.T) {
	path := filepath.Join(fast(t), "tree")
	chain(t, path, 1000)
	wide(t, filepath.Join(path, "wide"))
	cancelled := 0
	for looks := 0; ; looks = looks*3/2 + 1 {
		err := Remove(&countdown{t.Context(), looks}, path)
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		cancelled++
	}
	gone(t, path)
	if cancelled < 5 {
		t.Errorf("cancelled %d times", cancelled)
	}
}

func TestCancelledMeanwhile(t *testing.T) {
	path := filepath.Join(fast(t), "tree")
	chain(t, path, 20_000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Remove(ctx, path) }()
	cancel()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	check(t, Remove(t.Context(), path))
	gone(t, path)
}

func TestRemovesTreesOfAnyShape(t *testing.T) {
	dir := fast(t)
	rapid.Check(t, func(rt *rapid.T) {
		path := filepath.Join(dir, "tree")
		check(t, os.Mkdir(path, 0o755))
		at := []string{path}
		for range rapid.IntRange(0, 30).Draw(rt, "branches") {
			from := rapid.SampledFrom(at).Draw(rt, "from")
			depth := rapid.SampledFrom([]int{1, 2, 30, maxLevels - 1, maxLevels, maxLevels + 1, 150}).Draw(rt, "depth")
			to := from + strings.Repeat("/"+rapid.SampledFrom([]string{"a", "b", ".deep.0"}).Draw(rt, "name"), depth)
			if len(to) > 3000 {
				continue
			}
			check(t, os.MkdirAll(to, 0o755))
			write(t, to+"/file")
			at = append(at, to)
		}
		if err := Remove(t.Context(), path); err != nil {
			rt.Fatal(err)
		}
		gone(t, path)
	})
}

func FuzzNext(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 24))
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x18\x00\x04name\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			e, rest := next(b)
			if len(rest) >= len(b) || strings.Contains(e.name, "\x00") {
				t.Fatalf("%q from %q", e.name, b)
			}
			b = rest
		}
	})
}

func BenchmarkRemove(b *testing.B) {
	for name, remove := range map[string]func(string) error{
		"Remove":       func(path string) error { return Remove(b.Context(), path) },
		"os.RemoveAll": os.RemoveAll,
	} {
		b.Run(name, func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "tree")
			for b.Loop() {
				b.StopTimer()
				for i := range 1000 {
					file := filepath.Join(path, fmt.Sprint("a", i%10), fmt.Sprint("b", i%50), fmt.Sprint("file", i))
					check(b, os.MkdirAll(filepath.Dir(file), 0o755))
					write(b, file)
				}
				b.StartTimer()
				check(b, remove(path))
			}
		})
	}
}

// filesystems are directories on the filesystem of temporary files and, where
// there is one, on a tmpfs: they list names in different orders.
func filesystems(t *testing.T) []string {
	dirs := []string{t.TempDir()}
	if dir, err := os.MkdirTemp("/dev/shm", "paddock-rmtree-"); err == nil {
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		dirs = append(dirs, dir)
	}
	return dirs
}

// fast is a directory on a tmpfs, if there is one: a directory on a disk takes a
// block of it.
func fast(t *testing.T) string {
	dirs := filesystems(t)
	return dirs[len(dirs)-1]
}

// chain makes path and as many directories in it, each in the one before, and
// sees to it that what a failed test leaves is removed.
func chain(t *testing.T, path string, depth int) {
	t.Helper()
	t.Cleanup(func() {
		if _, err := os.Lstat(path); err == nil {
			_ = exec.Command("rm", "-rf", path).Run()
		}
	})
	check(t, os.Mkdir(path, 0o755))
	fd, err := unix.Open(path, openFlags, 0)
	check(t, err)
	for range depth {
		check(t, unix.Mkdirat(fd, "d", 0o755))
		below, err := unix.Openat(fd, "d", openFlags, 0)
		check(t, err)
		unix.Close(fd)
		fd = below
	}
	unix.Close(fd)
}

// comb makes a tree that has a deep branch at each of many levels.
func comb(t *testing.T, path string) {
	check(t, os.Mkdir(path, 0o755))
	for i := range 100 {
		at := path + strings.Repeat("/d", i)
		check(t, os.MkdirAll(at+strings.Repeat("/e", maxLevels+5), 0o755))
		write(t, at+"/file")
	}
}

// wide makes a directory of more names than one call reads.
func wide(t *testing.T, path string) {
	check(t, os.Mkdir(path, 0o755))
	long := strings.Repeat("n", 200)
	for i := range 5000 {
		at := filepath.Join(path, fmt.Sprint(long, i))
		if i%10 == 0 {
			check(t, os.Mkdir(at, 0o755))
		} else {
			write(t, at)
		}
	}
}

func write(t testing.TB, path string) {
	t.Helper()
	check(t, os.WriteFile(path, nil, 0o644))
}

func open(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Open(path, openFlags, 0)
	check(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func gone(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("%s is still there: %v", path, err)
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
