package test

import (
	"net/http"
	"strings"
	"testing"
)

// What is wrong is said with the field's name; nothing is ignored, nothing ends
// in a 5xx.
func TestBadInput(t *testing.T) {
	s := sharedServer(t)
	with := func(field string, value any) map[string]any {
		b := createBody(busyboxImage)
		b[field] = value
		return b
	}
	cases := []struct {
		name  string
		body  any
		names string // what the message must name
	}{
		{"no body", "", ""},
		{"not JSON", "{", ""},
		{"an array", "[]", ""},
		{"two values", `{}{}`, ""},
		{"no image", map[string]any{"resourceLimits": map[string]any{}}, "image"},
		{"blank image", with("image", map[string]any{"uri": " "}), "image"},
		{"image is a string", with("image", "x"), "image"},
		{"image is no reference", with("image", map[string]any{"uri": "UPPER CASE!"}), "image.uri"},
		{"control characters", with("image", map[string]any{"uri": "a\u0000b"}), "image.uri"},
		{"timeout too short", with("timeout", 59), "timeout"},
		{"timeout is text", with("timeout", "600"), "timeout"},
		{"timeout overflows", with("timeout", 9e18), "timeout"},
		{"timeout is a fraction", with("timeout", 60.5), "timeout"},
		{"cpu", with("resourceLimits", map[string]string{"cpu": "lots"}), "cpu"},
		{"memory", with("resourceLimits", map[string]string{"memory": "-1"}), "memory"},
		{"memory too small to live", with("resourceLimits", map[string]string{"memory": "1"}), "memory"},
		{"unknown limit", with("resourceLimits", map[string]string{"bandwidth": "1"}), "bandwidth"},
		{"empty entrypoint", with("entrypoint", []string{}), "entrypoint"},
		{"blank program", with("entrypoint", []string{""}), "entrypoint"},
		{"NUL in the entrypoint", with("entrypoint", []string{"a\u0000b"}), "entrypoint"},
		{"env name", with("env", map[string]string{"A=B": "x"}), "env"},
		{"env value", with("env", map[string]any{"A": 1}), "env"},
		{"reserved env", with("env", map[string]string{"OPENSANDBOX_LIFECYCLE": "x"}), "OPENSANDBOX_LIFECYCLE"},
		{"metadata key", with("metadata", map[string]string{"bad key": "x"}), "metadata"},
		{"metadata value", with("metadata", map[string]string{"k": "bad value"}), "metadata"},
		{"reserved metadata", with("metadata", map[string]string{"opensandbox.io/x": "x"}), "opensandbox.io/"},
		{"platform", with("platform", map[string]string{"os": "linux", "arch": "vax"}), "platform"},
		{"volumes", with("volumes", []any{map[string]any{"name": "x"}}), "volumes[0]"},
		{"network policy", with("networkPolicy", map[string]any{"egress": []any{map[string]any{"action": "allow", "target": "a:1"}}}), "networkPolicy.egress[0].target"},
		{"snapshot, not built yet", map[string]any{"snapshotId": "x", "resourceLimits": map[string]any{}}, "snapshotId"},
		{"template, not built yet", map[string]any{"templateId": "x", "timeout": 60}, "templateId"},
		{"pool, not built yet", with("extensions", map[string]string{"poolRef": "x"}), "poolRef"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := s.Do(t, http.MethodPost, "/v1/sandboxes", c.body)
			if r.Status == http.StatusAccepted {
				var sb sandboxJSON
				r.JSON(t, &sb)
				s.Forget(t, sb.ID)
			}
			if r.Status != http.StatusBadRequest {
				t.Fatalf("%d %s, want 400", r.Status, r.Body)
			}
			if _, message := r.Error(t); !strings.Contains(message, c.names) {
				t.Errorf("the message does not name %q: %s", c.names, message)
			}
		})
	}
	big := `{"image":{"uri":"` + strings.Repeat("a", 2<<20) + `"}}`
	if r := s.Do(t, http.MethodPost, "/v1/sandboxes", big); r.Status != http.StatusRequestEntityTooLarge {
		t.Errorf("2 MiB: %d", r.Status)
	}
	if r := s.Do(t, http.MethodPost, "/v1/sandboxes", "x=1", "Content-Type", "application/x-www-form-urlencoded"); r.Status != http.StatusUnsupportedMediaType {
		t.Errorf("a form: %d", r.Status)
	}
	deep := strings.Repeat(`{"image":`, 1000) + "1" + strings.Repeat("}", 1000)
	if r := s.Do(t, http.MethodPost, "/v1/sandboxes", deep); r.Status != http.StatusBadRequest {
		t.Errorf("1,000 levels: %d", r.Status)
	}
}

// What the contract has and paddock has not is refused with the contract's
// code.
func TestNotBuiltYet(t *testing.T) {
	s := sharedServer(t)
	sb := sleeper(t, s)
	for _, c := range []struct{ method, path, body string }{
		{http.MethodGet, "/v1/pools", ""},
		{http.MethodGet, "/v1/templates", ""},
		{http.MethodGet, "/v1/snapshots", ""},
		{http.MethodPost, "/v1/sandboxes/" + sb.ID + "/snapshots", "{}"},
	} {
		r := s.Do(t, c.method, c.path, c.body)
		if r.Status != http.StatusNotImplemented {
			t.Errorf("%s %s: %d %s, want 501", c.method, c.path, r.Status, r.Body)
			continue
		}
		r.Error(t)
	}
	if r := s.Do(t, http.MethodPost, "/v1/metrics/events", `{"eventType":"sandbox.create","success":true,"createDurationMs":1}`); r.Status != http.StatusNoContent {
		t.Errorf("metrics event: %d", r.Status)
	}
}
