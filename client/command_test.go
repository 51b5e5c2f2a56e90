package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func readEvents(in string) (events []string, err error) {
	r := newEventReader(strings.NewReader(in))
	for {
		ev, err := r.next()
		if err != nil {
			return events, err
		}
		events = append(events, string(ev))
	}
}

func TestEventReader(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     []string
		err      error
	}{
		{"standard", "data: {\"a\":1}\n\ndata:{\"b\":2}\n\n", []string{`{"a":1}`, `{"b":2}`}, io.EOF},
		{"bare", "{\"a\":1}\n\n{\"b\":2}\n", []string{`{"a":1}`, `{"b":2}`}, io.EOF},
		{"crlf", "data: x\r\n\r\n", []string{"x"}, io.EOF},
		{"several data lines", "data: a\ndata: b\n\n", []string{"a\nb"}, io.EOF},
		{"comments and fields", ": hi\nevent: e\nid: 1\nretry: 2\ndata: x\n\n", []string{"x"}, io.EOF},
		{"no last blank line", "data: x\n", []string{"x"}, io.EOF},
		{"no last line end", "data: x", []string{"x"}, io.EOF},
		{"bare without line end", "{}", []string{"{}"}, io.EOF},
		{"cut off", "data: x\ndata: y", nil, io.ErrUnexpectedEOF},
		{"empty", "", nil, io.EOF},
		{"blank lines", "\n\n\n", nil, io.EOF},
		{"only a comment", ": x", nil, io.EOF},
		{"too long", "data: " + strings.Repeat("x", maxEventLine) + "\n\n", nil, errEventTooLong},
		{"too long over many lines", strings.Repeat("data: "+strings.Repeat("x", 1<<20)+"\n", 9), nil, errEventTooLong},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := readEvents(c.in)
			if fmt.Sprint(got) != fmt.Sprint(c.want) || !errors.Is(err, c.err) {
				t.Errorf("got %q, %v, want %q, %v", got, err, c.want, c.err)
			}
		})
	}
}

func FuzzEventReader(f *testing.F) {
	for _, s := range []string{"data: {}\n\n", "{}\n", ":x\n\ndata:a\ndata:b\r\n\r\n", "data", "\x00\xff\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		events, err := readEvents(in)
		if err == nil {
			t.Error("the stream has no end")
		}
		total := 0
		for _, ev := range events {
			total += len(ev)
		}
		if total > len(in) {
			t.Errorf("%d bytes of events out of %d of input", total, len(in))
		}
	})
}

// stream answers /command with events given as JSON.
func stream(t *testing.T, events ...string) *Client {
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/sandboxes/s/proxy/44772/command" {
			t.Errorf("unexpected %s", r.URL)
		}
		for _, ev := range events {
			fmt.Fprintf(w, "data: %s\n\n", ev)
			w.(http.Flusher).Flush()
		}
	})
}

func TestRun(t *testing.T) {
	c := stream(t, `{"type":"init","text":"c1"}`, `{"type":"ping","text":"pong"}`,
		`{"type":"stdout","text":"a"}`, `{"type":"stderr","text":"b"}`, `{"type":"stdout","text":"\n"}`,
		`{"type":"execution_complete","execution_time":3}`)
	var both bytes.Buffer
	id := ""
	res, err := c.Run(context.Background(), "s", Command{Argv: []string{"x"}},
		Output{Stdout: &both, Stderr: &both, OnStart: func(s string) { id = s }})
	if err != nil || res.ExitCode != 0 || res.ID != "c1" || id != "c1" {
		t.Fatalf("%+v, %v", res, err)
	}
	if both.String() != "a\nb\n\n" {
		t.Errorf("output %q is not in order", both.String())
	}
}

