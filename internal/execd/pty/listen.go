package pty

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	"github.com/coder/websocket"
)

// maxMessage bounds one message of a client, in bytes. Larger ones end the
// connection with close code 1009.
const maxMessage = 1 << 20

// listen does what the client says until it says no more.
func (c *client) listen() {
	defer close(c.left)
	var buf [inputChunk]byte
	for {
		c.expect()
		kind, r, err := c.conn.Reader(context.Background())
		if err != nil {
			return
		}
		select {
		case <-c.evicted:
			return
		case <-c.over.Done():
			return
		default:
		}
		if kind == websocket.MessageText {
			err = c.command(r)
		} else {
			err = c.stdin(r, buf[:])
		}
		if err != nil {
			return
		}
	}
}

// expect gives the client time to send something. It is called again for pings
// and pongs, which the library keeps to itself.
func (c *client) expect() {
	if c.over.Err() == nil {
		_ = c.tcp.SetReadDeadline(time.Now().Add(c.times.silence))
	}
}

// errOver is returned when the connection ended while input waited.
var errOver = errors.New("the connection is over")

// stdin reads a binary message. Those with an unknown prefix are ignored
// (OpenSandbox execd API).
func (c *client) stdin(r io.Reader, buf []byte) error {
	begun := false
	for {
		n, err := r.Read(buf)
		chunk := buf[:n]
		if !begun && n > 0 {
			if chunk[0] != prefixStdin {
				_, err := io.Copy(io.Discard, r)
				return err
			}
			begun, chunk = true, chunk[1:]
		}
		if len(chunk) > 0 && !c.enter(bytes.Clone(chunk)) {
			return errOver
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		c.expect()
	}
}

// enter gives input to the program; nil for its end.
func (c *client) enter(chunk []byte) bool {
	return c.session.in.send(chunk, c.over.Done())
}

// command reads a text message and does what it says.
func (c *client) command(r io.Reader) error {
	text, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	f, err := decodeFrame(text)
	if err != nil {
		c.reply(errorFrame(codeInvalidFrame, err.Error()))
		return nil
	}
	switch f.Type {
	case frameStdin:
		for data := []byte(f.Data); len(data) > 0; {
			n := min(len(data), inputChunk)
			if !c.enter(data[:n]) {
				return errOver
			}
			data = data[n:]
		}
	case frameEOF:
		if !c.enter(nil) {
			return errOver
		}
	case frameResize:
		c.session.resize(f.size)
	case frameSignal:
		c.session.signal(f.signal)
	case framePing:
		c.reply(serverFrame{Type: "pong"}.encode())
	}
	return nil
}
