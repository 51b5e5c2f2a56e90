package entrylog

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"
)

type testLog struct {
	*Writer
	paths [2]string
	files [2]*os.File
	clock time.Time
}

func newLog(t *testing.T, dir string, limit int64) *testLog {
	t.Helper()
	l := &testLog{clock: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	for i := range l.paths {
		l.paths[i] = filepath.Join(dir, fmt.Sprint(i))
		f, err := os.Create(l.paths[i])
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		l.files[i] = f
	}
	w, err := NewWriter(l.files[0], l.files[1], limit)
	if err != nil {
		t.Fatal(err)
	}
	w.now = func() time.Time { l.clock = l.clock.Add(time.Second); return l.clock }
	l.Writer = w
	return l
}

func (l *testLog) read(t *testing.T, opts Options) string {
	t.Helper()
	r, err := Open(context.Background(), l.paths, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestOptions(t *testing.T) {
	l := newLog(t, t.TempDir(), 0)
	if got := l.read(t, Options{Tail: 5, Timestamps: true}); got != "" {
		t.Errorf("empty log: %q", got)
	}
	l.Write(Stdout, []byte("one\ntw"))   // :06
	l.Write(Stderr, []byte("warning\n")) // :07
	l.Write(Stdout, []byte("o\n\nend"))  // :08
	since := time.Date(2026, 1, 2, 3, 4, 7, 0, time.UTC)
	const day = "2026-01-02T03:04:"
	for _, tc := range []struct {
		name string
		opts Options
		want string
	}{
		{"all", Options{}, "one\ntwwarning\no\n\nend"},
		{"tail 1", Options{Tail: 1}, "end"},
		{"tail 2", Options{Tail: 2}, "\nend"},
		{"tail 3", Options{Tail: 3}, "o\n\nend"},
		{"tail 99", Options{Tail: 99}, "one\ntwwarning\no\n\nend"},
		{"since", Options{Since: since}, "warning\no\n\nend"},
		{"timestamps", Options{Timestamps: true}, day + "06.000000000Z one\n" + day + "07.000000000Z warning\n" +
			day + "06.000000000Z two\n" + day + "08.000000000Z \n" + day + "08.000000000Z end\n"},
		{"timestamps tail", Options{Timestamps: true, Tail: 2}, day + "08.000000000Z \n" + day + "08.000000000Z end\n"},
	} {
		if got := l.read(t, tc.opts); got != tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
	if _, err := Open(context.Background(), l.paths, Options{Tail: -1}); err == nil {
		t.Error("a negative tail was accepted")
	}
}

// Whatever is written, what is read is a suffix of it, at least one segment
// long, and exactly the last lines with Tail.
func TestKeepsNewest(t *testing.T) {
	base := t.TempDir()
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		dir := filepath.Join(base, fmt.Sprint(run))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		limit := rapid.Int64Range(segmentStart+recordStart+1, 400).Draw(rt, "limit")
		l := newLog(t, dir, limit)
		defer func() { l.files[0].Close(); l.files[1].Close() }()
		var all []byte
		for range rapid.IntRange(0, 30).Draw(rt, "writes") {
			p := rapid.SliceOfN(rapid.SampledFrom([]byte("ab\n\x00")), 0, 120).Draw(rt, "bytes")
			l.Write(Stdout, p)
			all = append(all, p...)
		}
		got := l.read(t, Options{})
		if !bytes.HasSuffix(all, []byte(got)) {
			rt.Fatalf("read %q is no suffix of %q", got, all)
		}
		if len(got) < len(all) && int64(len(got)) < limit/2-200 {
			rt.Fatalf("only %d bytes of %d are kept with segments of %d", len(got), len(all), limit)
		}
		tail := rapid.IntRange(1, 10).Draw(rt, "tail")
		lines := strings.SplitAfter(got, "\n")
		if lines[len(lines)-1] == "" {
			lines = lines[:len(lines)-1]
		}
		want := strings.Join(lines[max(0, len(lines)-tail):], "")
		if last := l.read(t, Options{Tail: tail}); last != want {
			rt.Fatalf("tail %d: got %q, want %q", tail, last, want)
		}
		for _, f := range l.files {
			if st, _ := f.Stat(); st.Size() > limit+recordStart+maxRecord {
				rt.Fatalf("segment has %d bytes", st.Size())
			}
		}
	})
}

func TestFollow(t *testing.T) {
	l := newLog(t, t.TempDir(), 4096)
	ended := make(chan struct{})
	r, err := Open(context.Background(), l.paths, Options{Follow: true, Ended: ended})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	// In step with the writer, through many changes of segments.
	for i := range 200 {
		want := fmt.Sprintf("line %d %s\n", i, strings.Repeat("x", 40))
		l.Write(Stdout, []byte(want))
		got := make([]byte, len(want))
		if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
			t.Fatalf("got %q, %v, want %q", got, err, want)
		}
	}
	l.Write(Stderr, []byte("last"))
	close(ended)
	if rest, err := io.ReadAll(r); err != nil || string(rest) != "last" {
		t.Errorf("the rest is %q, %v", rest, err)
	}
}

func TestFollowStops(t *testing.T) {
	l := newLog(t, t.TempDir(), 0)
	ctx, cancel := context.WithCancel(context.Background())
	r, err := Open(ctx, l.paths, Options{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := r.Read(make([]byte, 10)); err != context.Canceled {
		t.Errorf("after cancel: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small tmpfs needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("none", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("no tmpfs may be mounted here: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	l := newLog(t, dir, 0)
	l.Write(Stdout, []byte("first\n"))
	filler := filepath.Join(dir, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	f.Close()
	l.Write(Stdout, bytes.Repeat([]byte("x"), 10000))
	if l.Dropped() != 10000 {
		t.Fatalf("dropped %d bytes", l.Dropped())
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	l.Write(Stdout, []byte("last\n"))
	want := "first\n[10000 bytes of output were lost: the disk was full]\nlast\n"
	if got := l.read(t, Options{}); got != want || l.Dropped() != 0 {
		t.Errorf("got %q", got)
	}
}

func TestOpenRefusesOtherFiles(t *testing.T) {
	dir := t.TempDir()
	l := newLog(t, dir, 0)
	if _, err := Open(context.Background(), [2]string{l.paths[0], dir}, Options{}); err == nil {
		t.Error("a directory was accepted as a segment")
	}
	if _, err := Open(context.Background(), [2]string{l.paths[0], dir + "/none"}, Options{}); err == nil {
		t.Error("a missing segment was accepted")
	}
}

func FuzzReader(f *testing.F) {
	head := append([]byte(magic), 1, 0, 0, 0, 0, 0, 0, 0)
	f.Add(appendRecord(bytes.Clone(head), 1, 5, Stdout, []byte("a\nb")), []byte{}, 1)
	f.Add(append(bytes.Clone(head), 0xff, 0xff, 0xff, 0xff), head, 0)
	f.Add(append([]byte(magic), bytes.Repeat([]byte{0xff}, 8)...), head, 3)
	f.Fuzz(func(t *testing.T, a, b []byte, tail int) {
		dir := t.TempDir()
		paths := [2]string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}
		for i, data := range [][]byte{a, b} {
			if err := os.WriteFile(paths[i], data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, timestamps := range []bool{false, true} {
			r, err := Open(context.Background(), paths, Options{Tail: max(0, tail), Timestamps: timestamps})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Error(err)
			}
			r.Close()
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	dir := b.TempDir()
	var files [2]*os.File
	for i := range files {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	w, err := NewWriter(files[0], files[1], 0)
	if err != nil {
		b.Fatal(err)
	}
	chunk := make([]byte, 64<<10)
	b.SetBytes(int64(len(chunk)))
	for b.Loop() {
		w.Write(Stdout, chunk)
	}
}
