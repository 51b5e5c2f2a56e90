package h2

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strconv"
	"time"

	"golang.org/x/net/http2"
)

// serveClient reads the client's frames until it ends.
func (r *relay) serveClient() error {
	_ = r.client.conn.SetReadDeadline(time.Now().Add(r.o.Start))
	err := r.read(r.client, r.server, preface, r.fromClient)
	var bad broken
	if errors.As(err, &bad) {
		r.mu.Lock()
		r.leave(bad.code, bad.reason)
		r.mu.Unlock()
	}
	r.mu.Lock()
	over := r.ending || errors.Is(err, errOver) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed)
	r.mu.Unlock()
	if bad.reason != "" || errors.Is(err, errOver) {
		r.sayLast()
		_, _ = io.CopyN(io.Discard, r.client.conn, lingerBytes)
	}
	if over && bad.reason == "" {
		return nil
	}
	return err
}

// errOver ends a connection on which nothing more will come.
var errOver = errors.New("the connection is over")

// sayLast sends what is to be sent last. What the client still sends must be read
// for a moment: if some were left, the kernel would answer with a reset, which
// overtakes what was sent.
func (r *relay) sayLast() {
	c := r.client.conn
	r.mu.Lock()
	r.client.last = true // no later deadline is set
	_ = c.SetDeadline(time.Now().Add(lingerTime))
	for r.client.flushing {
		r.taken.Wait()
	}
	r.mu.Unlock()
	r.flush(r.client, false)
	_ = c.SetDeadline(time.Now().Add(lingerTime))
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
}

// lingerBytes is how much is read of what a client still sends, in bytes.
const lingerBytes = 256 << 10

// fromClient handles a frame of the client.
func (r *relay) fromClient(f *frame) error {
	e := r.client
	if err := r.order(e, f); err != nil {
		return err
	}
	if r.ending {
		return errOver
	}
	switch f.kind {
	case http2.FrameHeaders, http2.FrameContinuation:
		if f.id%2 == 0 {
			return broken{http2.ErrCodeProtocol, "a client's stream has an even number"}
		}
		return r.block(e, f, r.requestHead)
	case http2.FramePushPromise:
		return broken{http2.ErrCodeProtocol, "a client can't push"}
	case http2.FrameRSTStream:
		return r.clientReset(f)
	case http2.FrameGoAway:
		if f.id != 0 || len(f.payload) < 8 {
			return broken{http2.ErrCodeProtocol, "a GOAWAY is malformed"}
		}
		if r.leaving = true; len(r.streams) == 0 {
			return errOver
		}
		return nil
	}
	if f.id != 0 && (f.id%2 == 0 || f.id > r.lastID) && f.kind != http2.FramePriority && f.kind <= http2.FrameContinuation {
		return broken{http2.ErrCodeProtocol, "a frame is for a stream that was never opened"}
	}
	s := r.streams[f.id]
	return r.common(e, s, f, func(b []byte, size int) error { return r.data(s, &s.up, b, size, f.ends()) })
}

// requestHead handles the head of a request, or the trailer of one.
func (r *relay) requestHead(id uint32, last bool, d *decoded) error {
	if s := r.streams[id]; s != nil {
		return r.requestTrailer(s, last, d)
	}
	if id <= r.lastID {
		if !r.client.budget.spend() {
			return errFlood
		}
		return nil // closed meanwhile
	}
	r.lastID = id
	if r.leaving || len(r.streams) >= r.o.MaxStreams {
		r.putReset(r.client, id, http2.ErrCodeRefusedStream)
		return r.countReset()
	}
	s := &stream{id: id}
	s.up = flow{recv: r.client.given, length: -1, ended: last}
	s.down = flow{send: r.client.initial, length: -1}
	if r.server != nil {
		s.up.send, s.down.recv = r.server.initial, r.server.given
	}
	if d.over {
		r.streams[id] = s
		return r.answer(s, &Refusal{Status: 431, Fields: []Field{{Name: "content-type", Value: "text/plain"}},
			Body: []byte("the head of the request is longer than " + strconv.Itoa(MaxHead) + " bytes\n")})
	}
	q, why := newRequest(d.fields, last)
	if why != "" || q.Protocol != "" && !r.connect {
		r.putReset(r.client, id, http2.ErrCodeProtocol)
		return r.countReset()
	}
	s.method, s.up.length = q.Method, q.Length
	r.streams[id] = s
	x, refused := r.o.Handler.Request(q)
	if refused != nil || r.server == nil || r.lost != nil {
		if refused == nil {
			refused = r.o.Handler.Lost(net.ErrClosed)
		}
		return r.answer(s, refused)
	}
	s.x, s.request, s.up.change = x, q, x.Body
	if x.Whole && !last {
		s.up.gather = true
		if err := r.countHead(&s.requestSize, d.size); err != nil {
			return err
		}
		if x.Continue {
			r.putHead(r.client, id, []Field{{Name: ":status", Value: "100"}}, false)
		}
		return nil
	}
	return r.send(s)
}

