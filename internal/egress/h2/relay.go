package h2

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Options configure Relay.
type Options struct {
	// Client and Server are the connections, whose first bytes are the client's
	// preface and the destination's settings. Relay closes both. Server may be
	// nil: then the Handler must refuse every request.
	Client, Server net.Conn
	Handler        Handler
	// MaxStreams is how many requests a client may have open at a time (default
	// 250).
	MaxStreams int
	// Start bounds the time until both sides have sent their settings (default
	// 20 s); Idle is how long a connection may be without a request (default
	// 10 min).
	Start, Idle time.Duration
	// ClientWaits and ServerWaits take a function that is to be called before a
	// read from that side waits for the network, so that as much as there is goes
	// on at once. Without them it is called after each read.
	ClientWaits, ServerWaits func(func())
	// Hold is told how many bytes more (or fewer, when negative) wait to be sent.
	// When it returns false the connection ends. It may be nil.
	Hold func(delta int) bool
}

// Handler decides about requests. Its methods, those of what it returns too, are
// called one at a time for one Relay, and must not block.
type Handler interface {
	// Request is called with each well-formed request, and may change it.
	// Exactly one of the results is not nil.
	Request(*Request) (*Exchange, *Refusal)
	// Lost is the answer to requests that had none when the connection to the
	// destination ended.
	Lost(err error) *Refusal
}

// Exchange is a request on its way, and what to do with its answer.
type Exchange struct {
	// Body changes the body of the request; nil passes it on.
	Body func(b []byte, last bool) []byte
	// Whole holds the request until its body is there, whose length after Body
	// is then set as its Content-Length. Continue tells the client to send it
	// (RFC 9110, 15.2.1). More than Most bytes are answered with TooLong.
	Whole, Continue bool
	Most            int
	TooLong         *Refusal
	// Answer is called with the head of each answer, interim and final, and may
	// change it. For the final one it may return a Filter for the body. It may be
	// nil.
	Answer func(*Response) Filter
	// Trailer may change the trailer of the answer. It may be nil.
	Trailer func([]Field)
}

// Refusal is an answer that does not come from the destination.
type Refusal struct {
	Status int
	Fields []Field // without Content-Length
	Body   []byte
}

// Filter changes a body. One of its members may be set.
type Filter struct {
	// Change returns what stands in the place of the next part of the body. The
	// result is used before the next call, and may be b itself.
	Change func(b []byte, last bool) []byte
	// Expand is for changes of which much may come out.
	Expand Expander
}

// Expander makes a body out of one that may be much shorter.
type Expander interface {
	// Push gives the next part, at any time; b is not kept.
	Push(b []byte, last bool)
	// Next returns the next piece of what comes out, valid until the next call:
	// an empty one asks for more. done says that nothing follows. Pieces are
	// small, whatever was pushed.
	Next() (b []byte, done bool, err error)
	// Close is called once, when nothing more will be asked for.
	Close()
}

const (
	// streamMost and connMost bound the windows given to either side, which
	// otherwise follow those of the side that the bytes go to; in bytes.
	streamMost = 8 << 20
	connMost   = 16 << 20
	// maxContinuations bounds the frames of a header block beyond what its
	// length allows for.
	maxContinuations = 32
	// flushAt is how much is collected before it is sent, in bytes.
	flushAt = 64 << 10
	// sendMost bounds what is collected of bodies, and queueMost what is collected
	// of everything while another goroutine sends, in bytes.
	sendMost  = flushAt + maxFrame
	queueMost = 1 << 20
	// writeSize is how much is sent at a time, in bytes, and writeTime how long
	// that may take.
	writeSize = 128 << 10
	writeTime = time.Minute
	// readSize is how much is read at a time when much comes, idleSize the
	// buffer of a connection on which nothing does; in bytes.
	readSize, idleSize = 80 << 10, 4 << 10
	// lingerTime is how long a client may take to read what was sent last.
	lingerTime = time.Second
)

var readBuffers = sync.Pool{New: func() any { return new([readSize]byte) }}

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, flushAt+2*maxFrame); return &b }}

