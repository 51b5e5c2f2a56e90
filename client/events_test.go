package client

import (
	"errors"
	"io"
	"net/http"
	"testing"
	"time"
)

func TestEvents(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/sandboxes/sb/events" || r.URL.RawQuery != "after=3" {
			t.Errorf("asked for %s", r.URL)
		}
		_, _ = io.WriteString(w, `{"items":[{"seq":4,"at":"2030-01-02T03:04:05Z","kind":"Renewed","message":"m","count":2,"firstAt":"2030-01-02T03:04:04Z"}],"dropped":7}`)
	})
	list, err := c.Events(t.Context(), "sb", 3)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	want := Event{Seq: 4, At: at, Kind: "Renewed", Message: "m", Count: 2, FirstAt: at.Add(-time.Second)}
	if len(list.Items) != 1 || list.Items[0] != want || list.Dropped != 7 {
		t.Errorf("%+v", list)
	}
}

func TestFollowEvents(t *testing.T) {
	const two = ": waiting\n\ndata: {\"seq\":1}\n\n: waiting\n\ndata: {\"seq\":2}\n\n"
	stop := errors.New("enough")
	for _, tc := range []struct {
		name, stream string
		cut          bool
		give         error
		want         error
		seen         int
	}{
		{"to the end", two, false, nil, nil, 2},
		{"cut off", two, true, nil, ErrConnectionLost, 2},
		{"stopped", two, false, stop, stop, 1},
		{"nothing", "", false, nil, nil, 0},
	} {
		c := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Accept") != "text/event-stream" || r.URL.RawQuery != "" {
				t.Errorf("asked for %s, %v", r.URL, r.Header)
			}
			_, _ = io.WriteString(w, tc.stream)
			if tc.cut {
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
		})
		seen := 0
		err := c.FollowEvents(t.Context(), "sb", 0, func(e Event) error {
			if seen++; e.Seq != int64(seen) {
				t.Errorf("%s: got %+v", tc.name, e)
			}
			return tc.give
		})
		if !errors.Is(err, tc.want) || seen != tc.seen {
			t.Errorf("%s: %v after %d", tc.name, err, seen)
		}
	}
}
