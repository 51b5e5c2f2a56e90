package jupyter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/coder/websocket"
)

func serve(t *testing.T, h http.HandlerFunc) *Server {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	s, err := NewServer(srv.URL+"/base/", "secret")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestServerAddress(t *testing.T) {
	for _, bad := range []string{"", "127.0.0.1:8888", "ftp://host", "http://", "http://[::1", "unix:///sock"} {
		if _, err := NewServer(bad, ""); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	s, err := NewServer("http://user:word@host:1/x?token=y#z", "")
	if err != nil || strings.Contains(s.Address(), "word") || strings.Contains(s.Address(), "token") {
		t.Errorf("%v, %v", s, err)
	}
}

func TestServerAnswers(t *testing.T) {
	elsewhere := false
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere = true }))
	t.Cleanup(other.Close)
	for name, c := range map[string]struct {
		status int
		body   string
		want   string
	}{
		"good":      {200, `{"kernelspecs":{"b":{"spec":{"language":"x","argv":["y"]}},"a":{"spec":{"language":"x"}},"c":{},"../d":{"spec":{}}}}`, ""},
		"refused":   {403, `{}`, ErrRefused.Error()},
		"no token":  {401, ``, ErrRefused.Error()},
		"failure":   {500, `{"message":"went wrong"}`, "went wrong"},
		"redirect":  {302, ``, "302"},
		"no json":   {200, `<html>`, "can't be read"},
		"other":     {200, `[]`, "can't be read"},
		"long":      {200, strings.Repeat(" ", maxAnswer+1), "longer than"},
		"long fail": {500, strings.Repeat("x", maxAnswer+1), "answered 500"},
	} {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/base/api/kernelspecs" || r.Header.Get("Authorization") != "token secret" {
				t.Errorf("%s: %s %v", name, r.URL, r.Header)
			}
			w.Header().Set("Location", other.URL)
			w.WriteHeader(c.status)
			fmt.Fprint(w, c.body)
		})
		specs, err := s.Specs(t.Context())
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 1000 || strings.Contains(err.Error(), "secret") {
				t.Errorf("%s: %v; want %q", name, err, c.want)
			}
			continue
		}
		if err != nil || len(specs) != 2 || specs[0].Name != "a" || specs[1].Name != "b" {
			t.Errorf("%s: %v, %v", name, specs, err)
		}
	}
	if elsewhere {
		t.Error("a redirection was followed")
	}
}

func TestServerSession(t *testing.T) {
	var asked []string
	id := "one"
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Method+" "+r.URL.Path)
		fmt.Fprintf(w, `{"id":%q,"kernel":{"id":"two"}}`, id)
	})
	k, err := s.Start(t.Context(), "python", "dir/x")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{k.Interrupt(t.Context()), k.Alive(t.Context()), k.Delete(t.Context())} {
		if err != nil {
			t.Error(err)
		}
	}
	want := "POST /base/api/sessions, POST /base/api/kernels/two/interrupt, GET /base/api/kernels/two, DELETE /base/api/sessions/one"
	if got := strings.Join(asked, ", "); got != want {
		t.Errorf("%s; want %s", got, want)
	}
	id = "../../x"
	if _, err := s.Start(t.Context(), "python", ""); err == nil {
		t.Error("an id with a path in it was taken")
	}
}

// TestChannels is a server that sends what no kernel would.
func TestChannels(t *testing.T) {
	for _, protocols := range [][]string{{subprotocol}, nil} {
		s := serve(t, func(w http.ResponseWriter, r *http.Request) {
			ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: protocols})
			if err != nil {
				t.Error(err)
				return
			}
			defer ws.CloseNow()
			ws.SetReadLimit(1 << 20)
			kind, b, err := ws.Read(r.Context())
			if err != nil {
				t.Error(err)
				return
			}
			for _, junk := range []string{"", "x", "{}", strings.Repeat("\xff", 100)} {
				_ = ws.Write(r.Context(), websocket.MessageBinary, []byte(junk))
			}
			_ = ws.Write(r.Context(), websocket.MessageText, []byte(`{"header":5}`))
			_ = ws.Write(r.Context(), websocket.MessageBinary, make([]byte, MaxMessage+10))
			_ = ws.Write(r.Context(), kind, b)
			ws.Close(websocket.StatusNormalClosure, "")
		})
		k := &Session{server: s, id: "a", kernel: "b"}
		got, skipped, broken := make(chan *Message, 10), make(chan int64, 10), make(chan error, 10)
		c, err := k.Connect(t.Context(), "me", Handler{
			Message: func(m *Message) { got <- m },
			Skipped: func(_ Channel, n int64) { skipped <- n },
			Broken:  func(err error) { broken <- err },
		})
		if err != nil {
			t.Fatal(err)
		}
		m := sample(t)
		if err := c.Send(m); err != nil {
			t.Fatal(err)
		}
		if err := <-broken; !strings.Contains(err.Error(), "broke") {
			t.Error(err)
		}
		if n := <-skipped; n != MaxMessage+10 {
			t.Errorf("%d bytes were skipped", n)
		}
		back := <-got
		if back.Header != m.Header || len(got)+len(skipped)+len(broken) != 0 {
			t.Errorf("%+v came back; %d more", back, len(got))
		}
		c.Close()
		if c.Send(m) == nil {
			t.Error("a closed connection sends")
		}
	}
}

func TestDialGivesUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := OverIPC(t.TempDir()+"/s", "k")
	if _, err := Dial(ctx, c, Handler{}); !errors.Is(err, context.Canceled) {
		t.Errorf("dialling nobody: %v", err)
	}
	if err := Beat(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("the heartbeat of nobody: %v", err)
	}
	var file map[string]any
	if err := json.Unmarshal(c.File(), &file); err != nil || file["transport"] != "ipc" || file["signature_scheme"] != "hmac-sha256" || file["key"] == "" {
		t.Errorf("connection file %v, %v", file, err)
	}
	tcp, err := OverTCP("k")
	if err != nil {
		t.Fatal(err)
	}
	ports := map[int]bool{tcp.Shell: true, tcp.Control: true, tcp.IOPub: true, tcp.Stdin: true, tcp.Beat: true}
	if len(ports) != 5 || ports[0] {
		t.Errorf("ports %v", ports)
	}
}
