package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// interpreter answers /code with events given as JSON.
func interpreter(t *testing.T, events ...string) *Client {
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/sandboxes/s/proxy/44772/code" {
			t.Errorf("unexpected %s", r.URL)
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for _, ev := range events {
			fmt.Fprintf(w, "data: %s\n\n", ev)
		}
	})
}

func TestRunCode(t *testing.T) {
	c := interpreter(t, `{"type":"init","text":"ctx"}`, `{"type":"ping","text":"pong"}`, `{"type":"status","text":"busy"}`,
		`{"type":"stdout","text":"a"}`, `{"type":"execution_count","execution_count":3}`,
		`{"type":"result","results":{"text":"42","application/json":{"a":1}}}`, `{"type":"stderr","text":"b"}`,
		`{"type":"execution_complete","execution_time":12}`)
	var order bytes.Buffer
	started := ""
	o, err := c.RunCode(t.Context(), "s", Code{Source: "x", Language: "python"}, CodeOutput{
		Stdout: &order, Stderr: &order, OnStart: func(id string) { started = id },
		OnResult: func(r CodeResult) error {
			plain, ok := r.Text("text/plain")
			data, _ := r.Text("application/json")
			_, old := r.Text("text")
			fmt.Fprintf(&order, "[%s %v %s %v]", plain, ok, data, old)
			return nil
		},
	})
	if err != nil || o.Err != nil || o.Context != "ctx" || started != "ctx" || o.Count != 3 || o.Duration != 12*time.Millisecond {
		t.Errorf("%+v, %v, started %q", o, err, started)
	}
	if got := order.String(); got != "a\n[42 true {\"a\":1} false]b\n" {
		t.Errorf("order %q", got)
	}
}

func TestRunCodeEnds(t *testing.T) {
	boom := errors.New("boom")
	for _, c := range []struct {
		name   string
		events []string
		want   func(*CodeOutcome, error) bool
	}{
		{"exception", []string{`{"type":"error","error":{"ename":"E","evalue":"v","traceback":["t"]}}`},
			func(o *CodeOutcome, err error) bool {
				return err == nil && o.Err.Name == "E" && o.Err.Value == "v" && o.Err.Traceback[0] == "t"
			}},
		{"exception without words", []string{`{"type":"error"}`}, func(o *CodeOutcome, err error) bool { return err == nil && o.Err != nil }},
		{"error that is no event", []string{`{"code":"X","message":"no"}`}, func(_ *CodeOutcome, err error) bool {
			var e *Error
			return errors.As(err, &e) && e.Code == "X"
		}},
		{"no end", []string{`{"type":"init"}`}, func(_ *CodeOutcome, err error) bool { return errors.Is(err, ErrConnectionLost) }},
		{"no JSON", []string{`{`}, func(_ *CodeOutcome, err error) bool { return err != nil }},
		{"refused result", []string{`{"type":"result","results":{}}`}, func(_ *CodeOutcome, err error) bool { return errors.Is(err, boom) }},
		{"negative time", []string{`{"type":"execution_complete","execution_time":-5}`}, func(o *CodeOutcome, err error) bool { return err == nil && o.Duration == 0 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, err := interpreter(t, c.events...).RunCode(t.Context(), "s", Code{Source: "x", Context: "c"},
				CodeOutput{OnResult: func(CodeResult) error { return boom }})
			if !c.want(o, err) {
				t.Errorf("%+v, %v", o, err)
			}
		})
	}
	if _, err := interpreter(t).RunCode(t.Context(), "s", Code{Source: "x"}, CodeOutput{}); err == nil {
		t.Error("code without a language was taken")
	}
}

func FuzzConsumeCode(f *testing.F) {
	f.Add(`data: {"type":"result","results":{"text":"x","image/png":"AA=="}}` + "\n\n")
	f.Add(`data: {"type":"error","error":null}` + "\n\n")
	f.Add(`data: {"type":"result","results":null}` + "\n\n" + `data: {"type":"execution_complete"}` + "\n\n")
	f.Fuzz(func(t *testing.T, in string) {
		o, err := consumeCode(newEventReader(strings.NewReader(in)), CodeOutput{Stdout: io.Discard,
			OnResult: func(r CodeResult) error {
				for mime := range r {
					r.Text(mime)
				}
				return nil
			}})
		if o == nil && err == nil {
			t.Error("neither an outcome nor an error")
		}
	})
}

