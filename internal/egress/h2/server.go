package h2

import (
	"encoding/binary"
	"errors"
	"io"

	"golang.org/x/net/http2"
)

// serveServer reads the destination's frames until it ends. What it had to say
// then still goes to the client.
func (r *relay) serveServer() error {
	err := r.read(r.server, r.client, "", r.fromServer)
	r.mu.Lock()
	defer func() {
		r.mu.Unlock()
		r.flush(r.client, false)
		r.mu.Lock()
		ending := r.ending
		r.mu.Unlock()
		_ = r.server.conn.Close()
		if ending {
			r.sayLast()
		}
	}()
	var bad broken
	if errors.As(err, &bad) && r.lost == nil {
		out := r.server.out()
		*out = appendGoAway(*out, 0, bad.code, "")
		r.mu.Unlock()
		r.flush(r.server, false)
		r.mu.Lock()
	}
	if errors.Is(err, errOver) {
		err = io.EOF
	}
	r.lose(err)
	return bad.orNil()
}

func (e broken) orNil() error {
	if e.reason == "" {
		return nil
	}
	return e
}

// lose ends what can't go on without the destination.
func (r *relay) lose(err error) {
	r.lost = err
	if r.client.greet != nil {
		r.greetClient()
	}
	for _, s := range r.streams {
		switch {
		case s.local:
		case s.down.ended:
			// The answer is whole, and only waits for the client to take it.
			r.drop(s, &s.up)
			r.closeUp(s)
			s.local = true
			if r.pump(s, &s.down) != nil {
				r.remove(s)
			}
		case s.answered:
			_ = r.fail(s, http2.ErrCodeInternal)
		default:
			_ = r.answer(s, r.o.Handler.Lost(err)) // it only holds what is small
		}
	}
	if r.leave(http2.ErrCodeNo, ""); len(r.streams) == 0 {
		r.ending = true
	}
}

// fromServer handles a frame of the destination.
func (r *relay) fromServer(f *frame) error {
	e := r.server
	if err := r.order(e, f); err != nil {
		return err
	}
	switch f.kind {
	case http2.FrameHeaders, http2.FrameContinuation:
		if f.id%2 == 0 || f.id >= r.nextUp {
			return broken{http2.ErrCodeProtocol, "the destination answers what nobody asked"}
		}
		return r.block(e, f, r.answerHead)
	case http2.FramePushPromise:
		return broken{http2.ErrCodeProtocol, "the destination pushes although that is turned off"}
	case http2.FrameRSTStream:
		return r.serverReset(f)
	case http2.FrameGoAway:
		return r.serverGoAway(f)
	}
	if f.id != 0 && (f.id%2 == 0 || f.id >= r.nextUp) && f.kind != http2.FramePriority && f.kind <= http2.FrameContinuation {
		return broken{http2.ErrCodeProtocol, "a frame is for a stream that was never opened"}
	}
	s := r.upstream[f.id]
	return r.common(e, s, f, func(b []byte, size int) error {
		if !s.answered || s.down.length == 0 && len(b) > 0 {
			return r.fail(s, http2.ErrCodeProtocol)
		}
		return r.data(s, &s.down, b, size, f.ends())
	})
}

// maxInterim bounds the interim answers to one request: no window holds them
// back.
const maxInterim = 16

// answerHead handles the head of an answer, or the trailer of one.
func (r *relay) answerHead(id uint32, last bool, d *decoded) error {
	s := r.upstream[id]
	if s == nil {
		if !r.server.budget.spend() {
			return errFlood
		}
		return nil // reset meanwhile
	}
	if s.answered {
		return r.answerTrailer(s, last, d)
	}
	if s.down.ended || d.over {
		return r.fail(s, http2.ErrCodeProtocol)
	}
	a, why := newResponse(d.fields, s.method)
	if why != "" || a.Status < 200 && last {
		return r.fail(s, http2.ErrCodeProtocol)
	}
	if a.Status < 200 {
		if s.interim++; s.interim > maxInterim {
			return r.fail(s, http2.ErrCodeEnhanceYourCalm)
		}
	} else {
		switch s.down.ended = last; {
		case a.Bodiless:
			s.down.length = 0
		case s.method == "CONNECT" && a.Status < 300:
			s.down.length = -1
		default:
			s.down.length = a.Length
		}
		if last && s.down.length > 0 {
			return r.fail(s, http2.ErrCodeProtocol)
		}
		a.Bodiless = a.Bodiless || last
	}
	if s.x.Answer != nil {
		filter := s.x.Answer(a)
		s.down.change, s.down.expand = filter.Change, filter.Expand
	}
	if a.Status < 200 {
		r.putHead(r.client, s.id, a.all(nil), false)
		return nil
	}
	e := r.client
	e.fields = a.all(e.fields[:0])
	r.putHead(e, s.id, e.fields, last)
	s.answered, s.down.started = true, true
	if s.down.done = last; last {
		r.ended(s)
	}
	return nil
}

// answerTrailer handles what comes after the body of an answer.
func (r *relay) answerTrailer(s *stream, last bool, d *decoded) error {
	if s.down.ended || !last || d.size > maxTrailer || checkTrailer(d.fields) != "" || s.down.length > s.down.seen {
		return r.fail(s, http2.ErrCodeProtocol)
	}
	s.down.ended = true
	if s.x.Trailer != nil {
		s.x.Trailer(d.fields)
	}
	s.down.trailer = d.fields
	if err := r.countHead(&s.down.trailerSize, d.size); err != nil {
		return err
	}
	return r.finish(s, &s.down)
}

// serverReset handles RST_STREAM.
func (r *relay) serverReset(f *frame) error {
	if len(f.payload) != 4 {
		return broken{http2.ErrCodeFrameSize, "an RST_STREAM has another length than 4"}
	}
	if f.id == 0 || f.id >= r.nextUp {
		return broken{http2.ErrCodeProtocol, "an RST_STREAM is for a stream that was never opened"}
	}
	s := r.upstream[f.id]
	if s == nil {
		if !r.server.budget.spend() {
			return errFlood
		}
		return nil
	}
	code := http2.ErrCode(binary.BigEndian.Uint32(f.payload))
	r.closeUp(s)
	if s.down.ended && !s.down.done {
		// The answer is whole; the client takes the rest of it first.
		r.drop(s, &s.up)
		s.local, s.reset = true, &code
		return nil
	}
	r.putReset(r.client, s.id, code)
	r.remove(s)
	return nil
}

// serverGoAway ends the streams that the destination has not looked at, so that
// the client makes them anew, and lets the others come to their end.
func (r *relay) serverGoAway(f *frame) error {
	if f.id != 0 || len(f.payload) < 8 {
		return broken{http2.ErrCodeProtocol, "a GOAWAY is malformed"}
	}
	last := binary.BigEndian.Uint32(f.payload) & maxID
	r.leave(http2.ErrCode(binary.BigEndian.Uint32(f.payload[4:])), "")
	for _, s := range r.streams {
		if s.sid > last || s.sid == 0 && !s.local {
			r.closeUp(s)
			r.putReset(r.client, s.id, http2.ErrCodeRefusedStream)
			r.remove(s)
		}
	}
	if len(r.streams) == 0 {
		r.ending = true
		return errOver
	}
	return nil
}
