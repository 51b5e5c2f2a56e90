package sandbox

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	// maxEvents bounds the events of one sandbox; the oldest go first.
	maxEvents = 200
	// maxDenied bounds those of them that a sandbox can cause at will, so that
	// they don't push everything else out.
	maxDenied = 64
	// maxEventMessage bounds one message, in bytes.
	maxEventMessage = 1024
)

// EventKind says what happened. The strings are stable, so that programs can
// branch on them.
type EventKind string

// Kinds of events.
const (
	EventCreated           EventKind = "Created"
	EventPulling           EventKind = "ImagePulling"
	EventPulled            EventKind = "ImagePulled"
	EventVolumesCreated    EventKind = "VolumesCreated"
	EventPreStartRunning   EventKind = "PreStartRunning"
	EventPreStartSucceeded EventKind = "PreStartSucceeded"
	EventStarted           EventKind = "Started"
	EventPaused            EventKind = "Paused"
	EventPauseFailed       EventKind = "PauseFailed"
	EventResumed           EventKind = "Resumed"
	EventResumeFailed      EventKind = "ResumeFailed"
	EventRenewed           EventKind = "Renewed"
	EventMetadataChanged   EventKind = "MetadataChanged"
	EventHookSucceeded     EventKind = "HookSucceeded"
	EventHookFailed        EventKind = "HookFailed"
	// EventRestored: a restarted server found the sandbox running or paused,
	// and goes on with it.
	EventRestored EventKind = "Restored"
	// EventPolicyChanged: its network policy did.
	EventPolicyChanged EventKind = "NetworkPolicyChanged"
	// EventDenied: its network policy refused something.
	EventDenied EventKind = "Denied"
	// EventEnded: the entrypoint ended, or the sandbox died.
	EventEnded EventKind = "Ended"
	// EventFailed: the sandbox could not be made.
	EventFailed   EventKind = "Failed"
	EventExpiring EventKind = "Expiring"
	EventDeleting EventKind = "Deleting"
)

// repeats are the kinds of which many in a row count as one event: how often is
// what matters then, and a list of them would push everything else out.
func (k EventKind) repeats() bool {
	switch k {
	case EventRenewed, EventMetadataChanged, EventHookSucceeded, EventHookFailed, EventRestored, EventPolicyChanged, EventDenied:
		return true
	}
	return false
}

// Event is something that happened to a sandbox.
type Event struct {
	// Seq numbers the events of a sandbox, from 1 and rising. An event that
	// repeats gets a new number and moves to the end.
	Seq  int64     `json:"seq"`
	At   time.Time `json:"at"`
	Kind EventKind `json:"kind"`
	// Reason is that of the status which came with it, if any.
	Reason string `json:"reason,omitempty"`
	// Subject is what it is about, such as the name of a hook.
	Subject string `json:"subject,omitempty"`
	// Message is a full sentence for a person. It holds no secret, but may
	// hold what the sandbox printed.
	Message string `json:"message"`
	// Count is how often it happened, the last time at At and the first at
	// FirstAt, which is zero when it happened once.
	Count   int       `json:"count"`
	FirstAt time.Time `json:"firstAt,omitzero"`
}

// Events is what happened to one sandbox, oldest first and bounded. It is a
// value that never changes: copies may be shared. The zero value is empty.
type Events struct {
	list    []Event
	last    int64
	dropped int64
}

// All returns a copy of all that are kept.
func (l Events) All() []Event { return slices.Clone(l.list) }

// Last is the highest number given so far.
func (l Events) Last() int64 { return l.last }

// Dropped is how many older ones are not kept any more.
func (l Events) Dropped() int64 { return l.dropped }

// After returns those with a higher number.
func (l Events) After(seq int64) []Event {
	for i, e := range l.list {
		if e.Seq > seq {
			return slices.Clone(l.list[i:])
		}
	}
	return nil
}

// IsZero lets a record without events be stored without them.
func (l Events) IsZero() bool { return l.last == 0 }

// add returns the list with one more event; fresh is false when it only raised
// the count of an earlier one.
func (l Events) add(e Event) (_ Events, fresh bool) { return l.addMany(e, 1) }

