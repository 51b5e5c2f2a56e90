package pty

import (
	"context"
	"encoding/binary"
	"net"
	"sync"
	"time"

	"github.com/coder/websocket"
)

const (
	// outputChunk bounds the payload of one output message, in bytes.
	outputChunk = 32 << 10
	// maxReplies bounds the answers that wait for a client; one that does not
	// read them is not listened to meanwhile.
	maxReplies = 16
	// closeWait bounds the exchange of close frames.
	closeWait = 5 * time.Second
)

// chunks are shared by all connections: a silent one costs no buffer.
var chunks = sync.Pool{New: func() any { b := make([]byte, replayHeader+outputChunk); return &b }}

// run is a stretch of output from one stream. It ends before offset end.
type run struct {
	prefix byte
	end    int64
}

// client is one connection.
type client struct {
	session *session
	times   times
	conn    *websocket.Conn
	// tcp is what conn sits on, for deadlines.
	tcp net.Conn

	// wake has an element when there may be news.
	wake chan struct{}
	// replies are text messages to send.
	replies chan []byte
	// evicted is closed when another client has taken the session over.
	evicted chan struct{}
	// left is closed when nothing more comes from the client.
	left chan struct{}
	// over ends when the connection is no longer served.
	over context.Context
	end  context.CancelFunc

	// The rest is guarded by session.mu.

	// attached is set when the fields below are valid.
	attached bool
	terminal bool
	// cursor is the offset of the next byte to send; those before live are a
	// replay.
	cursor, live int64
	// runs says what the bytes from live on are, in pipe mode.
	runs []run
}

func newClient(s *session, t times) *client {
	c := &client{
		session: s, times: t,
		wake: make(chan struct{}, 1), replies: make(chan []byte, maxReplies),
		evicted: make(chan struct{}), left: make(chan struct{}),
	}
	c.over, c.end = context.WithCancel(context.Background())
	return c
}

// poke wakes the writer.
func (c *client) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// reply queues a text message. It waits for room until the connection is over.
func (c *client) reply(text []byte) {
	select {
	case c.replies <- text:
	case <-c.over.Done():
	}
}

// note records that the output up to end is of the stream. It reports false
// when that has to wait. The caller holds session.mu.
func (c *client) note(prefix byte, end int64) bool {
	if c.terminal {
		return true
	}
	if last := len(c.runs) - 1; last >= 0 && c.runs[last].prefix == prefix {
		c.runs[last].end = end
		return true
	}
	if len(c.runs) >= maxRuns {
		return false
	}
	c.runs = append(c.runs, run{prefix, end})
	return true
}

// upcoming says what the byte at cursor is, and where that ends. The caller
// holds session.mu.
func (c *client) upcoming(total int64) (prefix byte, end int64) {
	switch {
	case c.cursor < c.live:
		return prefixReplay, c.live
	case len(c.runs) > 0:
		return c.runs[0].prefix, c.runs[0].end
	}
	return prefixStdout, total
}

// advance moves the cursor. The caller holds session.mu.
func (c *client) advance(n int64) {
	c.cursor += n
	if len(c.runs) > 0 && c.cursor == c.runs[0].end {
		c.runs = c.runs[1:]
	}
}

// position returns the next offset and where the live output begins.
func (c *client) position() (cursor, live int64) {
	c.session.mu.Lock()
	defer c.session.mu.Unlock()
	return c.cursor, c.live
}

// serve serves the connection until its end. c must be the session's holder.
func (c *client) serve(terminal bool, since int64) {
	defer c.conn.CloseNow()
	defer c.end()
	defer c.session.release(c)
	ok, err := c.session.attach(c, terminal, since)
	if err != nil {
		// Before the client knows, who may try again at once.
		c.session.release(c)
		c.text(errorFrame(codeStartFailed, err.Error()))
		c.close(websocket.StatusInternalError, codeStartFailed)
		return
	}
	if !ok {
		what, _, _ := c.session.next(c, nil)
		c.finish(what)
		return
	}
	go c.listen()
	go c.ping()
	c.finish(c.speak())
	c.end()
	c.conn.CloseNow()
	<-c.left
}

