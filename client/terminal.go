package client

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/coder/websocket"
)

var (
	// ErrTakenOver is returned when another client has attached to the same
	// terminal session.
	ErrTakenOver = errors.New("another client has taken this terminal over")
	// ErrTerminalGone is returned when the terminal session was deleted.
	ErrTerminalGone = errors.New("the terminal session was deleted")
)

const (
	// inputPiece bounds one message of input, in bytes.
	inputPiece = 16 << 10
	// defaultReattach is how long a lost connection is tried to be replaced.
	defaultReattach = time.Minute
	// reattachMax is the longest pause between two tries.
	reattachMax = 2 * time.Second
)

// TerminalOptions change how a terminal is attached.
type TerminalOptions struct {
	// Since is the offset of the output to begin with; older output that is
	// still kept comes first.
	Since int64
	// Takeover takes the session from a client that is attached to it.
	Takeover bool
	// Reattach is how long a lost connection may take to come back; zero means
	// a minute, negative means that it is not replaced. The time that a
	// sandbox is paused does not count.
	Reattach time.Duration
	// OnLost is called when the connection was lost and is being replaced, with
	// the reason. OnBack is called when it is back, with the number of bytes of
	// output that are gone for good, usually none. Both are called from the
	// goroutine of Run.
	OnLost func(error)
	OnBack func(missing int64)
}

// Terminal is the client's side of a terminal session. Run shows the output;
// the other methods may be called in parallel with it and with each other.
type Terminal struct {
	c           *Client
	id, session string
	o           TerminalOptions

	// offset is the next byte of output; only Run uses it.
	offset int64

	mu   sync.Mutex
	conn *websocket.Conn // nil while there is none
	// change is closed and replaced when conn or over changes.
	change     chan struct{}
	over       bool
	cols, rows int
}

// AttachPTY connects to a terminal session, whose program starts with its first
// client. The caller calls Run.
func (c *Client) AttachPTY(ctx context.Context, id, sessionID string, o TerminalOptions) (*Terminal, error) {
	if o.Reattach == 0 {
		o.Reattach = defaultReattach
	}
	conn, err := c.dialPTY(ctx, id, sessionID, o.Since, o.Takeover)
	if err != nil {
		return nil, err
	}
	return &Terminal{c: c, id: id, session: sessionID, o: o, offset: o.Since, conn: conn, change: make(chan struct{})}, nil
}

// Run copies the program's output to out and returns when the program has
// ended. A lost connection is replaced, and what was printed meanwhile is shown.
// The error is nil when the program ended, whatever its exit code; a
// *CommandError when it could not be started; ErrTakenOver and ErrTerminalGone;
// and ErrConnectionLost when the connection did not come back. When ctx ends the
// session stays. Run is called once.
func (t *Terminal) Run(ctx context.Context, out io.Writer) (*Result, error) {
	defer t.finish()
	for {
		res, err := t.serve(ctx, out)
		switch {
		case res != nil:
			return res, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case !errors.Is(err, ErrConnectionLost) || t.o.Reattach < 0:
			return nil, err
		}
		if t.o.OnLost != nil {
			t.o.OnLost(err)
		}
		if err := t.reattach(ctx, err); err != nil {
			return nil, err
		}
	}
}

// finish lets go of everything.
func (t *Terminal) finish() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over = true
	if t.conn != nil {
		t.conn.CloseNow()
		t.conn = nil
	}
	close(t.change)
}

// set replaces the connection; nil when it was lost.
func (t *Terminal) set(conn *websocket.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.conn = conn
	close(t.change)
	t.change = make(chan struct{})
}

// serve shows the output of one connection. It returns a result when the program
// has ended, and an error otherwise.
func (t *Terminal) serve(ctx context.Context, out io.Writer) (*Result, error) {
	t.mu.Lock()
	conn := t.conn
	t.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { t.watch(ctx, cancel, conn) })
	res, err := t.read(ctx, conn, out)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	cancel(nil)
	conn.CloseNow()
	wg.Wait()
	if res == nil {
		t.set(nil)
	}
	return res, err
}

