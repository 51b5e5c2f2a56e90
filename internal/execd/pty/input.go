package pty

import (
	"os"
	"sync"
)

// queueLength bounds what is typed ahead of the program, in chunks of at most
// inputChunk bytes. A client that sends more waits.
const (
	queueLength = 64
	inputChunk  = 4 << 10
)

// input passes what clients type to the program, which may not be reading. One
// goroutine writes, so that no client has to wait in a write.
type input struct {
	// f is closed by close, which ends a write under way.
	f *os.File
	// terminal is true when f is a terminal's master side.
	terminal bool
	queue    chan []byte
	// done is closed when nothing more is taken, for good.
	done chan struct{}
	once sync.Once
	// failed is called with the error of a write, at most once.
	failed func(error)
}

func newInput(f *os.File, terminal bool, failed func(error)) *input {
	in := &input{f: f, terminal: terminal, queue: make(chan []byte, queueLength), done: make(chan struct{}), failed: failed}
	go in.run()
	return in
}

// run writes chunks until close. A nil chunk is the end of the input.
func (in *input) run() {
	for {
		select {
		case <-in.done:
			return
		case chunk := <-in.queue:
			if chunk == nil {
				if in.terminal {
					// VEOF's default (termios(3)).
					chunk = []byte{0x04}
				} else {
					in.close()
					return
				}
			}
			if _, err := in.f.Write(chunk); err != nil {
				select {
				case <-in.done:
				default:
					in.close()
					in.failed(err)
				}
				return
			}
		}
	}
}

// send queues a chunk, which is not changed afterwards; nil for the end. It
// waits for room until stop is closed, and reports false when it gave up. What
// comes after the end is dropped.
func (in *input) send(chunk []byte, stop <-chan struct{}) bool {
	select {
	case in.queue <- chunk:
	case <-in.done:
	case <-stop:
		return false
	}
	return true
}

func (in *input) close() {
	in.once.Do(func() {
		close(in.done)
		// A terminal's master is closed by its owner: it is read as well.
		if !in.terminal {
			in.f.Close()
		}
	})
}
