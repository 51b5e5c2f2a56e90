package client

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// terminals serves one terminal session: each connection is given to the next
// of the acts, with the query that it came with.
func terminals(t *testing.T, o func(*Options), acts ...func(t *testing.T, c *websocket.Conn, query string)) (*Client, *atomic.Int32) {
	var n atomic.Int32
	return serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/v1/sandboxes/s":
			reply(w, 200, map[string]any{"id": "s", "status": map[string]any{"state": "Running"}})
		case r.URL.Path == "/v1/sandboxes/s/proxy/44772/pty/p/ws":
			i := int(n.Add(1)) - 1
			if i >= len(acts) || acts[i] == nil {
				reply(w, 404, map[string]any{"code": "CONTEXT_NOT_FOUND", "message": "no such pty"})
				return
			}
			if r.Header.Get("OPEN-SANDBOX-API-KEY") != "the-key" {
				t.Error("no API key")
			}
			c, err := websocket.Accept(w, r, nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.CloseNow()
			acts[i](t, c, r.URL.RawQuery)
		default:
			t.Errorf("unexpected %s %s", r.Method, r.URL)
		}
	}, func(opts *Options) {
		if o != nil {
			o(opts)
		}
	}), &n
}

func put(t *testing.T, c *websocket.Conn, message any) {
	t.Helper()
	var err error
	switch m := message.(type) {
	case []byte:
		err = c.Write(t.Context(), websocket.MessageBinary, m)
	case string:
		err = c.Write(t.Context(), websocket.MessageText, []byte(m))
	}
	if err != nil {
		t.Errorf("sending %q: %v", message, err)
	}
}

func output(s string) []byte { return append([]byte{ptyStdout}, s...) }

func replayed(offset int64, s string) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{ptyReplay}, uint64(offset)), s...)
}

const exit7 = `{"type":"exit","exit_code":7}`

func attach(t *testing.T, c *Client, o TerminalOptions) *Terminal {
	t.Helper()
	term, err := c.AttachPTY(t.Context(), "s", "p", o)
	if err != nil {
		t.Fatal(err)
	}
	return term
}

func TestTerminalComesBack(t *testing.T) {
	c, n := terminals(t, nil,
		func(t *testing.T, c *websocket.Conn, query string) {
			if query != "pty=1&since=0" {
				t.Errorf("first query %s", query)
			}
			put(t, c, `{"type":"connected"}`)
			put(t, c, output("abc"))
		}, // and the connection breaks
		func(t *testing.T, c *websocket.Conn, query string) {
			if query != "pty=1&since=3&takeover=1" {
				t.Errorf("second query %s", query)
			}
			put(t, c, replayed(5, "fg"))
			put(t, c, `{"type":"connected"}`)
		},
		func(t *testing.T, c *websocket.Conn, query string) {
			if query != "pty=1&since=7&takeover=1" {
				t.Errorf("third query %s", query)
			}
			_, frame, err := c.Read(t.Context())
			if err != nil || string(frame) != `{"type":"resize","cols":90,"rows":30}` {
				t.Errorf("the size was not repeated: %s, %v", frame, err)
			}
			put(t, c, append([]byte{ptyStderr}, 'h'))
			put(t, c, exit7)
		})
	var missing int64
	var lost int
	term := attach(t, c, TerminalOptions{OnLost: func(error) { lost++ }, OnBack: func(n int64) { missing += n }})
	if err := term.Resize(t.Context(), 90, 30); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	res, err := term.Run(t.Context(), &out)
	if err != nil || res.ExitCode != 7 || out.String() != "abcfgh" || missing != 2 || lost != 2 || n.Load() != 3 {
		t.Errorf("%+v, %v, %q, %d missing, %d losses, %d connections", res, err, out.String(), missing, lost, n.Load())
	}
	if err := term.Write(t.Context(), []byte("x")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("input after the end: %v", err)
	}
}

// Input waits for the connection to come back, and is sent once.
func TestTerminalInputWaits(t *testing.T) {
	release := make(chan struct{})
	c, _ := terminals(t, nil,
		func(*testing.T, *websocket.Conn, string) {},
		func(t *testing.T, c *websocket.Conn, _ string) {
			<-release
			_, got, err := c.Read(t.Context())
			if err != nil || string(got) != "\x00typed" {
				t.Errorf("input %q, %v", got, err)
			}
			put(t, c, exit7)
		})
	term := attach(t, c, TerminalOptions{OnLost: func(error) { close(release) }})
	ran := make(chan error, 1)
	go func() {
		_, err := term.Run(t.Context(), io.Discard)
		ran <- err
	}()
	<-release
	if err := term.Write(t.Context(), []byte("typed")); err != nil {
		t.Error(err)
	}
	if err := <-ran; err != nil {
		t.Error(err)
	}
}

