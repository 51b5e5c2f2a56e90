package h2

import "time"

// budget bounds what costs work and brings none. It is spent by frames, and
// comes back with time and, where frames belong to transfers, with those.
type budget struct {
	left, most int
	rate       int // a second
	at         time.Time
}

// control is what a side may send of SETTINGS, PING, PRIORITY, WINDOW_UPDATE,
// empty DATA and unknown frames, and for streams that are closed.
func control() budget { return budget{left: 10000, most: 10000, rate: 500, at: time.Now()} }

// resets is how many requests a client may cancel, or have refused for their
// form: each has cost the destination work ("rapid reset", CVE-2023-44487).
func resets() budget { return budget{left: 1000, most: 1000, rate: 100, at: time.Now()} }

// spend reports whether there was something left.
func (b *budget) spend() bool {
	if b.left > 0 {
		b.left--
		return true
	}
	now := time.Now()
	more := int(now.Sub(b.at).Seconds() * float64(b.rate))
	if more <= 0 {
		return false
	}
	b.left, b.at = min(more, b.most)-1, now
	return true
}

func (b *budget) earn(n int) { b.left = min(b.left+n, b.most) }
