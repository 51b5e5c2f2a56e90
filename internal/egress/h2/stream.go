package h2

import (
	"encoding/binary"
	"strconv"

	"golang.org/x/net/http2"
)

// stream is one request and its answer.
type stream struct {
	id, sid uint32 // the client's, and that on the other side; 0 is none
	method  string
	x       *Exchange
	request *Request // while it waits for its body
	// requestSize is what of it is counted as held.
	requestSize int
	interim     int // interim answers that have come

	up, down flow // from and to the client

	answered bool // the final head has gone to the client
	// local says that the answer comes from here; what the client sends is
	// dropped.
	local bool
	// reset is sent to the client, if set, after the last of the answer.
	reset *http2.ErrCode
}

// flow is one direction of a stream.
type flow struct {
	recv int64 // what may still come
	send int64 // what may go on
	// length is what the head says about the body's, -1 for nothing; seen is
	// what of it has come.
	length, seen int64

	change   func(b []byte, last bool) []byte
	expand   Expander
	expanded bool   // nothing more comes out of it
	more     bool   // there was no room for all that could go on
	fed      int    // bytes that are in it
	held     []byte // what can't go on yet, from at on
	at       int
	gather   bool // wait for the whole body
	started  bool // the head has gone on
	ended    bool // the sender has said that nothing follows
	trailer  []Field
	// trailerSize is what of it is counted as held.
	trailerSize int
	done        bool // END_STREAM has gone on
}

func (f *flow) waits() int { return len(f.held) - f.at }

// ends returns the ends of one direction.
func (r *relay) ends(s *stream, f *flow) (from, to *end, toID uint32) {
	if f == &s.up {
		return r.client, r.server, s.sid
	}
	return r.server, r.client, s.id
}

// data takes a DATA frame for an open stream; size is that of its payload with
// padding.
func (r *relay) data(s *stream, f *flow, b []byte, size int, last bool) error {
	from, to, id := r.ends(s, f)
	if f.recv -= int64(size); f.recv < 0 {
		return r.fail(s, http2.ErrCodeFlowControl)
	}
	if f.ended {
		return r.fail(s, http2.ErrCodeStreamClosed)
	}
	f.ended = last
	if f.seen += int64(len(b)); f.length >= 0 && (f.seen > f.length || last && f.seen < f.length) {
		return r.fail(s, http2.ErrCodeProtocol)
	}
	if s.local && f == &s.up {
		r.ended(s)
		return nil // nobody asks for it any more
	}
	if f.change != nil {
		b = f.change(b, last)
	}
	if f.expand == nil && f.started && f.waits() == 0 && int64(len(b)) <= min(f.send, to.send) && to.pending() <= flushAt {
		if len(b) == 0 && !last {
			r.grant(s, f, from)
			return nil
		}
		r.put(f, to, id, b, last)
		if last {
			r.ended(s)
			return nil
		}
		r.grant(s, f, from)
		return nil
	}
	if f.expand != nil {
		f.expand.Push(b, last)
		f.fed += len(b)
		if err := r.count(f, to, len(b)); err != nil {
			return err
		}
	} else if err := r.hold(s, f, to, b); err != nil {
		return err
	}
	return r.pump(s, f)
}

// put appends DATA, for which there must be room in the windows.
func (r *relay) put(f *flow, to *end, id uint32, b []byte, last bool) {
	out := to.out()
	f.send -= int64(len(b))
	to.send -= int64(len(b))
	for {
		n := min(len(b), maxFrame)
		flags := http2.Flags(0)
		if last && n == len(b) {
			flags = http2.FlagDataEndStream
			f.done = true
		}
		*out = append(appendHeader(*out, n, http2.FrameData, flags, id), b[:n]...)
		if b = b[n:]; len(b) == 0 {
			return
		}
	}
}

// room is how much of n bytes may go on now. What finds no place in what is to be
// sent, although the windows have some, goes on once that was sent.
func (r *relay) room(f *flow, to *end, n int) int {
	may := max(0, min(int64(n), f.send, to.send))
	if most := int64(max(0, sendMost-to.pending())); may > most {
		f.more, to.more = true, true
		return int(most)
	}
	return int(may)
}

// hold keeps what can't go on yet.
func (r *relay) hold(s *stream, f *flow, to *end, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	if f.waits() == 0 {
		r.waiting++
	}
	f.held = append(f.held, b...)
	return r.count(f, to, len(b))
}

// count counts bytes that are kept here. Those of a body that must be whole take
// nothing from the windows: two of them could wait for each other.
func (r *relay) count(f *flow, to *end, n int) error {
	if to != nil && !f.gather {
		to.held += n
	}
	return r.tell(n)
}