func TestTerminalEnds(t *testing.T) {
	for _, c := range []struct {
		name string
		act  func(*testing.T, *websocket.Conn, string)
		want func(*Result, error) bool
	}{
		{"signal", func(t *testing.T, c *websocket.Conn, _ string) {
			put(t, c, `{"type":"exit","exit_code":-1,"signal":9}`)
		},
			func(r *Result, err error) bool {
				return err == nil && r.ExitCode == -1 && fmt.Sprint(r.Detail) == "[signal 9]"
			}},
		{"exit without a code", func(t *testing.T, c *websocket.Conn, _ string) { put(t, c, `{"type":"exit","signal":"x"}`) },
			func(r *Result, err error) bool { return err == nil && r.ExitCode == -1 }},
		{"taken over", func(_ *testing.T, c *websocket.Conn, _ string) { c.Close(closeTakenOver, "TAKEN_OVER") },
			func(_ *Result, err error) bool { return errors.Is(err, ErrTakenOver) }},
		{"deleted", func(t *testing.T, c *websocket.Conn, _ string) { put(t, c, `{"type":"error","code":"SESSION_GONE"}`) },
			func(_ *Result, err error) bool { return errors.Is(err, ErrTerminalGone) }},
		{"not started", func(t *testing.T, c *websocket.Conn, _ string) {
			put(t, c, `{"type":"error","code":"START_FAILED","error":"no such file"}`)
		}, func(_ *Result, err error) bool {
			var ce *CommandError
			return errors.As(err, &ce) && ce.Value == "no such file"
		}},
		{"an error that is none of ours", func(t *testing.T, c *websocket.Conn, _ string) {
			put(t, c, `{"type":"error","code":"INVALID_FRAME"}`)
			put(t, c, `{"type":"news"}`)
			put(t, c, []byte{0x77, 1, 2})
			put(t, c, []byte{})
			put(t, c, exit7)
		}, func(r *Result, err error) bool { return err == nil && r.ExitCode == 7 }},
		{"no JSON", func(t *testing.T, c *websocket.Conn, _ string) { put(t, c, `{`) },
			func(_ *Result, err error) bool { return err != nil && !errors.Is(err, ErrConnectionLost) }},
		{"negative offset", func(t *testing.T, c *websocket.Conn, _ string) { put(t, c, replayed(-1, "x")) },
			func(_ *Result, err error) bool { return err != nil && strings.Contains(err.Error(), "negative") }},
		{"too long", func(t *testing.T, c *websocket.Conn, _ string) {
			_ = c.Write(t.Context(), websocket.MessageText, make([]byte, maxPTYMessage+1))
			_, _, _ = c.Read(t.Context())
		}, func(_ *Result, err error) bool { return err != nil && !errors.Is(err, ErrConnectionLost) }},
		{"gone while it was lost", func(*testing.T, *websocket.Conn, string) {},
			func(_ *Result, err error) bool { return errors.Is(err, ErrConnectionLost) && IsNotFound(err) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl, _ := terminals(t, nil, c.act)
			res, err := attach(t, cl, TerminalOptions{}).Run(t.Context(), io.Discard)
			if !c.want(res, err) {
				t.Errorf("%+v, %v", res, err)
			}
		})
	}
}

func TestTerminalGivesUp(t *testing.T) {
	var first atomic.Bool
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/sandboxes/s" || first.Swap(true) {
			reply(w, 503, map[string]any{"code": "X", "message": "later"})
			return
		}
		conn, err := websocket.Accept(w, r, nil)
		if err == nil {
			conn.CloseNow()
		}
	}, func(o *Options) { o.MaxRetries = -1 })
	for _, limit := range []time.Duration{time.Millisecond, -1} {
		first.Store(false)
		_, err := attach(t, c, TerminalOptions{Reattach: limit}).Run(t.Context(), io.Discard)
		if !errors.Is(err, ErrConnectionLost) {
			t.Errorf("limit %s: %v", limit, err)
		}
	}
	if _, err := c.AttachPTY(t.Context(), "s", "p", TerminalOptions{}); !IsBusy(err) {
		t.Errorf("refused at once: %v", err)
	}
}

// A connection that has died without a word is replaced.
func TestTerminalWithoutASignOfLife(t *testing.T) {
	done := make(chan struct{})
	defer close(done)
	c, _ := terminals(t, func(o *Options) { o.StreamIdleTimeout = 20 * time.Millisecond },
		func(*testing.T, *websocket.Conn, string) { <-done }, // reads nothing, so it answers no ping
		func(t *testing.T, c *websocket.Conn, _ string) { put(t, c, exit7) })
	res, err := attach(t, c, TerminalOptions{}).Run(t.Context(), io.Discard)
	if err != nil || res.ExitCode != 7 {
		t.Errorf("%+v, %v", res, err)
	}
}

