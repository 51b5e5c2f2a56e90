package server

import (
	"context"
	"errors"
	"net/http/httptest"
	"testing"
)

// brokenWriter is the answer to a client that has gone after some bytes.
type brokenWriter struct {
	*httptest.ResponseRecorder
	left int
}

func (b *brokenWriter) Write(p []byte) (int, error) {
	if b.left -= len(p); b.left < 0 {
		return 0, errGone
	}
	return b.ResponseRecorder.Write(p)
}

var errGone = errors.New("gone")

// A stream ends with its work, whose error is told from that of a client who has
// gone; the work has then returned too.
func TestFollow(t *testing.T) {
	failed := errors.New("failed")
	rec := httptest.NewRecorder()
	over, err := (&eventWriter{w: rec}).follow(t.Context(), func(_ context.Context, send func(any) error) error {
		return errors.Join(send(1), send("two"), failed)
	})
	if !over || !errors.Is(err, failed) {
		t.Errorf("the end of the work: %v, %v", over, err)
	}
	if got := rec.Body.String(); got != "data: 1\n\ndata: \"two\"\n\n" {
		t.Errorf("written: %q", got)
	}

	returned := false
	w := &eventWriter{w: &brokenWriter{httptest.NewRecorder(), len("data: 1\n\n")}}
	over, err = w.follow(t.Context(), func(ctx context.Context, send func(any) error) error {
		defer func() { returned = true }()
		for {
			if err := send(1); err != nil {
				return err
			}
		}
	})
	if over || !errors.Is(err, errGone) || !returned {
		t.Errorf("without its client: over %v, %v, returned %v", over, err, returned)
	}
}
