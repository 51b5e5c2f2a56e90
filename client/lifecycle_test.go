package client

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestLifecycleInCreate(t *testing.T) {
	var got string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got = string(b)
		reply(w, http.StatusAccepted, map[string]any{"id": "sb"})
	})
	_, err := c.Create(t.Context(), CreateRequest{Image: "x", Lifecycle: &Lifecycle{
		PreStart: &Hook{Command: []string{"a", "b"}},
		Periodic: []PeriodicHook{{Name: "n", Schedule: "@hourly", Hook: Hook{Command: []string{"c"}, Timeout: 5 * time.Second}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := `"lifecycle":{"preStart":{"command":["a","b"]},"periodic":[{"name":"n","schedule":"@hourly","command":["c"],"timeoutSeconds":5}]}`
	if !strings.Contains(got, want) {
		t.Errorf("sent %s, want in it %s", got, want)
	}
	if _, err := c.Create(t.Context(), CreateRequest{Image: "x", Lifecycle: &Lifecycle{PreStart: &Hook{Timeout: time.Millisecond}}}); err == nil {
		t.Error("a time-out of a millisecond was taken")
	}
}