// What a sandbox printed comes out the same to the byte.
func TestRunIsExact(t *testing.T) {
	c := stream(t, `{"type":"init","text":"c"}`,
		`{"type":"stdout","text":"no end","eol":""}`, `{"type":"stdout","text":" yet"}`,
		`{"type":"stdout","text":"dos","eol":"\r\n"}`, `{"type":"stdout","text":"\n"}`, `{"type":"stdout","text":"\n","eol":"\r\n"}`,
		`{"type":"stdout","text":"\ufffda","raw":"/2E=","eol":""}`, `{"type":"execution_complete"}`)
	var out bytes.Buffer
	if _, err := c.Run(context.Background(), "s", Command{Shell: "x"}, Output{Stdout: &out}); err != nil {
		t.Fatal(err)
	}
	if want := "no end yet\ndos\r\n\n\r\n\xffa"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

// The fast reading of an event is the same as that of the JSON decoder, or none.
func FuzzReadOutput(f *testing.F) {
	for _, s := range []string{`{"type":"stdout","text":"a","timestamp":1}`, `{"type":"stderr","text":"\\n","timestamp":12}`,
		`{"type":"stdout","text":"a\\"b","timestamp":1}`, `{"type":"stdout","text":"a","eol":"","timestamp":1}`, `{"type":"stdout","text":"","timestamp":}`,
		`{"type":"stdout","text":"\n","timestamp":1}`, `{"type":"stdout","text":"\t\"\u001b[1m\\","eol":"\r\n","timestamp":1}`,
		`{"type":"stdout","text":"\u00ff\u2028","timestamp":1}`, `{"type":"stdout","text":"\\","raw":"/2E=","timestamp":1}`,
		`{"type":"stdout","text":"` + "\ufffd" + `","eol":"","raw":"/2E=","timestamp":1}`, `{"type":"stdout","text":"a","raw":"","timestamp":1}`,
		`{"type":"stdout","text":"a","raw":null,"timestamp":1}`, `{"type":"stdout","text":"a","raw":"/2E","timestamp":1}`,
		`{"type":"stdout","text":"a\","raw":"/2E=","timestamp":1}`, `{"type":"stdout","text":"a","raw":"/\n2E=","timestamp":1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		out, _, ok := readOutput(raw, []byte("left of the last event"))
		var ev event
		// Where the decoder is stricter, about control characters and such, the
		// bytes are as good as they are.
		if !ok || !utf8.Valid(raw) || json.Unmarshal(raw, &ev) != nil {
			return
		}
		var fast, exact bytes.Buffer
		p := newPrinter(Output{Stdout: &fast, Stderr: &fast})
		_ = p.print(out)
		_ = p.flush()
		p = newPrinter(Output{Stdout: &exact, Stderr: &exact})
		_ = p.event(out.stream, &ev)
		_ = p.flush()
		if ev.Type != [2]string{"stdout", "stderr"}[out.stream] || fast.String() != exact.String() {
			t.Errorf("%s: %q, want %q", raw, fast.String(), exact.String())
		}
	})
}

// All forms in which output usually comes are read the fast way.
func TestReadOutput(t *testing.T) {
	for raw, want := range map[string]string{
		`{"type":"stdout","text":"a","timestamp":1}`:                                               "a\n",
		`{"type":"stdout","text":"\n","timestamp":1}`:                                              "\n",
		`{"type":"stderr","text":"\\n\t\"\u001b[1m\u0000","timestamp":1}`:                          "\\n\t\"\x1b[1m\x00\n",
		`{"type":"stdout","text":"a","eol":"\r\n","timestamp":1}`:                                  "a\r\n",
		`{"type":"stdout","text":"a","eol":"","timestamp":1}`:                                      "a",
		`{"type":"stdout","text":"` + "\ufffd" + `\"a\\","raw":"/yJhXA==","timestamp":1}`:          "\xff\"a\\\n",
		`{"type":"stdout","text":"` + "\ufffd" + `\"a\\","eol":"","raw":"/yJhXA==","timestamp":1}`: "\xff\"a\\",
	} {
		out, _, ok := readOutput([]byte(raw), nil)
		if got := string(out.text) + out.eol; !ok || got != want {
			t.Errorf("%s: %q, %v, want %q", raw, got, ok, want)
		}
	}
}

// Output that has come is shown, though the next event is not there yet.
func TestOutputIsNotHeldBack(t *testing.T) {
	for _, form := range []string{"data: %s\n\n", "%s\n\n", "%s\n"} {
		seen := make(chan struct{})
		c := serve(t, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, form+`data: {"type":`, `{"type":"stdout","text":"prompt","timestamp":1}`)
			w.(http.Flusher).Flush()
			<-seen
		})
		_, err := c.Run(context.Background(), "s", Command{Shell: "x"}, Output{Stdout: writerFunc(func(p []byte) (int, error) {
			close(seen)
			return len(p), nil
		})})
		if !errors.Is(err, ErrConnectionLost) && err == nil {
			t.Errorf("%q: %v", form, err)
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func BenchmarkOutput(b *testing.B) {
	line := strings.Repeat("data: {\"type\":\"stdout\",\"text\":\"y\",\"timestamp\":1764000000000}\n\n", 1000)
	b.SetBytes(int64(len(line)))
	for b.Loop() {
		_, _ = consume(newEventReader(strings.NewReader(line)), Output{Stdout: io.Discard})
	}
}

func TestRunEnds(t *testing.T) {
	for _, c := range []struct {
		name   string
		events []string
		code   int
		check  func(error) bool
	}{
		{"exit code", []string{`{"type":"init","text":"c"}`, `{"type":"error","error":{"ename":"CommandExecError","evalue":"3","traceback":["exit status 3"]}}`},
			3, func(err error) bool { return err == nil }},
		{"signal", []string{`{"type":"error","error":{"evalue":"-1"}}`}, -1, func(err error) bool { return err == nil }},
		{"not started", []string{`{"type":"error","error":{"ename":"E","evalue":"fork/exec /x: no such file"}}`},
			-1, func(err error) bool { var ce *CommandError; return errors.As(err, &ce) && ce.Name == "E" }},
		{"no reason", []string{`{"type":"error"}`}, -1, func(err error) bool { var ce *CommandError; return errors.As(err, &ce) }},
		{"cut off", []string{`{"type":"init","text":"c"}`, `{"type":"stdout","text":"x"}`}, -1, func(err error) bool { return errors.Is(err, ErrConnectionLost) }},
		{"nothing", nil, -1, func(err error) bool { return errors.Is(err, ErrConnectionLost) }},
		{"garbage", []string{`{"type":`}, -1, func(err error) bool { return err != nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			res, err := stream(t, c.events...).Run(context.Background(), "s", Command{Shell: "x"}, Output{})
			if res == nil || res.ExitCode != c.code || !c.check(err) {
				t.Errorf("%+v, %v", res, err)
			}
		})
	}
}

func TestRunBody(t *testing.T) {
	var got commandBody
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewDecoder(r.Body).Decode(&got)
		fmt.Fprint(w, "data: {\"type\":\"init\",\"text\":\"c9\"}\n\ndata: {\"type\":\"execution_complete\"}\n\n")
	})
	uid := uint32(0)
	id, err := c.Start(context.Background(), "s", Command{Argv: []string{"a", "b"}, Cwd: "/x", UID: &uid, Timeout: 1500 * time.Millisecond, Env: map[string]string{"K": "v"}})
	if err != nil || id != "c9" {
		t.Fatalf("%q, %v", id, err)
	}
	if !got.Background || got.Timeout != 1500 || got.UID == nil || *got.UID != 0 || got.Command != "" || len(got.Argv) != 2 || got.Envs["K"] != "v" {
		t.Errorf("body %+v", got)
	}
	for _, bad := range []Command{{}, {Shell: "x", Argv: []string{"y"}}, {Shell: "x", GID: &uid}, {Shell: "x", Timeout: time.Microsecond}} {
		if _, err := c.Run(context.Background(), "s", bad, Output{}); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestRunStopsWhenTheWriterFails(t *testing.T) {
	c := stream(t, `{"type":"stdout","text":"a"}`, `{"type":"execution_complete"}`)
	if _, err := c.Run(context.Background(), "s", Command{Shell: "x"}, Output{Stdout: failingWriter{}}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("error %v", err)
	}
}

// quiet is a sandbox whose stream says nothing after its first event.
func quiet(t *testing.T, state func() string) *Client {
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/command"):
			fmt.Fprint(w, "data: {\"type\":\"init\",\"text\":\"c\"}\n\n")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		case strings.HasSuffix(r.URL.Path, "/ping"):
		default:
			reply(w, 200, map[string]any{"id": "s", "status": map[string]any{"state": state()}})
		}
	}, func(o *Options) { o.StreamIdleTimeout = 10 * time.Millisecond })
}

func TestSilentStreamIsGivenUp(t *testing.T) {
	for _, state := range []string{StateRunning, StateFailed} {
		c := quiet(t, func() string { return state })
		if _, err := c.Run(context.Background(), "s", Command{Shell: "x"}, Output{}); !errors.Is(err, ErrConnectionLost) {
			t.Errorf("%s: error %v", state, err)
		}
	}
}

func TestSilentStreamOfAPausedSandboxIsWaitedFor(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	asked := 0
	enough := errors.New("enough")
	c := quiet(t, func() string {
		if asked++; asked == 3 {
			cancel(enough)
		}
		return StatePaused
	})
	if _, err := c.Run(ctx, "s", Command{Shell: "x"}, Output{}); !errors.Is(err, enough) {
		t.Errorf("a paused sandbox was given up: %v", err)
	}
}

func TestCancelledRunReturnsAtOnce(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	c := quiet(t, func() string { return StatePaused })
	_, err := c.Run(ctx, "s", Command{Shell: "x"}, Output{OnStart: func(string) { cancel() }})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestCommandLogsCursor(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("cursor") != "7" {
			t.Errorf("query %s", r.URL.RawQuery)
		}
		w.Header().Set("EXECD-COMMANDS-TAIL-CURSOR", "12")
		fmt.Fprint(w, "a\x00b\xff\n")
	})
	var out bytes.Buffer
	next, err := c.CommandLogs(context.Background(), "s", "c", 7, &out)
	if err != nil || next != 12 || out.String() != "a\x00b\xff\n" {
		t.Errorf("%d, %v, %q", next, err, out.String())
	}
}

func TestSession(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + strings.TrimPrefix(r.URL.Path, "/v1/sandboxes/s/proxy/44772") {
		case "POST /session":
			reply(w, 200, map[string]string{"session_id": "q"})
		case "POST /session/q/run":
			fmt.Fprint(w, "{\"type\":\"init\",\"text\":\"q\"}\n\n{\"type\":\"stdout\",\"text\":\"hi\"}\n\n{\"type\":\"execution_complete\"}\n\n")
		case "DELETE /session/q":
		default:
			t.Errorf("unexpected %s %s", r.Method, r.URL)
		}
	})
	ctx := context.Background()
	id, err := c.CreateSession(ctx, "s", "/")
	if err != nil || id != "q" {
		t.Fatalf("%q, %v", id, err)
	}
	var out bytes.Buffer
	if res, err := c.RunInSession(ctx, "s", id, SessionCommand{Shell: "x"}, Output{Stdout: &out}); err != nil || res.ExitCode != 0 || out.String() != "hi\n" {
		t.Errorf("%+v, %v, %q", res, err, out.String())
	}
	if err := c.DeleteSession(ctx, "s", id); err != nil {
		t.Error(err)
	}
}