// addMany is add for something that happened count times.
func (l Events) addMany(e Event, count int) (_ Events, fresh bool) {
	e.Seq = l.last + 1
	e.Count = count
	e.Message = clip(e.Message)
	next := make([]Event, 0, min(len(l.list)+1, maxEvents))
	i := l.earlier(e)
	if i >= 0 {
		old := l.list[i]
		e.Count, e.FirstAt = old.Count+count, old.FirstAt
		if e.FirstAt.IsZero() {
			e.FirstAt = old.At
		}
		next = append(next, l.list[:i]...)
		next = append(next, l.list[i+1:]...)
	} else {
		if count > 1 {
			e.FirstAt = e.At
		}
		list := l.list
		if e.Kind == EventDenied {
			list = withoutOldestDenied(list)
		}
		list = list[max(0, len(list)+1-maxEvents):]
		l.dropped += int64(len(l.list) - len(list))
		next = append(next, list...)
	}
	return Events{list: append(next, e), last: e.Seq, dropped: l.dropped}, i < 0
}

// withoutOldestDenied makes room for another denial.
func withoutOldestDenied(list []Event) []Event {
	oldest, n := -1, 0
	for i, e := range list {
		if e.Kind == EventDenied {
			if n++; oldest < 0 {
				oldest = i
			}
		}
	}
	if n < maxDenied {
		return list
	}
	return slices.Delete(slices.Clone(list), oldest, oldest+1)
}

// earlier finds the event that e repeats: of the same kind and about the same,
// with nothing but repeating ones since.
func (l Events) earlier(e Event) int {
	if !e.Kind.repeats() {
		return -1
	}
	for i := len(l.list) - 1; i >= 0 && l.list[i].Kind.repeats(); i-- {
		if l.list[i].Kind == e.Kind && l.list[i].Subject == e.Subject {
			return i
		}
	}
	return -1
}

// clip makes a message valid UTF-8 of bounded length.
func clip(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if len(s) <= maxEventMessage {
		return s
	}
	n := maxEventMessage
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// storedEvents is the durable form.
type storedEvents struct {
	Last    int64   `json:"last"`
	Dropped int64   `json:"dropped,omitempty"`
	List    []Event `json:"list"`
}

// MarshalJSON implements json.Marshaler.
func (l Events) MarshalJSON() ([]byte, error) {
	return json.Marshal(storedEvents{Last: l.last, Dropped: l.dropped, List: l.list})
}

// UnmarshalJSON implements json.Unmarshaler.
func (l *Events) UnmarshalJSON(b []byte) error {
	var s storedEvents
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	*l = Events{list: s.List, last: s.Last, dropped: s.Dropped}
	return nil
}

// note adds an event to a record that is about to be written.
func (s *Sandbox) note(at time.Time, kind EventKind, reason, message string) {
	s.Events, _ = s.Events.add(Event{At: at, Kind: kind, Reason: reason, Message: message})
}

// Events returns what happened to a sandbox, until its record is removed.
func (m *Manager) Events(id string) (Events, error) {
	e, err := m.lookup(id)
	if err != nil {
		return Events{}, err
	}
	return e.load().Events, nil
}

// FollowEvents gives a sandbox's events with a higher number than after, as
// they happen, until the sandbox has ended or is removed. give is called from
// this goroutine; its error ends the call and is returned.
func (m *Manager) FollowEvents(ctx context.Context, id string, after int64, give func([]Event) error) error {
	e, err := m.lookup(id)
	if err != nil {
		return err
	}
	release, err := m.hold()
	if err != nil {
		return err
	}
	defer release()
	for {
		s, noted, gone := e.watchEvents()
		if fresh := s.Events.After(after); len(fresh) > 0 {
			if err := give(fresh); err != nil {
				return err
			}
			after = s.Events.Last()
		}
		if gone || s.Status.State.Ended() {
			return nil
		}
		select {
		case <-noted:
		case <-ctx.Done():
			return ctx.Err()
		case <-m.ctx.Done():
			return errClosing()
		}
	}
}

// watchEvents returns the record, the last one when it is gone, and a channel
// that is closed when there is another event.
func (e *entry) watchEvents() (s *Sandbox, noted <-chan struct{}, gone bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.noted == nil {
		e.noted = make(chan struct{})
	}
	return e.load(), e.noted, e.gone
}
