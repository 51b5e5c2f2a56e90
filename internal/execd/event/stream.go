package event

import (
	"encoding/json"
	"net/http"
	"sync"
	"time"
)

// Output kinds.
const (
	Stdout = "stdout"
	Stderr = "stderr"
)

// Names of an error event (OpenSandbox execd API).
const ExecError = "CommandExecError"

const (
	// pingEvery is the contract's interval of pings (OpenSandbox execd API).
	pingEvery = 3 * time.Second
	// writeTimeout is how long a client may accept no byte before it counts as
	// gone.
	writeTimeout = 5 * time.Minute
	// progressPause, shortPause and longPause: see the package comment.
	progressPause = 20 * time.Millisecond
	shortPause    = 200 * time.Millisecond
	longPause     = 2 * time.Second
	// shortTail is up to what length an unfinished line looks like a prompt.
	shortTail = 1024
	// flushSize bounds how much is encoded before it is written.
	flushSize = 64 << 10
)

// buffers for encoding are shared: a silent stream has none.
var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// Stream is one answer. Its methods may be called in parallel. The order of
// calls is the order of events. After the client has gone every method returns
// at once.
type Stream struct {
	mu       sync.Mutex
	w        http.ResponseWriter
	ctl      *http.ResponseController
	out      [2]lines
	fed      [2]time.Time
	pause    *time.Timer
	ping     *time.Timer
	finished bool
	broken   bool
	gone     chan struct{}
}

// Open answers 200 with an event stream and sends init, whose text is id.
func Open(w http.ResponseWriter, id string) *Stream {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-cache")
	h.Set("Connection", "keep-alive")
	h.Set("X-Accel-Buffering", "no")
	s := &Stream{w: w, ctl: http.NewResponseController(w), gone: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	// The contract's first ping comes at once.
	s.write(func(b []byte) []byte { return appendText(appendText(b, "init", id, now()), "ping", "pong", now()) })
	s.ping = time.AfterFunc(pingEvery, s.sendPing)
	return s
}

func now() int64 { return time.Now().UnixMilli() }

// write encodes events and flushes them. mu is held.
func (s *Stream) write(encode func([]byte) []byte) {
	if s.finished || s.broken {
		return
	}
	buf := buffers.Get().(*[]byte)
	*buf = encode((*buf)[:0])
	s.send(*buf, true)
	if cap(*buf) <= 2*flushSize {
		buffers.Put(buf)
	}
}

func (s *Stream) send(b []byte, flush bool) {
	if s.broken {
		return
	}
	// A server without deadlines, as in some tests, is no reason to fail.
	_ = s.ctl.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := s.w.Write(b)
	if err == nil && flush {
		err = s.ctl.Flush()
	}
	if err != nil {
		s.fail()
	}
}

// fail marks the client as gone. mu is held.
func (s *Stream) fail() {
	if !s.broken {
		s.broken = true
		close(s.gone)
	}
}

// Gone is closed when the client could not be written to, or accepted nothing
// for too long.
func (s *Stream) Gone() <-chan struct{} { return s.gone }

func (s *Stream) sendPing() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished || s.broken {
		return
	}
	s.write(func(b []byte) []byte { return appendText(b, "ping", "pong", now()) })
	s.ping.Reset(pingEvery)
}

// Output sends output of a kind, Stdout or Stderr.
func (s *Stream) Output(kind string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := which(kind)
	if s.finished || s.broken {
		return
	}
	s.emit(func(emit [2]emitter) { s.out[i].feed(data, emit[i]) })
	if len(s.out[i].pending) > 0 {
		s.fed[i] = time.Now()
		s.schedule()
	}
}

func which(kind string) int {
	if kind == Stderr {
		return 1
	}
	return 0
}

type emitter = func(text, eol []byte)

// emit runs f with functions that encode output events, and writes them.
func (s *Stream) emit(f func(emit [2]emitter)) {
	buf := buffers.Get().(*[]byte)
	b := (*buf)[:0]
	end := appendEnd(nil, now())
	sent := false
	encode := func(kind string) emitter {
		return func(text, eol []byte) {
			b = appendOutput(b, kind, text, eol, end)
			if len(b) >= flushSize {
				s.send(b, false)
				b, sent = b[:0], true
			}
		}
	}
	f([2]emitter{encode(Stdout), encode(Stderr)})
	if len(b) > 0 || sent {
		s.send(b, true)
	}
	if cap(b) <= 2*flushSize {
		*buf = b
		buffers.Put(buf)
	}
}

// schedule arms the timer that sends unfinished lines.
func (s *Stream) schedule() {
	if s.pause == nil {
		s.pause = time.AfterFunc(progressPause, s.paused)
		return
	}
	s.pause.Reset(progressPause)
}

// paused sends what may be sent of unfinished lines.
func (s *Stream) paused() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished || s.broken {
		return
	}
	next := time.Duration(0)
	s.emit(func(emit [2]emitter) {
		for i := range s.out {
			l := &s.out[i]
			quiet := time.Since(s.fed[i])
			if len(l.pending) == 0 {
				continue
			}
			if quiet >= progressPause {
				l.flushProgress(emit[i])
			}
			wait := shortPause
			if len(l.pending) > shortTail {
				wait = longPause
			}
			if quiet >= wait {
				l.flush(emit[i])
			} else if left := wait - quiet; next == 0 || left < next {
				next = left
			}
		}
	})
	if next > 0 {
		s.pause.Reset(next)
	}
}

// Complete ends the stream of a successful run.
func (s *Stream) Complete(took time.Duration) {
	s.finish(func(b []byte) []byte {
		b = append(b, `data: {"type":"execution_complete","execution_time":`...)
		b = appendInt(b, took.Milliseconds())
		return appendEnd(b, now())
	})
}

// Error ends the stream of a failed run.
func (s *Stream) Error(name, value string, traceback ...string) {
	if traceback == nil {
		traceback = []string{}
	}
	s.finish(func(b []byte) []byte {
		b = append(b, `data: {"type":"error","error":{"ename":`...)
		b = appendString(b, []byte(name))
		b = append(b, `,"evalue":`...)
		b = appendString(b, []byte(value))
		b = append(b, `,"traceback":`...)
		// A slice of strings always encodes.
		tb, _ := json.Marshal(traceback)
		b = append(append(b, tb...), '}')
		return appendEnd(b, now())
	})
}

// finish sends the rest of the output and the terminal event. The second
// terminal event, if somebody sends one, is dropped.
func (s *Stream) finish(encode func([]byte) []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished {
		return
	}
	if s.pause != nil {
		s.pause.Stop()
	}
	s.ping.Stop()
	if len(s.out[0].pending)+len(s.out[1].pending) > 0 && !s.broken {
		s.emit(func(emit [2]emitter) {
			s.out[0].end(emit[0])
			s.out[1].end(emit[1])
		})
	}
	s.out[0].release()
	s.out[1].release()
	s.write(encode)
	s.finished = true
	// A daemon that the command left behind may hold on to the stream for ever;
	// the connection and its buffers are not to go with it.
	s.w, s.ctl = nil, nil
}

// Close ends the stream without a terminal event, for a client that has gone.
// Nothing is written to the ResponseWriter after it returned.
func (s *Stream) Close() {
	s.mu.Lock()
	s.fail()
	s.mu.Unlock()
	s.finish(func(b []byte) []byte { return b })
}