// end is one of the two connections.
type end struct {
	conn net.Conn
	// buf is what is to be sent, nil or from buffers.
	buf *[]byte
	// counted is what of buf is counted as held. more says that there is more of
	// bodies for which there was no room in it.
	counted int
	more    bool
	// flushing says that somebody is sending, and goes on until there is nothing
	// more; dead that nothing can be sent any more; last that what is sent now is
	// the last.
	flushing, dead, last bool

	enc      *hpack.Encoder
	encoded  bytes.Buffer
	fields   []Field // reused
	dec      *hpack.Decoder
	decoding *decoded

	// send is what may be sent to this end on all streams together, initial what
	// may on a new one; recv is what this end may send on all together, given what
	// it was told that it may on a new one.
	send, initial, recv, given int64
	flushSoon                  bool   // after each read
	greet                      func() // sends the settings, nil once it has
	acks                       int    // settings that are not acknowledged yet
	held                       int    // bytes that wait to be sent to this end
	settled                    bool
	budget                     budget

	// block is a header block that is not whole yet.
	block struct {
		id     uint32 // 0 when there is none
		flags  http2.Flags
		b      []byte
		frames int
	}
}

func newEnd(c net.Conn) *end {
	e := &end{conn: c, send: defaultWindow, initial: defaultWindow, recv: defaultWindow, given: defaultWindow, budget: control()}
	e.enc = hpack.NewEncoder(&e.encoded)
	e.dec = hpack.NewDecoder(4096, func(f hpack.HeaderField) { e.decoding.add(f) })
	return e
}

// out is the buffer of what is to be sent. Settings come first (RFC 9113, 3.4).
func (e *end) out() *[]byte {
	if greet := e.greet; greet != nil {
		e.greet = nil
		greet()
	}
	if e.buf == nil {
		e.buf = buffers.Get().(*[]byte)
	}
	return e.buf
}

func (e *end) pending() int {
	if e.buf == nil {
		return 0
	}
	return len(*e.buf)
}

// full says that there is so much to be sent that who is sending must get on
// first.
func (e *end) full() bool { return e.flushing && e.pending() > queueMost }

// relay is one pair of connections. Everything but what is read and written is
// done with mu held.
type relay struct {
	// told is what Hold was told in sum; settled says that it is told no more.
	told    int
	settled bool

	o  Options
	mu sync.Mutex
	// taken is told when a buf has been taken to be sent, and when a flush ends.
	taken *sync.Cond

	client, server *end // server is nil when there is none
	lost           error
	failed         error // what ended the connection while something was sent

	// streams are those that are open, by the client's id and by that on the
	// other side, 0 for those that are not open there.
	streams  map[uint32]*stream
	upstream map[uint32]*stream
	lastID   uint32 // the client's last
	nextUp   uint32
	resets   budget
	waiting  int // streams with something held

	maxStreams uint32
	connect    bool // the destination takes extended CONNECT
	// leaving says that no new stream is taken: GOAWAY was sent, or came.
	leaving bool
	goAway  bool // it was sent to the client
	active  bool // something came since the last look
	idle    *time.Timer
	greeted bool          // the client was
	over    bool          // and so is the relay
	begin   chan struct{} // closed when the destination was
	ending  bool          // nothing more will be sent to the client
}

// Relay serves until both connections have ended, which they also do with the
// context. Its error is for logs; it tells nothing of what was passed on.
func Relay(ctx context.Context, o Options) error {
	if o.MaxStreams <= 0 {
		o.MaxStreams = 250
	}
	if o.Start <= 0 {
		o.Start = 20 * time.Second
	}
	if o.Idle <= 0 {
		o.Idle = 10 * time.Minute
	}
	r := &relay{o: o, client: newEnd(o.Client), streams: map[uint32]*stream{}, upstream: map[uint32]*stream{},
		nextUp: 1, begin: make(chan struct{}), resets: resets(), maxStreams: uint32(o.MaxStreams)}
	r.taken = sync.NewCond(&r.mu)
	r.client.greet = r.greetClient
	r.client.flushSoon = o.ClientWaits == nil
	if o.ClientWaits != nil {
		o.ClientWaits(func() { r.flush(r.server, false); r.flush(r.client, true) })
	}
	stop := context.AfterFunc(ctx, r.hangUp)
	defer stop()
	defer r.hangUp()
	serverDone, over := make(chan error, 1), make(chan struct{})
	if o.Server != nil {
		r.server = newEnd(o.Server)
		r.server.flushSoon = o.ServerWaits == nil
		if o.ServerWaits != nil {
			o.ServerWaits(func() { r.flush(r.client, false); r.flush(r.server, true) })
		}
		go func() {
			// Its settings are answered after the preface, which says what the
			// client takes.
			select {
			case <-r.begin:
				_ = o.Server.SetReadDeadline(time.Now().Add(o.Start))
				serverDone <- r.serveServer()
			case <-over:
				serverDone <- nil
			}
		}()
	} else {
		serverDone <- nil
		r.greetClient()
	}
	r.mu.Lock()
	r.idle = time.AfterFunc(o.Idle/2, r.checkIdle)
	r.mu.Unlock()
	defer r.idle.Stop()
	err := r.serveClient()
	close(over)
	r.hangUp()
	if serverErr := <-serverDone; err == nil {
		err = serverErr
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	for _, s := range r.streams {
		r.remove(s)
	}
	ends := []*end{r.client}
	if r.server != nil {
		ends = append(ends, r.server)
	}
	for _, e := range ends {
		e.dead = true // nothing more is made to be sent to it
	}
	// Who sends to the one may give the other something to send.
	for slices.ContainsFunc(ends, func(e *end) bool { return e.flushing }) {
		r.taken.Wait()
	}
	for _, e := range ends {
		e.buf = nil
		_ = r.countOut(e)
	}
	// Whatever ended in between, nothing waits here any more.
	_ = r.tell(-r.told)
	r.settled = true
	if r.failed != nil {
		err = r.failed
	}
	return err
}

func (r *relay) hangUp() {
	_ = r.o.Client.Close()
	if r.o.Server != nil {
		_ = r.o.Server.Close()
	}
}

// greetServer is done once the client's settings are known.
func (r *relay) greetServer() {
	close(r.begin)
	b := r.server.out()
	*b = append(*b, preface...)
	*b = appendSettings(*b, http2.Setting{ID: http2.SettingEnablePush}, http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: MaxHead},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: r.give(r.server, r.client)})
}