// tell tells how many bytes more wait here.
func (r *relay) tell(n int) error {
	if r.settled {
		return nil
	}
	r.told += n
	if n != 0 && r.o.Hold != nil && !r.o.Hold(n) && n > 0 {
		return broken{http2.ErrCodeEnhanceYourCalm, "too much waits to be read"}
	}
	return nil
}

// countHead counts a head that must wait. No window holds heads back.
func (r *relay) countHead(counted *int, n int) error {
	*counted += n
	return r.tell(n)
}

func (r *relay) uncountHead(counted *int) {
	_ = r.tell(-*counted)
	*counted = 0
}

// unhold forgets what was held.
func (r *relay) unhold(f *flow, to *end, n int) {
	if n == 0 {
		return
	}
	if f.at += n; f.at == len(f.held) {
		r.waiting--
		f.held, f.at = nil, 0
	} else if f.at > 1<<20 && f.at > len(f.held)/2 {
		f.held = append([]byte(nil), f.held[f.at:]...)
		f.at = 0
	}
	_ = r.count(f, to, -n)
}

// unfeed forgets what a filter had.
func (r *relay) unfeed(f *flow, to *end) {
	_ = r.count(f, to, -f.fed)
	f.fed = 0
}

// pump passes on what there is of a flow, as far as the windows reach, and its
// end.
func (r *relay) pump(s *stream, f *flow) error {
	from, to, id := r.ends(s, f)
	if f.gather && f.waits() > s.x.Most {
		return r.answer(s, s.x.TooLong)
	}
	for f.started {
		if f.waits() > 0 {
			n := r.room(f, to, f.waits())
			last := n == f.waits() && f.ended && f.trailer == nil && (f.expand == nil || f.expanded)
			if n > 0 {
				r.put(f, to, id, f.held[f.at:f.at+n], last)
				r.unhold(f, to, n)
			}
			if f.waits() > 0 {
				break
			}
		}
		if f.expand == nil || f.expanded {
			break
		}
		if to.pending() >= flushAt {
			// Much may come out of little: the rest is for when this was sent.
			f.more, to.more = true, true
			break
		}
		b, done, err := f.expand.Next()
		if err != nil {
			return r.fail(s, http2.ErrCodeInternal)
		}
		f.expanded = done
		if len(b) == 0 || done {
			r.unfeed(f, to)
		}
		if len(b) == 0 {
			break
		}
		n := r.room(f, to, len(b))
		last := n == len(b) && done && f.ended && f.trailer == nil
		if n > 0 {
			r.put(f, to, id, b[:n], last)
		}
		if err := r.hold(s, f, to, b[n:]); err != nil {
			return err
		}
	}
	whole := f.ended && (f.expand == nil || f.expanded)
	if whole && f.gather {
		f.gather = false
		to.held += f.waits()
		if err := r.sendWhole(s); err != nil {
			return err
		}
		return r.pump(s, f)
	}
	if whole && f.started && f.waits() == 0 && !f.done {
		if f.trailer != nil {
			r.putHead(to, id, f.trailer, true)
			f.trailer = nil
			r.uncountHead(&f.trailerSize)
			f.done = true
		} else {
			r.put(f, to, id, nil, true)
		}
	}
	if f.done {
		r.ended(s)
		return nil
	}
	r.grant(s, f, from)
	return nil
}