func (t *Terminal) read(ctx context.Context, conn *websocket.Conn, out io.Writer) (*Result, error) {
	for {
		kind, message, err := conn.Reader(ctx)
		if err != nil {
			return nil, ptyClosed(err)
		}
		if kind == websocket.MessageBinary {
			if err := t.output(message, out); err != nil {
				return nil, err
			}
			continue
		}
		raw, err := io.ReadAll(message)
		if err != nil {
			return nil, ptyClosed(err)
		}
		var f ptyFrame
		if json.Unmarshal(raw, &f) != nil {
			return nil, errors.New("the sandbox sent a terminal message that is not valid JSON")
		}
		switch f.Type {
		case "exit":
			return t.exited(f), nil
		case "error":
			if err := f.failure(); err != nil {
				return nil, err
			}
		}
	}
}

// output shows one binary message.
func (t *Terminal) output(message io.Reader, out io.Writer) error {
	var head [9]byte
	if _, err := io.ReadFull(message, head[:1]); err != nil {
		if errors.Is(err, io.EOF) {
			return nil // an empty message says nothing
		}
		return ptyClosed(err)
	}
	switch head[0] {
	case ptyStdout, ptyStderr:
	case ptyReplay:
		if _, err := io.ReadFull(message, head[1:]); err != nil {
			return ptyClosed(err)
		}
		at := int64(binary.BigEndian.Uint64(head[1:]))
		if at < 0 {
			return errors.New("the sandbox sent a replay with a negative offset")
		}
		if missing := at - t.offset; missing > 0 && t.o.OnBack != nil {
			t.o.OnBack(missing)
		}
		t.offset = at
	default:
		_, err := io.Copy(io.Discard, message)
		return err
	}
	w := &countingWriter{w: out}
	_, err := io.Copy(w, message)
	t.offset += w.n
	switch {
	case w.err != nil:
		return fmt.Errorf("writing the output: %w", w.err)
	case err != nil:
		return ptyClosed(err)
	}
	return nil
}

// countingWriter tells errors of the writer from those of the reader.
type countingWriter struct {
	w   io.Writer
	n   int64
	err error
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	w.n += int64(n)
	w.err = err
	return n, err
}

func (t *Terminal) exited(f ptyFrame) *Result {
	res := &Result{ID: t.session, ExitCode: -1}
	if f.ExitCode != nil {
		res.ExitCode = *f.ExitCode
	}
	if n, ok := f.Signal.(float64); ok && n > 0 && n < 65 {
		res.Detail = []string{fmt.Sprintf("signal %d", int(n))}
	}
	return res
}

// failure is the error of an error frame that ends the session; nil for one that
// is about a single message.
func (f *ptyFrame) failure() error {
	switch f.Code {
	case "START_FAILED":
		return &CommandError{Name: f.Code, Value: f.Error}
	case "SESSION_GONE":
		return ErrTerminalGone
	case "TAKEN_OVER":
		return ErrTakenOver
	}
	return nil
}

// ptyClosed sorts out why a connection has ended.
func ptyClosed(err error) error {
	switch {
	case websocket.CloseStatus(err) == closeTakenOver:
		return ErrTakenOver
	case errors.Is(err, websocket.ErrMessageTooBig):
		return fmt.Errorf("the sandbox sent a terminal message of more than %d MiB", maxPTYMessage>>20)
	}
	return fmt.Errorf("%w: %w", ErrConnectionLost, err)
}

// watch notices when a connection has died without a word. A sandbox that is
// paused does not answer, and is waited for.
func (t *Terminal) watch(ctx context.Context, cancel context.CancelCauseFunc, conn *websocket.Conn) {
	every := t.c.streamIdle / 2
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		ping, done := context.WithTimeout(ctx, t.c.streamIdle)
		err := conn.Ping(ping)
		done()
		if err == nil || ctx.Err() != nil {
			continue
		}
		running, err := t.c.runs(ctx, t.id)
		if err == nil && running {
			err = fmt.Errorf("%w: no sign of life for %s", ErrConnectionLost, t.c.streamIdle)
		}
		if err != nil {
			cancel(err)
			return
		}
	}
}