// greetClient is done once it is known what the destination can do, or when the
// client must be told something before.
func (r *relay) greetClient() {
	r.client.greet = nil
	settings := []http2.Setting{{ID: http2.SettingMaxConcurrentStreams, Val: r.maxStreams}, {ID: http2.SettingMaxHeaderListSize, Val: MaxHead}}
	if r.server != nil && !r.greeted {
		settings = append(settings, http2.Setting{ID: http2.SettingInitialWindowSize, Val: r.give(r.client, r.server)})
	}
	if r.connect {
		settings = append(settings, http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 1})
	}
	r.greeted = true
	b := r.client.out()
	*b = appendSettings(*b, settings...)
	r.acknowledge(r.client)
}

// acknowledge acknowledges an end's settings.
func (r *relay) acknowledge(e *end) {
	for ; e.acks > 0; e.acks-- {
		b := e.out()
		*b = appendHeader(*b, 0, http2.FrameSettings, http2.FlagSettingsAck, 0)
	}
}

// give decides what an end may send at first of a stream: what the other takes,
// but no less than every sender assumes before it is told.
func (r *relay) give(from, to *end) uint32 {
	by := min(max(to.initial, defaultWindow), streamMost) - from.given
	from.given += by
	for _, s := range r.streams { // those that the client began before it was told
		if from == r.client {
			s.up.recv += by
		}
	}
	return uint32(from.given)
}

// checkIdle ends a connection on which nothing has been going on.
func (r *relay) checkIdle() {
	r.mu.Lock()
	if r.over {
		r.mu.Unlock()
		return
	}
	if r.active || len(r.streams) > 0 {
		r.active = false
		r.idle.Reset(r.o.Idle / 2)
		r.mu.Unlock()
		return
	}
	r.leave(http2.ErrCodeNo, "")
	r.mu.Unlock()
	r.flush(r.client, false)
	r.hangUp()
}

// leave tells the client that no new stream is taken.
func (r *relay) leave(code http2.ErrCode, reason string) {
	r.leaving = true
	if !r.goAway || code != http2.ErrCodeNo {
		r.goAway = true
		b := r.client.out()
		*b = appendGoAway(*b, r.lastID, code, reason)
	}
}

// countOut counts what is to be sent to an end as held. Only where it is more than
// is collected anyway does a limit that is passed end this connection: it may be
// another one that holds so much.
func (r *relay) countOut(e *end) error {
	if e == nil {
		return nil
	}
	n := e.pending() - e.counted
	e.counted += n
	if err := r.tell(n); e.pending() > sendMost {
		return err
	}
	return nil
}

// flush sends what is to be sent to an end. It doesn't wait for another goroutine
// that does: that one sends also what came meanwhile, and this one may have what
// it needs for that to go on. For the same reason who reads from the end, which
// own says, sends only little itself. A connection that takes nothing any more is
// closed, which whoever reads from it sees.
func (r *relay) flush(e *end, own bool) {
	for e != nil {
		r.mu.Lock()
		if e.flushing {
			r.mu.Unlock()
			return
		}
		e.flushing = true
		e, own = r.sendOut(e, own), !own
	}
}

