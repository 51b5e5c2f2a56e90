package entrylog

import (
	"bytes"
	"time"
)

// maxLine bounds a line with a timestamp, in bytes: a longer one is continued
// on the next line, with a timestamp of its own.
const maxLine = 64 << 10

// timeFormat is RFC 3339 with all nanosecond digits, so that columns align.
const timeFormat = "2006-01-02T15:04:05.000000000Z07:00"

// renderer turns records into text. Without timestamps that is the very bytes,
// in order; with them whole lines.
type renderer struct {
	out        *bytes.Buffer
	timestamps bool
	open       [2]line
}

// line is one that has begun but not ended.
type line struct {
	began time.Time
	text  []byte
}

// record renders one record, leaving out lines while skip is above 0. It
// returns what is left of skip.
func (r *renderer) record(rec record, skip int) int {
	data := rec.data
	if rec.stream == lost {
		data = notice(data)
	}
	if r.timestamps {
		return r.lines(rec, data, skip)
	}
	for skip > 0 {
		i := bytes.IndexByte(data, '\n')
		if i < 0 {
			return skip
		}
		data = data[i+1:]
		skip--
	}
	r.out.Write(data)
	return 0
}

func (r *renderer) lines(rec record, data []byte, skip int) int {
	open := &r.open[index(rec.stream)]
	for len(data) > 0 {
		if len(open.text) == 0 {
			open.began = rec.time
		}
		n := min(len(data), maxLine-len(open.text))
		if i := bytes.IndexByte(data[:n], '\n'); i >= 0 {
			n = i + 1
		}
		open.text = append(open.text, data[:n]...)
		data = data[n:]
		if len(open.text) == maxLine || open.text[len(open.text)-1] == '\n' {
			skip = r.line(open, skip)
		}
	}
	return skip
}

// line writes a finished line and empties it.
func (r *renderer) line(l *line, skip int) int {
	if skip > 0 {
		skip--
	} else {
		r.out.Write(l.began.UTC().AppendFormat(r.out.AvailableBuffer(), timeFormat))
		r.out.WriteByte(' ')
		r.out.Write(l.text)
		if l.text[len(l.text)-1] != '\n' {
			r.out.WriteByte('\n')
		}
	}
	l.text = l.text[:0]
	return skip
}

// flush renders lines that never ended, the one that began first first.
func (r *renderer) flush(skip int) {
	first, second := &r.open[0], &r.open[1]
	if second.began.Before(first.began) {
		first, second = second, first
	}
	for _, l := range []*line{first, second} {
		if len(l.text) > 0 {
			skip = r.line(l, skip)
		}
	}
}

// index maps a stream to its line; a notice counts as stderr.
func index(s Stream) int {
	if s == Stdout {
		return 0
	}
	return 1
}

// lineCounter counts lines as renderer makes them.
type lineCounter struct {
	n int
	// open are the lengths of unfinished lines; without timestamps there is
	// one sequence of lines for both streams.
	open [2]int
}

func (c *lineCounter) add(rec record, timestamps bool) {
	data := rec.data
	if rec.stream == lost {
		data = notice(data)
	}
	open := &c.open[0]
	if timestamps {
		open = &c.open[index(rec.stream)]
	}
	for len(data) > 0 {
		n := len(data)
		if timestamps {
			n = min(n, maxLine-*open)
		}
		ended := false
		if i := bytes.IndexByte(data[:n], '\n'); i >= 0 {
			n, ended = i+1, true
		}
		*open += n
		data = data[n:]
		if ended || timestamps && *open == maxLine {
			c.n++
			*open = 0
		}
	}
}

func (c *lineCounter) lines() int {
	n := c.n
	for _, open := range c.open {
		if open > 0 {
			n++
		}
	}
	return n
}
