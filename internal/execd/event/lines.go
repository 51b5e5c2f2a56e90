package event

import (
	"bytes"
	"sync/atomic"
	"unicode/utf8"
)

const (
	// maxLine is the longest text of one event, in bytes. Escaped it stays
	// under 4 MiB, the line limit of the Go SDK, for all but control
	// characters.
	maxLine = 1 << 20
	// minLine is how much every stream may always hold back.
	minLine = 64 << 10
	// maxHeld bounds what all streams together hold back beyond that.
	maxHeld = 32 << 20
)

var lf, crlf = []byte("\n"), []byte("\r\n")

// held is the memory used by long unfinished lines in all streams.
var held atomic.Int64

// lines cuts a stream of bytes into lines.
type lines struct {
	pending []byte
	// charged is this stream's part of held.
	charged int64
}

// feed gives each finished line to emit, without its terminator. The slices are
// valid during the call only.
func (l *lines) feed(data []byte, emit func(text, eol []byte)) {
	for {
		i := bytes.IndexByte(data, '\n')
		if i < 0 {
			break
		}
		line := data[:i]
		if len(l.pending) > 0 || len(line) > maxLine {
			l.hold(line, emit)
			line = l.pending
		}
		if n := len(line); n > 0 && line[n-1] == '\r' {
			emit(line[:n-1], crlf)
		} else {
			emit(line, lf)
		}
		l.release()
		data = data[i+1:]
	}
	l.hold(data, emit)
}

// hold adds to the unfinished line and sends it in parts when it is too long.
func (l *lines) hold(data []byte, emit func(text, eol []byte)) {
	for len(data) > 0 {
		if room := maxLine - len(l.pending); room > 0 && l.charge(len(l.pending)+min(room, len(data))) {
			n := min(room, len(data))
			l.pending = append(l.pending, data[:n]...)
			data = data[n:]
			continue
		}
		if room := minLine - len(l.pending); room > 0 {
			n := min(room, len(data))
			l.pending = append(l.pending, data[:n]...)
			data = data[n:]
			continue
		}
		l.send(len(l.pending)-partialRune(l.pending), emit)
	}
}

// charge accounts for a pending line of that size; false when there is no room.
func (l *lines) charge(size int) bool {
	if size <= minLine {
		return true
	}
	more := int64(size-minLine) - l.charged
	if more <= 0 {
		return true
	}
	if held.Add(more) > maxHeld {
		held.Add(-more)
		return false
	}
	l.charged += more
	return true
}

// release empties the unfinished line, and gives back the memory of a long one.
func (l *lines) release() {
	held.Add(-l.charged)
	l.charged = 0
	if cap(l.pending) > minLine {
		l.pending = nil
	}
	l.pending = l.pending[:0]
}

// send emits the first n pending bytes as text without a line end.
func (l *lines) send(n int, emit func(text, eol []byte)) {
	if n == 0 {
		return
	}
	emit(l.pending[:n], nil)
	rest := append([]byte(nil), l.pending[n:]...)
	l.release()
	l.pending = append(l.pending, rest...)
}

// flushProgress sends what ends with the last carriage return.
func (l *lines) flushProgress(emit func(text, eol []byte)) {
	// Not when it is the last byte: it may be half of a "\r\n".
	n := len(l.pending)
	if n > 0 {
		l.send(bytes.LastIndexByte(l.pending[:n-1], '\r')+1, emit)
	}
}

// flush sends all that is pending but an unfinished UTF-8 sequence.
func (l *lines) flush(emit func(text, eol []byte)) {
	l.send(len(l.pending)-partialRune(l.pending), emit)
}

// end sends the rest.
func (l *lines) end(emit func(text, eol []byte)) {
	l.send(len(l.pending), emit)
	l.release()
}

// partialRune returns how many bytes at the end of b begin a UTF-8 sequence
// that more bytes could complete.
func partialRune(b []byte) int {
	for n := 1; n <= 3 && n <= len(b); n++ {
		tail := b[len(b)-n:]
		if utf8.RuneStart(tail[0]) {
			if !utf8.FullRune(tail) && n < len(b) {
				return n
			}
			return 0
		}
	}
	return 0
}
