package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// exchange is a request with an ordinary answer.
func (g *Gateway) exchange(ctx context.Context, w http.ResponseWriter, r *http.Request, t *Target) (int, error) {
	body := bodyOf(w, r)
	defer body.finish(w)
	resp, err := g.roundTrip(g.outgoing(ctx, w, r, t, body), t)
	if err != nil {
		err = exchangeFailure(t, r, body, err)
		body.linger(w, false)
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 599 {
		return 0, responseFailure(t, "answered with a status that is not valid here", nil)
	}
	h := w.Header()
	copyResponseHeader(h, resp.Header, t, r)
	announced := announceTrailers(h, resp.Trailer)
	body.early(w)
	w.WriteHeader(resp.StatusCode)
	if err := relay(w, resp); err != nil {
		// Ending the handler normally would make half an answer look whole.
		g.log.Debug("a proxied answer broke off", "sandbox", t.ID, "port", t.Port, "error", err)
		panic(http.ErrAbortHandler)
	}
	copyTrailers(h, resp.Trailer, announced)
	body.linger(w, true)
	return resp.StatusCode, nil
}

// requestBody passes the client's body on and remembers how it ended. A nil one
// is that of a request without a body.
type requestBody struct {
	r io.ReadCloser
	// alone is set when the client's connection carries one request at a time.
	alone bool
	err   atomic.Pointer[error]
	begun atomic.Bool
	ended atomic.Bool
}

func bodyOf(w http.ResponseWriter, r *http.Request) *requestBody {
	if r.ContentLength == 0 || r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	// The answer may begin while the body is still coming. A writer that does
	// not support this has no such problem.
	_ = http.NewResponseController(w).EnableFullDuplex()
	return &requestBody{r: r.Body, alone: r.ProtoMajor < 2}
}

func (b *requestBody) Read(p []byte) (int, error) {
	b.begun.Store(true)
	n, err := b.r.Read(p)
	if err != nil {
		b.ended.Store(true)
		if !errors.Is(err, io.EOF) {
			b.err.Store(&err)
		}
	}
	return n, err
}

// WriteTo is what the transport calls for a body of unknown length.
func (b *requestBody) WriteTo(w io.Writer) (total int64, err error) {
	write := func(p []byte) error {
		n, err := w.Write(p)
		total += int64(n)
		return err
	}
	small := smallBuffers.Get().(*[smallBuffer]byte)
	full, err := pumpWith(small[:], true, b, write)
	smallBuffers.Put(small)
	if err != nil || !full {
		return total, err
	}
	n, err := copyAhead(w, b)
	return total + n, err
}

// Close is called by the transport when it is done with the body. The body
// itself belongs to net/http's server.
func (b *requestBody) Close() error { return nil }

// failed is the error that ended the body, nil for none.
func (b *requestBody) failed() error {
	if b == nil {
		return nil
	}
	if err := b.err.Load(); err != nil {
		return *err
	}
	return nil
}

// early is called before the answer's header is written. When the sandbox
// answers before it has read everything, the client's connection can't be used
// for another request: what comes next on it is the rest of this one.
func (b *requestBody) early(w http.ResponseWriter) {
	if b != nil && b.alone && !b.ended.Load() {
		w.Header()["Connection"] = []string{"close"}
	}
}

// linger reads on for a while when the answer came before the end of the body.
// Many clients look for the answer only when they have sent everything; were the
// connection closed on them, they would see an error of it and no answer. A body
// that waits for "100 Continue" is not asked for, and one that stops coming has
// a client that has seen the answer.
func (b *requestBody) linger(w http.ResponseWriter, answered bool) {
	if b == nil || b.ended.Load() || !b.begun.Load() {
		return
	}
	b.early(w)
	rc := http.NewResponseController(w)
	if answered && rc.Flush() != nil {
		return
	}
	buf := largeBuffers.Get().(*[largeBuffer]byte)
	defer largeBuffers.Put(buf)
	for end := time.Now().Add(lingerTotal); time.Now().Before(end); {
		if rc.SetReadDeadline(time.Now().Add(lingerIdle)) != nil {
			return
		}
		if _, err := b.Read(buf[:]); err != nil {
			return
		}
	}
}

// Bounds of linger. nginx reads on for up to 30 s, with pauses of up to 5 s; a
// gateway with the client's whole attention needs less.
const (
	lingerTotal = 10 * time.Second
	lingerIdle  = 250 * time.Millisecond
)

// finish makes sure that nobody reads from the body once the handler has
// returned. The transport may still wait for bytes of a client that has no
// reason to send any.
func (b *requestBody) finish(w http.ResponseWriter) {
	if b == nil || b.ended.Load() {
		return
	}
	b.early(w)                                                         // for the error answer, if that is still to come
	_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0)) // wakes a Read that waits
	b.r.Close()
}

// Copy buffers: a stream that is mostly silent holds a small one, and gets a
// large one when it has proved to be fast.
const (
	smallBuffer = 8 << 10
	largeBuffer = 256 << 10
)

var (
	smallBuffers = sync.Pool{New: func() any { return new([smallBuffer]byte) }}
	largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}
)

// relay copies the body of an answer, each piece as soon as it is there.
func relay(w http.ResponseWriter, resp *http.Response) error {
	var flush func() error
	left := resp.ContentLength // below zero when not known
	if left != 0 {
		flush = http.NewResponseController(w).Flush
	}
	if left < 0 {
		// The header is news by itself: an event stream may be silent for long.
		if err := ignoreUnsupported(flush()); err != nil {
			return err
		}
	}
	return pump(resp.Body, func(p []byte) error {
		if _, err := w.Write(p); err != nil {
			return err
		}
		if left > 0 {
			// The last piece is flushed by the end of the request.
			if left -= int64(len(p)); left <= 0 {
				return nil
			}
		}
		return ignoreUnsupported(flush())
	})
}

func ignoreUnsupported(err error) error {
	if errors.Is(err, http.ErrNotSupported) {
		return nil
	}
	return err
}

// pump reads from r until its end and hands each piece to write.
func pump(r io.Reader, write func([]byte) error) error {
	small := smallBuffers.Get().(*[smallBuffer]byte)
	full, err := pumpWith(small[:], true, r, write)
	smallBuffers.Put(small)
	if err != nil || !full {
		return err
	}
	large := largeBuffers.Get().(*[largeBuffer]byte)
	defer largeBuffers.Put(large)
	_, err = pumpWith(large[:], false, r, write)
	return err
}

// pumpWith pumps until the end (full is false) or, with untilFull, until a read
// has filled the buffer.
func pumpWith(buf []byte, untilFull bool, r io.Reader, write func([]byte) error) (full bool, err error) {
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if werr := write(buf[:n]); werr != nil {
				return false, werr
			}
		}
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if untilFull && n == len(buf) {
			return true, nil
		}
	}
}

// announceTrailers declares the trailers that the answer declared, and returns
// how many those are.
func announceTrailers(h http.Header, trailer http.Header) int {
	if len(trailer) == 0 {
		return 0
	}
	names := make([]string, 0, len(trailer))
	for k := range trailer {
		names = append(names, k)
	}
	h["Trailer"] = []string{strings.Join(names, ", ")}
	return len(names)
}

// copyTrailers is called after the body. Trailers beyond the announced ones
// need net/http's prefix.
func copyTrailers(h http.Header, trailer http.Header, announced int) {
	if len(trailer) == announced {
		for k, v := range trailer {
			h[k] = v
		}
		return
	}
	for k, v := range trailer {
		h[http.TrailerPrefix+k] = v
	}
}