// countReset counts what cost work and was for nothing.
func (r *relay) countReset() error {
	if !r.resets.spend() {
		return broken{http2.ErrCodeEnhanceYourCalm, "too many requests are cancelled, or malformed"}
	}
	return nil
}

// sendWhole sends a request whose body is there.
func (r *relay) sendWhole(s *stream) error {
	if s.up.waits() > s.x.Most {
		return r.answer(s, s.x.TooLong)
	}
	s.request.Fields = Set(s.request.Fields, Field{Name: "content-length", Value: strconv.Itoa(s.up.waits())})
	return r.send(s)
}

// send opens the stream at the destination.
func (r *relay) send(s *stream) error {
	if r.nextUp > maxID {
		r.leave(http2.ErrCodeNo, "")
		r.putReset(r.client, s.id, http2.ErrCodeRefusedStream)
		r.remove(s)
		return nil
	}
	s.sid = r.nextUp
	r.nextUp += 2
	r.upstream[s.sid] = s
	e := r.server
	e.fields = s.request.all(e.fields[:0])
	s.request = nil
	r.uncountHead(&s.requestSize)
	last := s.up.ended && s.up.waits() == 0 && s.up.trailer == nil
	r.putHead(e, s.sid, e.fields, last)
	clear(e.fields)
	s.up.started, s.up.done = true, last
	return nil
}

// requestTrailer handles what comes after the body of a request.
func (r *relay) requestTrailer(s *stream, last bool, d *decoded) error {
	if s.up.ended {
		if err := r.fail(s, http2.ErrCodeStreamClosed); err != nil {
			return err
		}
		return r.countReset()
	}
	if !last || d.size > maxTrailer || checkTrailer(d.fields) != "" || s.up.length > s.up.seen {
		if err := r.fail(s, http2.ErrCodeProtocol); err != nil {
			return err
		}
		return r.countReset()
	}
	s.up.ended = true
	if s.local {
		r.ended(s)
		return nil
	}
	s.up.trailer = d.fields
	if err := r.countHead(&s.up.trailerSize, d.size); err != nil {
		return err
	}
	return r.finish(s, &s.up)
}

// finish ends a flow without DATA that says so.
func (r *relay) finish(s *stream, f *flow) error {
	_, to, _ := r.ends(s, f)
	if f.change != nil {
		if err := r.hold(s, f, to, f.change(nil, true)); err != nil {
			return err
		}
	}
	if f.expand != nil {
		f.expand.Push(nil, true)
	}
	return r.pump(s, f)
}

// clientReset handles RST_STREAM.
func (r *relay) clientReset(f *frame) error {
	if len(f.payload) != 4 {
		return broken{http2.ErrCodeFrameSize, "an RST_STREAM has another length than 4"}
	}
	if f.id == 0 || f.id > r.lastID {
		return broken{http2.ErrCodeProtocol, "an RST_STREAM is for a stream that was never opened"}
	}
	s := r.streams[f.id]
	if s == nil {
		if !r.client.budget.spend() {
			return errFlood
		}
		return nil
	}
	if s.sid != 0 && r.lost == nil {
		r.putReset(r.server, s.sid, http2.ErrCode(binary.BigEndian.Uint32(f.payload)))
	}
	r.remove(s)
	return r.countReset()
}