// reattach connects anew. It gives up when the sandbox or the session is gone,
// and when time is up.
func (t *Terminal) reattach(ctx context.Context, lost error) error {
	end := time.Now().Add(t.o.Reattach)
	for delay := retryBase; ; delay = min(2*delay, reattachMax) {
		// The server may not have noticed yet that the old connection is dead.
		conn, err := t.c.dialPTY(ctx, t.id, t.session, t.offset, true)
		if err == nil {
			return t.back(ctx, conn)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if IsNotFound(err) || IsUnauthorized(err) || IsInvalid(err) {
			return fmt.Errorf("%w: %w", lost, err)
		}
		waiting := t.paused(ctx)
		now := time.Now()
		if waiting {
			end = now.Add(t.o.Reattach)
		}
		if now.After(end) {
			return fmt.Errorf("%w, and attaching again failed for %s: %w", lost, t.o.Reattach, err)
		}
		timer := time.NewTimer(delay/2 + jitter(delay/2))
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-timer.C:
		}
	}
}

// paused reports whether the sandbox is known to be frozen.
func (t *Terminal) paused(ctx context.Context) bool {
	running, err := t.c.runs(ctx, t.id)
	return err == nil && !running
}

// back puts a new connection into use, with the terminal's present size.
func (t *Terminal) back(ctx context.Context, conn *websocket.Conn) error {
	t.set(conn)
	if t.o.OnBack != nil {
		t.o.OnBack(0)
	}
	t.mu.Lock()
	cols, rows := t.cols, t.rows
	t.mu.Unlock()
	if cols == 0 {
		return nil
	}
	_ = t.Resize(ctx, cols, rows) // a connection that fails is noticed by its reader
	return nil
}

// Write sends input to the program, as typed. While the connection is lost it
// waits. What was sent just before the loss may not have arrived.
func (t *Terminal) Write(ctx context.Context, p []byte) error {
	message := make([]byte, 0, 1+min(len(p), inputPiece))
	for len(p) > 0 {
		n := min(len(p), inputPiece)
		message = append(append(message[:0], ptyStdin), p[:n]...)
		if err := t.send(ctx, websocket.MessageBinary, message); err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// Resize tells the program the terminal's size. The last one is repeated when a
// connection is replaced.
func (t *Terminal) Resize(ctx context.Context, cols, rows int) error {
	if cols < 1 || rows < 1 || cols > 1<<16-1 || rows > 1<<16-1 {
		return fmt.Errorf("a terminal of %d columns and %d rows: each must be from 1 to 65535", cols, rows)
	}
	t.mu.Lock()
	t.cols, t.rows = cols, rows
	t.mu.Unlock()
	return t.send(ctx, websocket.MessageText, encodeFrame(ptyFrame{Type: "resize", Cols: cols, Rows: rows}))
}

// Signal sends a signal to the program: SIGINT, SIGTERM, SIGKILL, SIGQUIT or
// SIGHUP.
func (t *Terminal) Signal(ctx context.Context, name string) error {
	return t.send(ctx, websocket.MessageText, encodeFrame(ptyFrame{Type: "signal", Signal: name}))
}

// send sends one message, and waits for a connection when there is none.
func (t *Terminal) send(ctx context.Context, kind websocket.MessageType, message []byte) error {
	var failed *websocket.Conn
	for {
		t.mu.Lock()
		conn, change, over := t.conn, t.change, t.over
		t.mu.Unlock()
		switch {
		case over:
			return io.ErrClosedPipe
		case conn == nil || conn == failed:
			select {
			case <-change:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			continue
		}
		if conn.Write(ctx, kind, message) == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// Its reader fails as well, and replaces it.
		failed = conn
	}
}
