package cli

import (
	"context"
	"io"
)

// inputPiece is how much of standard input is read at one time, in bytes.
const inputPiece = 64 << 10

// interruptible reads standard input, or whatever else a read may wait for
// without end, until the context has ended. net/http ends a request only when the
// read of its body has returned, so a Ctrl-C would be without effect.
type interruptible struct {
	ctx    context.Context
	pieces <-chan piece
	left   []byte
	err    error
}

type piece struct {
	data []byte
	err  error
}

// newInterruptible begins to read. The goroutine that does so stays in its read
// when the context ends; it goes with the process.
func newInterruptible(ctx context.Context, r io.Reader) io.Reader {
	pieces := make(chan piece)
	go func() {
		for {
			buf := make([]byte, inputPiece)
			n, err := r.Read(buf)
			select {
			case pieces <- piece{buf[:n], err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return &interruptible{ctx: ctx, pieces: pieces}
}

func (i *interruptible) Read(p []byte) (int, error) {
	for len(i.left) == 0 {
		if i.err != nil {
			return 0, i.err
		}
		select {
		case <-i.ctx.Done():
			return 0, context.Cause(i.ctx)
		case next := <-i.pieces:
			i.left, i.err = next.data, next.err
		}
	}
	n := copy(p, i.left)
	i.left = i.left[n:]
	return n, nil
}