// pumpAll passes on what waits for an end whose window has grown.
func (r *relay) pumpAll(to *end) error {
	if r.waiting == 0 && !to.more || to.send <= 0 {
		return nil
	}
	to.more = false
	for _, s := range r.streams {
		if to.send <= 0 || to.pending() >= flushAt {
			to.more = true // not all have had their turn
			return nil
		}
		f := &s.down
		if to == r.server {
			f = &s.up
		}
		if (f.waits() > 0 || f.more) && f.started && !f.done {
			f.more = false
			if err := r.pump(s, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// grant gives the sender of a flow as much credit as the receiver has given
// here, less what waits: bytes are as fast as if nobody was between, and what
// can't go on stays where it comes from.
func (r *relay) grant(s *stream, f *flow, from *end) {
	if from == nil || f.ended {
		return
	}
	most := min(f.send, streamMost)
	if f.gather {
		most = streamMost // its length is known
	}
	more := most - int64(f.waits()+f.fed) - f.recv
	if more <= 0 || more < most/4 {
		return
	}
	f.recv += more
	id := s.id
	if from == r.server {
		id = s.sid
	}
	out := from.out()
	*out = appendNumber(*out, http2.FrameWindowUpdate, id, uint32(more))
}

// grantAll does the same for all streams of a side together.
func (r *relay) grantAll(from, to *end) {
	if from == nil {
		return
	}
	most := int64(defaultWindow)
	if to != nil && r.lost == nil {
		most = min(to.send, connMost)
	}
	more := most - from.recv
	if to != nil {
		more -= int64(to.held)
	}
	if more <= 0 || more < most/4 {
		return
	}
	from.recv += more
	out := from.out()
	*out = appendNumber(*out, http2.FrameWindowUpdate, 0, uint32(more))
}

// putHead appends a header block.
func (r *relay) putHead(to *end, id uint32, fields []Field, last bool) {
	to.encoded.Reset()
	for i := range fields {
		_ = to.enc.WriteField(fields[i]) // a Buffer takes all
	}
	out := to.out()
	*out = appendBlock(*out, id, to.encoded.Bytes(), last)
}

// ended looks whether a stream is over.
func (r *relay) ended(s *stream) {
	if !s.down.done {
		return
	}
	switch {
	case s.reset != nil:
		r.putReset(r.client, s.id, *s.reset)
	case s.up.done || s.local && s.up.ended:
	case s.local:
		// The rest of the request is of no use (RFC 9113, 8.1).
		r.putReset(r.client, s.id, http2.ErrCodeNo)
	default:
		return
	}
	r.remove(s)
}

func (r *relay) putReset(to *end, id uint32, code http2.ErrCode) {
	out := to.out()
	*out = appendNumber(*out, http2.FrameRSTStream, id, uint32(code))
}

// remove forgets a stream.
func (r *relay) remove(s *stream) {
	delete(r.streams, s.id)
	r.closeUp(s)
	r.drop(s, &s.up)
	r.drop(s, &s.down)
	if r.leaving && len(r.streams) == 0 {
		r.ending = true
	}
}

// closeUp forgets that a stream is open at the destination.
func (r *relay) closeUp(s *stream) {
	if s.sid != 0 {
		delete(r.upstream, s.sid)
		s.sid = 0
	}
}

// drop forgets what of a flow has not gone on.
func (r *relay) drop(s *stream, f *flow) {
	_, to, _ := r.ends(s, f)
	r.unfeed(f, to)
	r.unhold(f, to, f.waits())
	f.gather, f.more, f.trailer = false, false, nil
	r.uncountHead(&f.trailerSize)
	if f == &s.up {
		s.request = nil
		r.uncountHead(&s.requestSize)
	}
	if f.expand != nil {
		f.expand.Close()
		f.expand = nil
	}
}

// fail ends a stream on both sides.
func (r *relay) fail(s *stream, code http2.ErrCode) error {
	if s.sid != 0 && r.lost == nil {
		r.putReset(r.server, s.sid, code)
	}
	r.putReset(r.client, s.id, code)
	r.remove(s)
	return nil
}

// answer answers a request from here.
func (r *relay) answer(s *stream, a *Refusal) error {
	if s.sid != 0 && r.lost == nil {
		r.putReset(r.server, s.sid, http2.ErrCodeCancel)
	}
	r.closeUp(s)
	r.drop(s, &s.up)
	r.drop(s, &s.down)
	s.local, s.answered = true, true
	fields := append([]Field{{Name: ":status", Value: strconv.Itoa(a.Status)}}, a.Fields...)
	fields = append(fields, Field{Name: "content-length", Value: strconv.Itoa(len(a.Body))})
	body := a.Body
	if s.method == "HEAD" {
		body = nil
	}
	r.putHead(r.client, s.id, fields, len(body) == 0)
	s.down.started, s.down.ended = true, true
	if s.down.done = len(body) == 0; s.down.done {
		r.ended(s)
		return nil
	}
	if err := r.hold(s, &s.down, r.client, body); err != nil {
		return err
	}
	return r.pump(s, &s.down)
}

// window handles WINDOW_UPDATE of an end.
func (r *relay) window(e *end, s *stream, f *frame) error {
	if len(f.payload) != 4 {
		return broken{http2.ErrCodeFrameSize, "a window update has another length than 4"}
	}
	n := int64(binary.BigEndian.Uint32(f.payload) & maxWindow)
	if f.id == 0 {
		if n == 0 {
			return broken{http2.ErrCodeProtocol, "a window grows by nothing"}
		}
		if e.send += n; e.send > maxWindow {
			return broken{http2.ErrCodeFlowControl, "a window is larger than allowed"}
		}
		if err := r.pumpAll(e); err != nil {
			return err
		}
		r.grantAll(r.opposite(e), e)
		return nil
	}
	if s == nil {
		return nil // closed meanwhile
	}
	w := &s.down
	if e == r.server {
		w = &s.up
	}
	if n == 0 {
		return r.fail(s, http2.ErrCodeProtocol)
	}
	if w.send += n; w.send > maxWindow {
		return r.fail(s, http2.ErrCodeFlowControl)
	}
	if w.done {
		return nil
	}
	if err := r.pump(s, w); err != nil {
		return err
	}
	r.grantAll(r.opposite(e), e)
	return nil
}

// opposite is the other end, nil when there is none that can still send.
func (r *relay) opposite(e *end) *end {
	if e == r.server {
		return r.client
	}
	if r.lost != nil {
		return nil
	}
	return r.server
}