// A sandbox that is paused is silent too, and its connection is kept.
func TestTerminalOfAPausedSandbox(t *testing.T) {
	asked := make(chan struct{}, 100)
	var conns atomic.Int32
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/sandboxes/s" {
			reply(w, 200, map[string]any{"id": "s", "status": map[string]any{"state": "Paused"}})
			asked <- struct{}{}
			return
		}
		conns.Add(1)
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.CloseNow()
		for range 3 {
			<-asked
		}
		put(t, conn, exit7)
	}, func(o *Options) { o.StreamIdleTimeout = 20 * time.Millisecond })
	res, err := attach(t, c, TerminalOptions{}).Run(t.Context(), io.Discard)
	if err != nil || res.ExitCode != 7 || conns.Load() != 1 {
		t.Errorf("%+v, %v, %d connections", res, err, conns.Load())
	}
}

func TestTerminalOfAWriterThatFails(t *testing.T) {
	c, n := terminals(t, nil, func(t *testing.T, c *websocket.Conn, _ string) {
		put(t, c, output("x"))
		_, _, _ = c.Read(t.Context())
	})
	_, err := attach(t, c, TerminalOptions{}).Run(t.Context(), failingWriter{})
	if !errors.Is(err, io.ErrClosedPipe) || n.Load() != 1 {
		t.Errorf("%v after %d connections", err, n.Load())
	}
}

func TestTerminalStopsWithItsContext(t *testing.T) {
	c, _ := terminals(t, nil, func(t *testing.T, c *websocket.Conn, _ string) { _, _, _ = c.Read(t.Context()) })
	ctx, cancel := context.WithCancelCause(t.Context())
	term := attach(t, c, TerminalOptions{})
	why := errors.New("enough")
	cancel(why)
	if _, err := term.Run(ctx, io.Discard); !errors.Is(err, why) {
		t.Errorf("%v", err)
	}
}

// What a sandbox sends is taken or refused, and the offset counts what was shown.
func FuzzTerminalOutput(f *testing.F) {
	f.Add(output("x"))
	f.Add(replayed(3, "abc"))
	f.Add([]byte{ptyReplay, 0xff})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, message []byte) {
		term := &Terminal{}
		var out bytes.Buffer
		before := term.offset
		if err := term.output(bytes.NewReader(message), &out); err != nil {
			return
		}
		if len(message) > 0 && message[0] != ptyReplay && term.offset != before+int64(out.Len()) {
			t.Errorf("offset %d after %d bytes", term.offset, out.Len())
		}
	})
}

func TestPTYRequests(t *testing.T) {
	var body map[string]any
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.EscapedPath() {
		case "POST /v1/sandboxes/s/proxy/44772/pty":
			body = nil
			_ = json.NewDecoder(r.Body).Decode(&body)
			reply(w, 201, map[string]any{"session_id": "p"})
		case "GET /v1/sandboxes/s/proxy/44772/pty/a%2Fb":
			reply(w, 200, map[string]any{"session_id": "p", "running": true, "output_offset": 5})
		case "DELETE /v1/sandboxes/s/proxy/44772/pty/p":
		default:
			t.Errorf("unexpected %s %s", r.Method, r.URL)
		}
	})
	uid := uint32(7)
	id, err := c.CreatePTY(t.Context(), "s", PTYRequest{Argv: []string{"a", "b"}, UID: &uid, Cols: 10, Rows: 20, Env: map[string]string{"A": "b"}})
	if err != nil || id != "p" || fmt.Sprint(body) != "map[argv:[a b] cols:10 envs:map[A:b] rows:20 uid:7]" {
		t.Errorf("%q, %v, %v", id, err, body)
	}
	if st, err := c.PTYStatus(t.Context(), "s", "a/b"); err != nil || !st.Running || st.Offset != 5 {
		t.Errorf("%+v, %v", st, err)
	}
	if err := c.DeletePTY(t.Context(), "s", "p"); err != nil {
		t.Error(err)
	}
	for _, r := range []PTYRequest{{Shell: "a", Argv: []string{"b"}}, {GID: &uid}, {Cols: 1}} {
		if _, err := c.CreatePTY(t.Context(), "s", r); err == nil {
			t.Errorf("%+v was taken", r)
		}
	}
	for _, id := range []string{"", ".", ".."} {
		if err := c.DeletePTY(t.Context(), "s", id); err == nil {
			t.Errorf("session %q was taken", id)
		}
	}
	if err := new(Terminal).Resize(t.Context(), 0, 70000); err == nil {
		t.Error("a size of nothing was taken")
	}
}
