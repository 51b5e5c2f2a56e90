package mcp

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

const (
	// defaultOutput bounds each of stdout and stderr of a command in an answer,
	// in bytes; minOutput and maxOutput are what a caller may choose.
	defaultOutput = 64 << 10
	minOutput     = 1 << 10
	maxOutput     = 256 << 10
)

// excerpt keeps the beginning and the end of what is written to it, half of its
// limit each. Memory is bounded by about its limit.
type excerpt struct {
	limit int
	total int64
	head  []byte
	// tail is a ring: the oldest byte is at next when it is full.
	tail []byte
	next int
}

func newExcerpt(limit int) *excerpt { return &excerpt{limit: limit} }

// Write never fails.
func (e *excerpt) Write(p []byte) (int, error) {
	n := len(p)
	e.total += int64(n)
	if room := e.limit - e.limit/2 - len(e.head); room > 0 {
		k := min(room, len(p))
		e.head = append(e.head, p[:k]...)
		p = p[k:]
	}
	size := e.limit / 2
	if len(p) > size {
		p = p[len(p)-size:]
	}
	if room := size - len(e.tail); room > 0 {
		k := min(room, len(p))
		e.tail = append(e.tail, p[:k]...)
		p = p[k:]
	}
	for len(p) > 0 {
		k := copy(e.tail[e.next:], p)
		e.next = (e.next + k) % len(e.tail)
		p = p[k:]
	}
	return n, nil
}

// cut is how many bytes are not kept.
func (e *excerpt) cut() int64 { return e.total - int64(len(e.head)+len(e.tail)) }

// String is what is kept, as valid UTF-8, with a note in place of what was cut.
func (e *excerpt) String() string {
	tail := append(append([]byte{}, e.tail[e.next:]...), e.tail[:e.next]...)
	if e.cut() == 0 {
		return valid(append(append([]byte{}, e.head...), tail...))
	}
	return fmt.Sprintf("%s\n[… %d bytes cut here …]\n%s", valid(wholeEnd(e.head)), e.cut(), valid(wholeStart(tail)))
}

// valid replaces what is no UTF-8.
func valid(b []byte) string { return string(bytes.ToValidUTF8(b, []byte("\uFFFD"))) }

// wholeEnd drops a character that was cut at the end.
func wholeEnd(b []byte) []byte {
	for i := 1; i < utf8.UTFMax && i <= len(b); i++ {
		if c := b[len(b)-i]; utf8.RuneStart(c) {
			if c >= utf8.RuneSelf && !utf8.FullRune(b[len(b)-i:]) {
				return b[:len(b)-i]
			}
			break
		}
	}
	return b
}

// wholeStart drops the rest of a character that was cut at the beginning.
func wholeStart(b []byte) []byte {
	i := 0
	for i < utf8.UTFMax-1 && i < len(b) && !utf8.RuneStart(b[i]) {
		i++
	}
	return b[i:]
}

// section adds a stream's output under a heading, unless there was none.
func section(b *strings.Builder, name string, e *excerpt) {
	if e.total == 0 {
		return
	}
	fmt.Fprintf(b, "--- %s ---\n", name)
	text := e.String()
	b.WriteString(text)
	if !strings.HasSuffix(text, "\n") {
		b.WriteByte('\n')
	}
}

// stripEscapes removes what a terminal would act on, such as the colours of a
// traceback (ECMA-48, control sequences).
func stripEscapes(s string) string {
	if !strings.Contains(s, "\x1b[") {
		return s
	}
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(s, "\x1b[")
		b.WriteString(before)
		if !found {
			return b.String()
		}
		end := strings.IndexFunc(rest, func(r rune) bool { return r >= 0x40 && r <= 0x7e })
		if end < 0 {
			return b.String()
		}
		s = rest[end+1:]
	}
}