func TestCodeContexts(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		path := strings.TrimPrefix(r.URL.EscapedPath(), "/v1/sandboxes/s/proxy/44772/code")
		context := map[string]string{"id": "c", "language": "python", "cwd": "/w"}
		switch r.Method + " " + path + "?" + r.URL.RawQuery {
		case "POST /context?":
			var in map[string]string
			if json.NewDecoder(r.Body).Decode(&in) != nil || in["language"] != "python" || in["cwd"] != "/w" {
				t.Errorf("body %v", in)
			}
			reply(w, 200, context)
		case "GET /contexts/c%2Fd?":
			reply(w, 200, context)
		case "GET /contexts?language=python":
			reply(w, 200, []any{context})
		case "GET /languages?":
			reply(w, 200, []any{map[string]any{"language": "python", "available": true}})
		case "DELETE /contexts/c?", "DELETE /contexts?language=python", "DELETE ?id=c":
		default:
			t.Errorf("unexpected %s %s", r.Method, r.URL)
		}
	})
	want := CodeContext{"c", "python", "/w"}
	if got, err := c.CreateCodeContext(t.Context(), "s", "python", "/w"); err != nil || *got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := c.CodeContext(t.Context(), "s", "c/d"); err != nil || *got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := c.CodeContexts(t.Context(), "s", "python"); err != nil || len(got) != 1 || got[0] != want {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := c.Languages(t.Context(), "s"); err != nil || len(got) != 1 || !got[0].Available {
		t.Errorf("%+v, %v", got, err)
	}
	for _, err := range []error{
		c.DeleteCodeContext(t.Context(), "s", "c"), c.DeleteCodeContexts(t.Context(), "s", "python"), c.InterruptCode(t.Context(), "s", "c"),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	for _, id := range []string{"", ".", ".."} {
		if err := c.DeleteCodeContext(t.Context(), "s", id); err == nil {
			t.Errorf("context %q was taken", id)
		}
	}
}

func TestDirectories(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/sandboxes/s/proxy/44772/directories/archive" || r.URL.Query().Get("path") != "/a b" {
			t.Errorf("unexpected %s", r.URL)
		}
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, "the archive")
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		reply(w, 200, map[string]any{"entries": 2, "bytes": len(body), "skipped": []any{map[string]string{"name": "n", "reason": "r"}}, "skipped_total": 1})
	})
	out, err := c.DownloadDir(t.Context(), "s", "/a b")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if got, err := io.ReadAll(out); err != nil || string(got) != "the archive" {
		t.Errorf("%q, %v", got, err)
	}
	got, err := c.UploadDir(t.Context(), "s", "/a b", strings.NewReader("12345"))
	if err != nil || got.Entries != 2 || got.Bytes != 5 || got.SkippedTotal != 1 || got.Skipped[0].Name != "n" {
		t.Errorf("%+v, %v", got, err)
	}
	broken := errors.New("broken")
	if _, err := c.UploadDir(t.Context(), "s", "/a b", io.MultiReader(strings.NewReader("1"), failingReader{broken})); !errors.Is(err, broken) {
		t.Errorf("an archive that breaks: %v", err)
	}
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

func TestAPIKeyOfAClient(t *testing.T) {
	c := interpreter(t)
	if !c.HasAPIKey("the-key") || c.HasAPIKey("the-kez") || c.HasAPIKey("") || c.HasAPIKey("the-key ") || !c.SendsAPIKey() {
		t.Error("the key is not compared")
	}
	none, err := New(Options{})
	if err != nil || none.HasAPIKey("") || none.SendsAPIKey() {
		t.Error("a client without a key has one")
	}
}
