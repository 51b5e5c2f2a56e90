package intercept

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
)

// firstRead is how much a replacer reads at first, in bytes.
const firstRead = 4 << 10

// change is a pattern and what stands in its place.
type change struct{ from, to []byte }

// replacer replaces patterns in a stream. It holds back only what may be the
// beginning of a pattern. At each place the first pattern that fits in the
// order of the changes is taken, and what was put in is not looked at again.
type replacer struct {
	from    io.Reader
	changes []change
	// first says which bytes begin a pattern.
	first   [256]bool
	longest int
	nextAt  []int  // of each change, see work
	hit     func() // called for each that was replaced; may be nil

	in   []byte // read, and not yet looked at
	out  []byte // done, and not yet taken; in buf
	buf  []byte
	err  error
	size int // of the next read; most bodies are small
}

func newReplacer(from io.Reader, changes []change) *replacer {
	r := &replacer{from: from, changes: changes, size: firstRead, nextAt: make([]int, len(changes))}
	for _, c := range changes {
		r.first[c.from[0]] = true
		r.longest = max(r.longest, len(c.from))
	}
	return r
}

// masking are changes that put as many stars in the place of each form, so that
// lengths stay what they were. Longer forms go first: they contain shorter ones.
func masking(forms []string) []change {
	changes := make([]change, 0, len(forms))
	for _, f := range forms {
		changes = append(changes, change{[]byte(f), bytes.Repeat([]byte("*"), len(f))})
	}
	slices.SortStableFunc(changes, func(a, b change) int { return len(b.from) - len(a.from) })
	return changes
}

// Read implements io.Reader.
func (r *replacer) Read(b []byte) (int, error) {
	for len(r.out) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		r.in = slices.Grow(r.in, r.size)
		n, err := r.from.Read(r.in[len(r.in) : len(r.in)+r.size])
		r.in = r.in[:len(r.in)+n]
		r.err = err
		if n == r.size {
			r.size = min(2*r.size, copySize)
		}
		r.work(err != nil)
		if len(r.out) == 0 && err == nil && n == 0 {
			return 0, nil // as the reader below: nothing yet
		}
	}
	n := copy(b, r.out)
	r.out = r.out[n:]
	return n, nil
}

// work looks at what was read. At the end nothing is held back. Where each
// pattern comes next is looked up once and kept until the work has passed it, so
// that the time is linear in what was read, whatever it is.
func (r *replacer) work(end bool) {
	r.out = r.buf[:0]
	defer func() { r.buf = r.out[:0] }()
	hold, holder := len(r.in), len(r.changes)
	if !end {
		hold, holder = r.partial()
	}
	for i := range r.nextAt {
		r.nextAt[i] = -1
	}
	at := 0
	for at < len(r.in) {
		hit, where := -1, len(r.in)
		for i := range r.changes {
			if r.nextAt[i] < at {
				r.nextAt[i] = len(r.in)
				if n := bytes.Index(r.in[at:], r.changes[i].from); n >= 0 {
					r.nextAt[i] = at + n
				}
			}
			if r.nextAt[i] < where {
				hit, where = i, r.nextAt[i]
			}
		}
		if at <= hold && (hold < where || hold == where && holder < hit) {
			r.out = append(r.out, r.in[at:hold]...)
			at = hold
			break
		}
		r.out = append(r.out, r.in[at:where]...)
		if at = where; hit >= 0 {
			r.out = append(r.out, r.changes[hit].to...)
			at += len(r.changes[hit].from)
			if r.hit != nil {
				r.hit()
			}
		}
		if hold < at && !end {
			// What was replaced reached into it; there may be another one.
			hold, holder = r.partialFrom(at)
		}
	}
	r.in = append(r.in[:0], r.in[at:]...)
}

// partial finds the first place near the end where a pattern may begin that is
// not there as a whole, and which pattern that is.
func (r *replacer) partial() (at, which int) {
	return r.partialFrom(max(0, len(r.in)-r.longest+1))
}

func (r *replacer) partialFrom(from int) (at, which int) {
	for at := from; at < len(r.in); at++ {
		if !r.first[r.in[at]] {
			continue
		}
		rest := r.in[at:]
		for i := range r.changes {
			if len(rest) < len(r.changes[i].from) && bytes.HasPrefix(r.changes[i].from, rest) {
				return at, i
			}
		}
	}
	return len(r.in), len(r.changes)
}

// replaceAll is a replacer for what is there as a whole. The result's length is
// bounded.
func replaceAll(b []byte, changes []change, most int) ([]byte, error) {
	out, err := io.ReadAll(io.LimitReader(newReplacer(bytes.NewReader(b), changes), int64(most)+1))
	if err == nil && len(out) > most {
		err = errors.New("too long")
	}
	return out, err
}

// mask masks forms in a value of a head.
func mask(value string, changes []change) string {
	for _, c := range changes {
		if strings.Contains(value, string(c.from)) {
			value = strings.ReplaceAll(value, string(c.from), string(c.to))
		}
	}
	return value
}
