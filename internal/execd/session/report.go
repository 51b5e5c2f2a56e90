package session

import (
	"bytes"
	"strconv"
	"sync/atomic"
)

// Limits of a report, in bytes. What is larger is not kept: the session goes on
// from an older state if it has to.
const (
	// maxField bounds everything but the state. Linux paths end at 4,096.
	maxField = 64 << 10
	// maxState bounds the state of one shell.
	maxState = 1 << 20
	// maxStates bounds the states of all sessions, which are held in memory.
	maxStates = 16 << 20
)

// result is what a shell reports after a run.
type result struct {
	// serial is that of the run, so that a late report is not taken for the
	// one of the next run.
	serial uint64
	code   string
	// cwd is empty when it is not known.
	cwd string
}

// reportReader takes apart what a shell reports after each run: serial, exit
// code, directory and state, each ended by a NUL byte.
type reportReader struct {
	result func(result)
	state  func(serial uint64, text string)

	field    []byte
	tooLong  bool
	position int
	current  result
}

// reportFields is the number of fields in a report.
const reportFields = 4

func (r *reportReader) read(b []byte) {
	for len(b) > 0 {
		part, rest, ended := bytes.Cut(b, []byte{0})
		limit := maxField
		if r.position == reportFields-1 {
			limit = maxState
		}
		if len(r.field)+len(part) > limit {
			r.tooLong, r.field = true, nil
		}
		if !r.tooLong {
			r.field = append(r.field, part...)
		}
		b = rest
		if ended {
			r.end()
		}
	}
}

// end takes a finished field. One that was too long counts as empty.
func (r *reportReader) end() {
	text := string(r.field)
	r.field, r.tooLong = r.field[:0], false
	if cap(r.field) > maxField {
		r.field = nil
	}
	switch r.position {
	case 0:
		// What is no number is no run's serial.
		r.current.serial, _ = strconv.ParseUint(text, 10, 64)
	case 1:
		r.current.code = text
	case 2:
		r.current.cwd = text
		r.result(r.current)
	case 3:
		r.state(r.current.serial, text)
	}
	r.position = (r.position + 1) % reportFields
}

// budget bounds the memory of states.
type budget struct{ used atomic.Int64 }

// replace accounts for a state that takes the place of another. It is false,
// and changes nothing, when there is no room.
func (b *budget) replace(before, after int) bool {
	more := int64(after - before)
	if b.used.Add(more) > maxStates && more > 0 {
		b.used.Add(-more)
		return false
	}
	return true
}
