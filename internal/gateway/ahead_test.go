package gateway

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// The bytes arrive as they were, whatever the sizes on both sides.
func TestCopyAheadProperty(t *testing.T) {
	data := make([]byte, 3*largeBuffer+123)
	rand.NewChaCha8([32]byte{1}).Read(data)
	rapid.Check(t, func(t *rapid.T) {
		sizes := rapid.SliceOfN(rapid.IntRange(1, 2*largeBuffer), 1, 20).Draw(t, "sizes")
		length := rapid.IntRange(0, len(data)).Draw(t, "length")
		var out bytes.Buffer
		n, err := copyAhead(&out, &uneven{data[:length], sizes})
		if err != nil || n != int64(length) || !bytes.Equal(out.Bytes(), data[:length]) {
			t.Fatalf("copied %d of %d, %v", n, length, err)
		}
	})
}

// uneven gives its bytes in pieces of the given sizes, over and over.
type uneven struct {
	rest  []byte
	sizes []int
}

func (u *uneven) Read(p []byte) (int, error) {
	if len(u.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), u.sizes[0])], u.rest)
	u.rest, u.sizes = u.rest[n:], append(u.sizes[1:], u.sizes[0])
	return n, nil
}

// What came before a pause is written before it ends.
func TestCopyAheadDoesNotWait(t *testing.T) {
	pr, pw := io.Pipe()
	got := make(chan string)
	go copyAhead(writerFunc(func(p []byte) (int, error) { got <- string(p); return len(p), nil }), pr)
	for _, s := range []string{"a", "bc", "def"} {
		pw.Write([]byte(s))
		if g := <-got; g != s {
			t.Errorf("got %q, want %q", g, s)
		}
	}
	pw.Close()
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestCopyAheadErrors(t *testing.T) {
	broken := errors.New("broken")
	var out strings.Builder
	if n, err := copyAhead(&out, io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(broken))); err != broken || n != 3 || out.String() != "abc" {
		t.Errorf("a reader that fails: %d, %q, %v", n, out.String(), err)
	}
	// The reader goes on until its next bytes, and then ends.
	pr, pw := io.Pipe()
	go pw.Write(make([]byte, 10))
	if _, err := copyAhead(writerFunc(func([]byte) (int, error) { return 0, broken }), pr); err != broken {
		t.Errorf("a writer that fails: %v", err)
	}
	pr.Close()
}
