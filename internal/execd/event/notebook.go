package event

import (
	"bytes"
	"encoding/json"
	"slices"
	"unicode/utf8"
)

// Status sends the state of a kernel, "busy" or "idle".
func (s *Stream) Status(state string) {
	s.between(func(b []byte) []byte { return appendText(b, "status", state, now()) })
}

// Count sends the number of an execution within its context.
func (s *Stream) Count(n int64) {
	s.between(func(b []byte) []byte {
		b = append(b, `data: {"type":"execution_count","execution_count":`...)
		return appendEnd(appendInt(b, n), now())
	})
}

// Result sends one value in all its representations. The keys of bundle are
// MIME types, and the values are valid JSON: strings for most, binary data in
// base64 among them, and any value for types that are JSON themselves.
func (s *Stream) Result(bundle map[string]json.RawMessage) {
	s.between(func(b []byte) []byte {
		b = append(b, `data: {"type":"result","results":`...)
		return appendEnd(appendBundle(b, bundle), now())
	})
}

// between sends an event that is not output after all output so far, an
// unfinished line included: what was printed first is seen first.
func (s *Stream) between(encode func([]byte) []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.finished || s.broken {
		return
	}
	if len(s.out[0].pending)+len(s.out[1].pending) > 0 {
		s.emit(func(emit [2]emitter) {
			s.out[0].end(emit[0])
			s.out[1].end(emit[1])
		})
	}
	s.write(encode)
}

// plainText has a member of its own in the contract (OpenSandbox execd API).
const plainText = "text/plain"

func appendBundle(b []byte, bundle map[string]json.RawMessage) []byte {
	kinds := make([]string, 0, len(bundle))
	for kind := range bundle {
		kinds = append(kinds, kind)
	}
	// Plain text first, and the rest in an order that does not change.
	slices.SortFunc(kinds, func(x, y string) int {
		switch {
		case x == y:
			return 0
		case x == plainText || y != plainText && x < y:
			return -1
		}
		return 1
	})
	b = append(b, '{')
	for i, kind := range kinds {
		if i > 0 {
			b = append(b, ',')
		}
		name := kind
		if kind == plainText {
			name = "text"
		}
		b = append(appendString(b, []byte(name)), ':')
		b = appendValue(b, bundle[kind])
	}
	return append(b, '}')
}

// appendValue adds valid JSON on one line. What is not ASCII can only be inside
// of strings, where it is escaped as appendString does.
func appendValue(b []byte, value json.RawMessage) []byte {
	var text string
	if len(value) > 0 && value[0] == '"' && json.Unmarshal(value, &text) == nil {
		return appendString(b, []byte(text))
	}
	var one bytes.Buffer
	if json.Compact(&one, value) != nil {
		return append(b, "null"...)
	}
	rest := one.Bytes()
	for len(rest) > 0 {
		if rest[0] < utf8.RuneSelf {
			b, rest = append(b, rest[0]), rest[1:]
			continue
		}
		r, size := utf8.DecodeRune(rest)
		switch {
		case r == utf8.RuneError && size == 1:
			b = append(b, `\ufffd`...)
		case r < 0xa0 || r == 0x2028 || r == 0x2029:
			b = append(b, '\\', 'u', hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
		default:
			b = append(b, rest[:size]...)
		}
		rest = rest[size:]
	}
	return b
}
