package sandbox

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Denial is something that a sandbox's policy refused.
type Denial struct {
	ID string
	At time.Time
	// Protocol is "dns", "tls", "http", "http2", "tcp", "udp", "icmp", or the
	// number of another one above IP.
	Protocol string
	// Name is what was asked for, if it was a name; by the sandbox's word.
	Name string
	// To is where it was to go; not valid for a name that was not looked up.
	To netip.AddrPort
	// Rule is the index of the rule that decided, -1 for the default action or
	// when none has a say.
	Rule int
	// Target is that rule's.
	Target string
	Reason string
	// Process is the program that tried, as "curl[17]", where it is known; by
	// the sandbox's word.
	Process string
	// Audit is set when it was let through all the same.
	Audit bool
}

// subject is what denials are counted by.
func (d *Denial) subject() string {
	to := d.Name
	if to == "" {
		to = d.To.String()
	} else if d.To.IsValid() {
		to = fmt.Sprintf("%s:%d", d.Name, d.To.Port())
	}
	return d.Protocol + " " + to
}

// describe words a denial for its event.
func (d *Denial) describe() string {
	what := "Denied"
	if d.Audit {
		what = "Would be denied"
	}
	what += ": " + d.subject()
	if d.Name != "" && d.To.IsValid() {
		what += fmt.Sprintf(" (%s)", d.To.Addr())
	}
	if d.Process != "" {
		what += " by " + d.Process
	}
	by := "the default action"
	if d.Rule >= 0 {
		by = fmt.Sprintf("rule %d", d.Rule)
		if d.Target != "" {
			by += fmt.Sprintf(" (%s)", d.Target)
		}
	}
	what += ", by " + by
	if d.Reason != "" {
		what += ": " + d.Reason
	}
	return what + "."
}

const (
	// denialInterval is how often denials become events.
	denialInterval = time.Second
	// maxDenialSubjects bounds how many subjects of one sandbox are told apart
	// within that time.
	maxDenialSubjects = 32
	// maxDenialSandboxes bounds those whose denials are counted within it.
	maxDenialSandboxes = 4096
)

// tally is what one sandbox was denied since the last events.
type tally struct {
	last   map[string]Denial
	count  map[string]int
	others int
}

func (t *tally) add(d Denial) {
	subject := d.subject()
	if _, known := t.last[subject]; !known && len(t.last) >= maxDenialSubjects {
		t.others++
		return
	}
	if d.Process == "" {
		// It is not found each time, nor looked for.
		d.Process = t.last[subject].Process
	}
	t.last[subject] = d
	t.count[subject]++
}

// denialProtocols are those that are counted each for itself.
var denialProtocols = [...]string{"dns", "tls", "http", "http2", "tcp", "udp", "icmp"}

func (c *counters) denial(protocol string) {
	i := slices.Index(denialProtocols[:], protocol)
	if i < 0 {
		i = len(denialProtocols)
	}
	c.denials[i].Add(1)
}

func (c *counters) denied() map[string]int64 {
	all := make(map[string]int64, len(c.denials))
	for i, p := range denialProtocols {
		all[p] = c.denials[i].Load()
	}
	all["other"] = c.denials[len(denialProtocols)].Load()
	return all
}

// watchDenials turns denials into events, a few per second and sandbox at most:
// a sandbox can make any number of them.
func (m *Manager) watchDenials(denials <-chan Denial) {
	tick := time.NewTicker(denialInterval)
	defer tick.Stop()
	waiting := make(map[string]*tally)
	for {
		select {
		case d, ok := <-denials:
			if !ok {
				return
			}
			m.counts.denial(d.Protocol)
			t := waiting[d.ID]
			if t == nil && len(waiting) < maxDenialSandboxes {
				t = &tally{last: map[string]Denial{}, count: map[string]int{}}
				waiting[d.ID] = t
			}
			if t != nil {
				t.add(d)
			}
		case <-tick.C:
			for id, t := range waiting {
				m.noteDenials(id, t)
			}
			clear(waiting)
		case <-m.ctx.Done():
			return
		}
	}
}

func (m *Manager) noteDenials(id string, t *tally) {
	e, err := m.lookup(id)
	if err != nil {
		return // deleted meanwhile
	}
	subjects := slices.SortedFunc(maps.Keys(t.last), func(a, b string) int { return t.last[a].At.Compare(t.last[b].At) })
	fresh, ok := e.addDenials(t, subjects)
	if !ok {
		return
	}
	for _, subject := range subjects {
		d := t.last[subject]
		// Once for each destination, not each time: a program that is denied
		// something tends to try for ever.
		if slices.Contains(fresh, subject) {
			m.log.Info("a network policy refused something", "sandbox", id, "what", subject, "rule", d.Rule, "audit", d.Audit)
		}
		if m.opts.OnDenial != nil {
			m.opts.OnDenial(d, t.count[subject])
		}
	}
}

// addDenials makes events of a tally and says which of them are not in the list
// yet. ok is false when the sandbox is gone.
func (e *entry) addDenials(t *tally, subjects []string) (fresh []string, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.gone {
		return nil, false
	}
	e.observe(func(s *Sandbox) {
		add := func(ev Event, count int) {
			var first bool
			ev.Kind = EventDenied
			if s.Events, first = s.Events.addMany(ev, count); first {
				fresh = append(fresh, ev.Subject)
			}
		}
		for _, subject := range subjects {
			d := t.last[subject]
			add(Event{At: e.m.between(s.CreatedAt, d.At), Subject: subject, Message: d.describe()}, t.count[subject])
		}
		if t.others > 0 {
			add(Event{At: e.m.now(), Subject: "others", Message: "Denied: more destinations than are listed one by one."}, t.others)
		}
	})
	e.writeSoon()
	return fresh, true
}
