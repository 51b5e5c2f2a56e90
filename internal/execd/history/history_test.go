package history

import (
	"bytes"
	"io"
	"os"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

func read(t testing.TB, r *Ring) (int64, []byte) {
	t.Helper()
	base, total := r.Range()
	var out []byte
	buf := make([]byte, 1000)
	for off := base; off < total; {
		n, err := r.ReadAt(buf, off)
		if err != nil {
			t.Fatalf("reading at %d of [%d,%d): %v", off, base, total, err)
		}
		out = append(out, buf[:n]...)
		off += int64(n)
	}
	return base, out
}

func TestKeepsNewestWithinBudget(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := &Budget{Max: rapid.Int64Range(0, 1<<20).Draw(rt, "budget") + 1}
		rings := make([]*Ring, 2)
		all := make([][]byte, 2)
		for i := range rings {
			rings[i] = NewRing(b)
		}
		seq := byte(0)
		for range rapid.IntRange(0, 12).Draw(rt, "writes") {
			i := rapid.IntRange(0, 1).Draw(rt, "ring")
			p := make([]byte, rapid.IntRange(0, 200_000).Draw(rt, "size"))
			for j := range p {
				seq = seq*31 + 7
				p[j] = seq
			}
			rings[i].Write(p)
			all[i] = append(all[i], p...)
		}
		if b.Used() > b.Max {
			rt.Fatalf("used %d of %d", b.Used(), b.Max)
		}
		for i, r := range rings {
			base, got := read(t, r)
			if !bytes.Equal(got, all[i][base:]) {
				rt.Fatalf("ring %d keeps something else from %d on", i, base)
			}
			if len(got) < min(minOutput, len(all[i])) {
				rt.Fatalf("only %d of %d bytes are kept", len(got), len(all[i]))
			}
			r.Close()
			r.Close()
			r.Write([]byte("late"))
			if _, err := r.ReadAt(make([]byte, 1), 0); err != io.EOF {
				rt.Fatalf("reading after close: %v", err)
			}
		}
		if b.Used() != 0 {
			rt.Fatalf("%d bytes of the budget leaked", b.Used())
		}
	})
}

func TestBounded(t *testing.T) {
	b := &Budget{}
	r := NewRing(b)
	defer r.Close()
	chunk := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	for range 300 {
		r.Write(chunk)
	}
	base, total := r.Range()
	if total != 300*64<<10 || total-base != MaxOutput {
		t.Errorf("keeps [%d,%d)", base, total)
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
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	defer func(d []string) { Dirs = d }(Dirs)
	Dirs = []string{dir}
	r := NewRing(&Budget{})
	defer r.Close()
	r.Write([]byte("kept"))
	r.Write(make([]byte, 100_000))
	base, total := r.Range()
	if total != 100_004 || base != total {
		t.Errorf("after a failed write [%d,%d) is kept", base, total)
	}
	r.Write([]byte("x"))
	if base, total := r.Range(); base != 100_004 || total != 100_005 {
		// The disk may still be full at that offset; then it must be empty.
		if base != total {
			t.Errorf("[%d,%d) is kept", base, total)
		}
	}
}

func TestNoDirectory(t *testing.T) {
	defer func(d []string) { Dirs = d }(Dirs)
	Dirs = []string{"/proc/self"}
	r := NewRing(&Budget{})
	defer r.Close()
	r.Write([]byte("in memory"))
	if _, got := read(t, r); string(got) != "in memory" {
		t.Errorf("got %q", got)
	}
}
