package cli

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// Whatever the sizes of reads and pieces, the input comes out as it went in.
func TestGathererKeepsOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		input := rapid.SliceOfN(rapid.Byte(), 0, 300_000).Draw(t, "input")
		limit := rapid.IntRange(readSize, 3*readSize).Draw(t, "limit")
		var r io.Reader = bytes.NewReader(input)
		if rapid.Bool().Draw(t, "halves") {
			r = iotest.HalfReader(r)
		}
		if rapid.Bool().Draw(t, "error with data") {
			r = iotest.DataErrReader(r)
		}
		g := newGatherer(limit)
		go g.fill(r)
		var got, piece []byte
		var err error
		for {
			if piece, err = g.take(piece); err != nil {
				break
			}
			if len(piece) > limit {
				t.Fatalf("a piece of %d bytes", len(piece))
			}
			got = append(got, piece...)
		}
		if !errors.Is(err, io.EOF) || !bytes.Equal(got, input) {
			t.Fatalf("%d of %d bytes, %v", len(got), len(input), err)
		}
	})
}

func TestGathererStops(t *testing.T) {
	g := newGatherer(readSize)
	done := make(chan struct{})
	go func() { defer close(done); g.fill(bytes.NewReader(make([]byte, 10*readSize))) }()
	if _, err := g.take(nil); err != nil {
		t.Fatal(err)
	}
	g.stop()
	<-done
}
