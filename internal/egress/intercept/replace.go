package intercept

import (
	"bytes"
	"io"
	"slices"
	"strings"
)

// change is a pattern and what stands in its place.
type change struct{ from, to []byte }

// patterns are changes that are looked for together. They never change, and may
// be used by many replacers.
type patterns struct {
	changes []change
	// first says which bytes begin a pattern.
	first   [256]bool
	longest int
	// step is how much may be read at a time such that about pieceSize bytes come
	// out at most.
	step int
}

const (
	// pieceSize is how much may come out of a body at a time, however much
	// longer its changes make it; in bytes.
	pieceSize = 64 << 10
	// readStep and minStep bound what is read for that.
	readStep, minStep = 4 << 10, 16
	// maxKept is the longest buffer that a replacer keeps between two parts.
	maxKept = 64 << 10
)

func newPatterns(changes []change) *patterns {
	p := &patterns{changes: changes, step: readStep}
	for _, c := range changes {
		p.first[c.from[0]] = true
		p.longest = max(p.longest, len(c.from))
		if len(c.to) > len(c.from) {
			p.step = max(minStep, min(p.step, pieceSize*len(c.from)/len(c.to)))
		}
	}
	return p
}

// replacer replaces patterns in a stream. It holds back only what may be the
// beginning of a pattern. At each place the first pattern that fits in the
// order of the changes is taken, and what was put in is not looked at again.
type replacer struct {
	*patterns
	nextAt []int  // of each change, see replace
	hit    func() // called for each that was replaced; may be nil
	rest   []byte // held back
	joined []byte // what was held back, and what came then
	out    []byte
	// most bounds what is to stand in the place of one part, in bytes, when it is
	// not 0. Once that is not enough over is set, and nothing comes out any more.
	most int
	over bool
}

func (p *patterns) replacer(hit func()) *replacer {
	return &replacer{patterns: p, nextAt: make([]int, len(p.changes)), hit: hit}
}

// replace returns what is to stand in the place of the next part of the stream.
// It is valid until the next call, and may be b itself. At the end nothing is
// held back. Where each pattern comes next is looked up once and kept until the
// work has passed it, so that the time is linear in what was read, whatever it
// is.
func (r *replacer) replace(b []byte, end bool) []byte {
	if r.over {
		return nil
	}
	if len(r.rest) > 0 {
		r.joined = append(append(r.joined[:0], r.rest...), b...)
		b = r.joined
	}
	hold, holder := len(b), len(r.changes)
	if !end {
		hold, holder = r.partial(b, max(0, len(b)-r.longest+1))
	}
	for i := range r.nextAt {
		r.nextAt[i] = -1
	}
	out, at, copied := r.out[:0], 0, false
	for at < len(b) {
		hit, where := -1, len(b)
		for i := range r.changes {
			if r.nextAt[i] < at {
				r.nextAt[i] = len(b)
				if n := bytes.Index(b[at:], r.changes[i].from); n >= 0 {
					r.nextAt[i] = at + n
				}
			}
			if r.nextAt[i] < where {
				hit, where = i, r.nextAt[i]
			}
		}
		stop := at <= hold && (hold < where || hold == where && holder < hit)
		if stop {
			where = hold
		}
		if !copied && (stop || hit < 0) {
			// The usual case: nothing is to be replaced.
			r.rest = append(r.rest[:0], b[where:]...)
			return b[:where]
		}
		out = append(out, b[at:where]...)
		if at = where; stop {
			break
		}
		if hit >= 0 {
			copied = true
			if to := r.changes[hit].to; r.most > 0 && len(out)+len(to) > r.most {
				r.over, r.rest, r.joined, r.out = true, nil, nil, nil
				return nil
			}
			out = append(out, r.changes[hit].to...)
			at += len(r.changes[hit].from)
			if r.hit != nil {
				r.hit()
			}
		}
		if hold < at && !end {
			// What was replaced reached into it; there may be another one.
			hold, holder = r.partial(b, at)
		}
	}
	r.rest = append(r.rest[:0], b[at:]...)
	if r.out = out; cap(out) > maxKept {
		r.out = nil // a stream may live long
	}
	return out
}

// partial finds the first place from there on where a pattern may begin that is
// not there as a whole, and which pattern that is.
func (p *patterns) partial(b []byte, from int) (at, which int) {
	for at := from; at < len(b); at++ {
		if !p.first[b[at]] {
			continue
		}
		rest := b[at:]
		for i := range p.changes {
			if len(rest) < len(p.changes[i].from) && bytes.HasPrefix(p.changes[i].from, rest) {
				return at, i
			}
		}
	}
	return len(b), len(p.changes)
}

// replacing replaces in what is read. It reads no more at a time than can't
// become much.
type replacing struct {
	from io.Reader
	r    *replacer
	in   []byte
	out  []byte // done, and not yet taken
	err  error
}

// Read implements io.Reader.
func (r *replacing) Read(b []byte) (int, error) {
	for len(r.out) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		if r.in == nil {
			r.in = make([]byte, r.r.step)
		}
		var n int
		n, r.err = r.from.Read(r.in)
		r.out = r.r.replace(r.in[:n], r.err != nil)
		if len(r.out) == 0 && r.err == nil && n == 0 {
			return 0, nil // as the reader below: nothing yet
		}
	}
	n := copy(b, r.out)
	if r.out = r.out[n:]; len(r.out) == 0 {
		r.out = nil
	}
	return n, nil
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

// mask masks forms in a value of a head.
func mask(value string, changes []change) string {
	for _, c := range changes {
		if strings.Contains(value, string(c.from)) {
			value = strings.ReplaceAll(value, string(c.from), string(c.to))
		}
	}
	return value
}