// speak sends what there is to send until there is nothing more to say, and
// returns why. It returns newsNone when the client has gone.
func (c *client) speak() news {
	if what := c.replay(); what != newsOutput {
		return what
	}
	_, live := c.position()
	mode := "pipe"
	if c.terminal {
		mode = "pty"
	}
	if !c.text(serverFrame{Type: "connected", SessionID: c.session.id, Mode: mode, Offset: &live}.encode()) {
		return newsNone
	}
	for {
		if what := c.burst(); what != newsOutput {
			return what
		}
		select {
		case <-c.wake:
		case <-c.evicted:
		case text := <-c.replies:
			if !c.text(text) {
				return newsNone
			}
		case <-c.left:
			return newsNone
		}
	}
}

// burst sends output until there is none. It returns newsOutput then.
func (c *client) burst() news {
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	for {
		what, prefix, n := c.session.next(c, (*buf)[1:1+outputChunk])
		switch what {
		case newsNone:
			return newsOutput
		case newsOutput:
		default:
			return what
		}
		(*buf)[0] = prefix
		if !c.message(websocket.MessageBinary, (*buf)[:1+n]) {
			return newsNone
		}
		// Answers are not to wait for the end of a flood.
		select {
		case text := <-c.replies:
			if !c.text(text) {
				return newsNone
			}
		case <-c.left:
			return newsNone
		default:
		}
	}
}

// replay sends what the client has missed, as one message. It returns
// newsOutput when that was done.
func (c *client) replay() news {
	cursor, live := c.position()
	if cursor == live {
		return newsOutput
	}
	buf := chunks.Get().(*[]byte)
	defer chunks.Put(buf)
	head := (*buf)[:replayHeader]
	head[0] = prefixReplay
	binary.BigEndian.PutUint64(head[1:], uint64(cursor))
	what, _, n := c.session.next(c, (*buf)[replayHeader:])
	if what != newsOutput {
		return what
	}
	first := (*buf)[:replayHeader+n]
	if cursor += int64(n); cursor == live {
		if !c.message(websocket.MessageBinary, first) {
			return newsNone
		}
		return newsOutput
	}
	w, err := c.conn.Writer(context.Background(), websocket.MessageBinary)
	if err != nil {
		return newsNone
	}
	for part := first; ; {
		if err := c.timed(func() error { _, err := w.Write(part); return err }); err != nil {
			return newsNone
		}
		if cursor == live {
			break
		}
		if what, _, n = c.session.next(c, *buf); what != newsOutput {
			return what
		}
		cursor += int64(n)
		part = (*buf)[:n]
	}
	if c.timed(w.Close) != nil {
		return newsNone
	}
	return newsOutput
}

// finish says the last words.
func (c *client) finish(what news) {
	switch what {
	case newsExit:
		exit := c.session.proc.Exit()
		c.session.release(c)
		c.text(serverFrame{Type: "exit", ExitCode: &exit.Code, Signal: int(exit.Signal)}.encode())
		c.close(websocket.StatusNormalClosure, "process exited")
	case newsTakenOver:
		c.close(closeTakenOver, codeTakenOver)
	case newsGone:
		c.text(errorFrame(codeSessionGone, "this pty session was deleted"))
		c.close(websocket.StatusGoingAway, codeSessionGone)
	}
}

// close exchanges close frames, in bounded time.
func (c *client) close(code websocket.StatusCode, reason string) {
	c.end()
	// The library waits without a deadline for the rest of a message.
	_ = c.tcp.SetDeadline(time.Now().Add(closeWait))
	_ = c.conn.Close(code, reason)
}

// text sends a text message and reports whether that worked.
func (c *client) text(b []byte) bool { return c.message(websocket.MessageText, b) }

func (c *client) message(kind websocket.MessageType, b []byte) bool {
	return c.timed(func() error { return c.conn.Write(context.Background(), kind, b) }) == nil
}

// timed runs a write that may not take too long. The deadline is taken away
// again because the library writes pongs by itself.
func (c *client) timed(write func() error) error {
	_ = c.tcp.SetWriteDeadline(time.Now().Add(c.times.write))
	err := write()
	_ = c.tcp.SetWriteDeadline(time.Time{})
	return err
}

// ping asks the client whether it is there. That there is no answer is noticed
// by the deadline of reads.
func (c *client) ping() {
	ticker := time.NewTicker(c.times.ping)
	defer ticker.Stop()
	for {
		select {
		case <-c.over.Done():
			return
		case <-ticker.C:
		}
		ctx, cancel := context.WithTimeout(context.Background(), c.times.ping)
		_ = c.conn.Ping(ctx)
		cancel()
	}
}
