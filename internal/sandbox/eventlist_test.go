package sandbox

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// TestEventsProperties: however many events come, the list is bounded, ordered
// by number, loses only the oldest, and every one that is kept is counted.
func TestEventsProperties(t *testing.T) {
	kinds := []EventKind{EventPaused, EventResumed, EventRenewed, EventHookSucceeded, EventHookFailed, EventRestored}
	rapid.Check(t, func(t *rapid.T) {
		var l Events
		n := rapid.IntRange(0, 600).Draw(t, "n")
		few := rapid.Bool().Draw(t, "few kinds")
		at := time.Unix(1e9, 0).UTC()
		added := 0
		for i := range n {
			e := Event{Kind: kinds[rapid.IntRange(0, 1).Draw(t, "kind")], At: at.Add(time.Duration(i) * time.Second)}
			if !few {
				e.Kind = rapid.SampledFrom(kinds).Draw(t, "any kind")
				e.Subject = rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "subject")
			}
			before := l.All()
			next, fresh := l.add(e)
			if !reflect.DeepEqual(before, l.All()) {
				t.Fatal("adding changed the list before it")
			}
			if fresh {
				added++
			}
			l = next
		}
		all := l.All()
		if len(all) > maxEvents || l.Last() != int64(n) || l.Dropped()+int64(len(all)) != int64(added) {
			t.Fatalf("%d events, %d dropped, last %d after %d, %d of them fresh", len(all), l.Dropped(), l.Last(), n, added)
		}
		for i, e := range all {
			if i > 0 && (e.Seq <= all[i-1].Seq || e.At.Before(all[i-1].At)) {
				t.Fatalf("out of order: %+v after %+v", e, all[i-1])
			}
			if e.Count < 1 || (e.Count > 1) == e.FirstAt.IsZero() || e.Count > 1 && !e.Kind.repeats() {
				t.Fatalf("%+v", e)
			}
		}
		after := int64(rapid.IntRange(0, n+1).Draw(t, "after"))
		for _, e := range l.After(after) {
			if e.Seq <= after {
				t.Fatalf("after %d: %+v", after, e)
			}
		}
		raw, err := json.Marshal(struct {
			E Events `json:"e,omitzero"`
		}{l})
		if err != nil {
			t.Fatal(err)
		}
		var back struct{ E Events }
		if err := json.Unmarshal(raw, &back); err != nil || !reflect.DeepEqual(back.E.All(), all) || back.E.Last() != l.Last() || back.E.Dropped() != l.Dropped() {
			t.Fatalf("stored and loaded it is %+v (%v)", back.E, err)
		}
	})
}

func TestEventsRepeat(t *testing.T) {
	var l Events
	add := func(kind EventKind, subject string) { l, _ = l.add(Event{Kind: kind, Subject: subject}) }
	for range 100 {
		add(EventRenewed, "")
		add(EventHookSucceeded, "a")
		add(EventHookFailed, "b")
	}
	add(EventPaused, "")
	add(EventRenewed, "")
	got := ""
	for _, e := range l.All() {
		got += fmt.Sprintf("%s%s×%d ", e.Kind, e.Subject, e.Count)
	}
	if want := "Renewed×100 HookSucceededa×100 HookFailedb×100 Paused×1 Renewed×1 "; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestEventMessagesAreBounded(t *testing.T) {
	for _, s := range []string{strings.Repeat("ä", 3000), strings.Repeat("\xff", 3000), "short \xe4", ""} {
		l, _ := Events{}.add(Event{Message: s})
		got := l.All()[0].Message
		if len(got) > maxEventMessage+len("…") || !utf8.ValidString(got) {
			t.Errorf("%d bytes, valid %v", len(got), utf8.ValidString(got))
		}
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{-1: "0s", 12345678: "12.3ms", 1234567890: "1.23s", 90*time.Second + 4e8: "1m30s"} {
		if got := span(d); got != want {
			t.Errorf("%d: %s, want %s", d, got, want)
		}
	}
}