// sendOut sends until there is nothing more, and returns the other end if that
// has been given something to be sent. mu is held before; afterwards it is not.
func (r *relay) sendOut(e *end, own bool) (next *end) {
	was, inline := r.ending, e.pending() <= idleSize
	for r.failed == nil {
		if own && (e.pending() > 0 && !inline || e.more && !e.dead) {
			go func() {
				r.mu.Lock()
				r.flush(r.sendOut(e, false), false)
			}()
			r.mu.Unlock()
			return nil
		}
		inline = false
		if e.pending() == 0 && e.more && !e.dead {
			r.failed = r.pumpAll(e)
			r.grantAll(r.opposite(e), e)
			next = r.opposite(e)
		}
		b := e.buf
		if b == nil {
			break
		}
		_ = r.countOut(e) // it goes out
		counted := e.counted
		e.buf, e.counted = nil, 0
		r.taken.Broadcast()
		r.write(e, *b)
		_ = r.tell(-counted)
		if cap(*b) <= 4*flushAt {
			*b = (*b)[:0]
			buffers.Put(b)
		}
	}
	e.flushing = false
	r.taken.Broadcast()
	failed := r.failed != nil
	// Whoever reads from the client may wait already, and must see the end.
	last := r.ending && !was
	r.mu.Unlock()
	switch {
	case failed:
		r.hangUp()
		return nil
	case last:
		r.sayLast()
	}
	return next
}

// write writes to an end, without mu, which is held before and after.
func (r *relay) write(e *end, b []byte) {
	for len(b) > 0 && !e.dead {
		n := min(len(b), writeSize)
		if !e.last {
			_ = e.conn.SetWriteDeadline(time.Now().Add(writeTime))
		}
		r.mu.Unlock()
		_, err := e.conn.Write(b[:n])
		if err != nil {
			_ = e.conn.Close()
		}
		r.mu.Lock()
		b, e.dead = b[n:], e.dead || err != nil
	}
}

// read reads frames from an end until one of them, or the connection, ends it.
// What they lead to is sent before more is waited for. skip must come first.
func (r *relay) read(e, other *end, skip string, handle func(*frame) error) error {
	small := make([]byte, idleSize)
	b, from, have := small, 0, 0
	var large *[readSize]byte
	defer func() {
		if large != nil {
			readBuffers.Put(large)
		}
	}()
	for {
		n, err := e.conn.Read(b[have:])
		if have += n; n > 0 {
			at, failed := r.handleAll(e, other, b[from:have], &skip, handle)
			if failed != nil {
				return failed
			}
			if from += at; from == have {
				from, have = 0, 0
			}
		}
		if err != nil {
			if errors.Is(err, io.EOF) && have > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		switch {
		case large != nil && have == 0 && n < idleSize/2:
			// Most connections are idle most of the time.
			readBuffers.Put(large)
			b, large = small, nil
		case large == nil && (have > idleSize/2 || n > idleSize/2):
			large = readBuffers.Get().(*[readSize]byte)
			have = copy(large[:], b[from:have])
			b, from = large[:], 0
		case len(b)-have < maxFrame && from > 0:
			from, have = 0, copy(b, b[from:have])
		}
	}
}

// handleAll handles the frames that are there, and returns how many bytes they
// were.
func (r *relay) handleAll(e, other *end, b []byte, skip *string, handle func(*frame) error) (at int, err error) {
	if n := min(len(*skip), len(b)); n > 0 {
		if string(b[:n]) != (*skip)[:n] {
			return 0, broken{http2.ErrCodeProtocol, "the connection does not begin with the preface"}
		}
		*skip, at = (*skip)[n:], n
	}
	r.mu.Lock()
	r.active = true
	for {
		f, n, ferr := parseFrame(b[at:])
		if err = ferr; err != nil || n == 0 {
			break
		}
		at += n
		if err = handle(&f); err != nil {
			break
		}
		if err = r.countOut(e); err != nil {
			break
		}
		if err = r.countOut(other); err != nil {
			break
		}
		if e.pending() > flushAt || other != nil && other.pending() > flushAt {
			r.mu.Unlock()
			r.flush(other, false)
			r.flush(e, true)
			r.mu.Lock()
			// What no window holds back must not grow without end while another
			// goroutine sends.
			for e.full() || other != nil && other.full() {
				r.taken.Wait()
			}
		}
	}
	if err == nil {
		err = r.failed
	}
	if err == nil && r.ending {
		err = errOver
	}
	r.mu.Unlock()
	if err != nil || e.flushSoon {
		r.flush(other, false)
		r.flush(e, true)
	}
	return at, err
}
