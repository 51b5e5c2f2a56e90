package pty

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
)

// patience bounds every wait of these tests. It is never reached when all is
// well.
const patience = 30 * time.Second

var table = process.NewTable()

func TestMain(m *testing.M) {
	// Orphans become ours to collect, as they are PID 1's in a sandbox.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	go table.Run(ctx)
	code := m.Run()
	stop()
	os.Exit(code)
}

// rig is an API on loopback.
type rig struct {
	t   testing.TB
	api *API
	url string
	dir string
}

func newRig(t testing.TB) *rig {
	t.Helper()
	dir := t.TempDir()
	// Other users work here, too.
	for d := dir; strings.HasPrefix(d, os.TempDir()+"/"); d = d[:strings.LastIndexByte(d, '/')] {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	env := map[string]string{"PATH": os.Getenv("PATH"), guest.EnvFileVar: dir + "/env"}
	id, err := account.System.ByUID(uint32(os.Geteuid()), nil)
	if err != nil {
		t.Fatal(err)
	}
	g := guest.New(env, id, dir)
	r := &rig{t: t, dir: dir, api: New(Options{Guest: func() *guest.Guest { return g }, Table: table})}
	mux := http.NewServeMux()
	r.api.Routes(mux)
	srv := httptest.NewServer(mux)
	r.url = srv.URL
	t.Cleanup(srv.Close)
	t.Cleanup(r.api.Close)
	return r
}

// do sends a request and returns status and body.
func (r *rig) do(method, path, body string) (int, string) {
	r.t.Helper()
	req, err := http.NewRequest(method, r.url+path, strings.NewReader(body))
	if err != nil {
		r.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// make makes a session and returns its id.
func (r *rig) make(body string) string {
	r.t.Helper()
	code, answer := r.do("POST", "/pty", body)
	var got struct {
		ID string `json:"session_id"`
	}
	if err := json.Unmarshal([]byte(answer), &got); err != nil || code != http.StatusCreated {
		r.t.Fatalf("POST /pty %s: %d %s", body, code, answer)
	}
	return got.ID
}

func (r *rig) status(id string) status {
	r.t.Helper()
	code, answer := r.do("GET", "/pty/"+id, "")
	var got status
	if err := json.Unmarshal([]byte(answer), &got); err != nil || code != http.StatusOK {
		r.t.Fatalf("GET /pty/%s: %d %s", id, code, answer)
	}
	return got
}

// until waits for a condition that has no event.
func (r *rig) until(what string, f func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	for !f() {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: did not come", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// user is a client.
type user struct {
	t    testing.TB
	conn *websocket.Conn
	// offset is that of the next byte of output; replayed and mode are what
	// the session began with.
	offset   int64
	replayed []byte
	hello    serverFrame
	// out and errs are what came live.
	out, errs bytes.Buffer
}

// dial opens a connection without reading from it.
func (r *rig) dial(id, query string) (*websocket.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, res, err := websocket.Dial(ctx, "ws"+strings.TrimPrefix(r.url, "http")+"/pty/"+id+"/ws?"+query, nil)
	if err != nil {
		if res != nil && res.Body != nil {
			b, _ := io.ReadAll(res.Body)
			err = fmt.Errorf("%d %s", res.StatusCode, b)
		}
		return nil, err
	}
	r.t.Cleanup(func() { conn.CloseNow() })
	conn.SetReadLimit(1 << 20)
	return conn, nil
}

// connect opens a connection and reads up to the connected frame.
func (r *rig) connect(id, query string) *user {
	r.t.Helper()
	conn, err := r.dial(id, query)
	if err != nil {
		r.t.Fatal(err)
	}
	u := &user{t: r.t, conn: conn}
	for u.hello.Type == "" {
		kind, msg, err := u.read()
		if err != nil {
			r.t.Fatal(err)
		}
		if kind == websocket.MessageBinary {
			if msg[0] != prefixReplay || len(msg) < replayHeader+1 || u.replayed != nil {
				r.t.Fatalf("first message is binary %q", msg[:min(len(msg), 20)])
			}
			u.offset = int64(binary.BigEndian.Uint64(msg[1:]))
			u.replayed = msg[replayHeader:]
			u.offset += int64(len(u.replayed))
			continue
		}
		if err := json.Unmarshal(msg, &u.hello); err != nil || u.hello.Type != "connected" {
			r.t.Fatalf("instead of connected: %s", msg)
		}
	}
	if u.hello.SessionID != id {
		r.t.Errorf("connected to %q, not %q", u.hello.SessionID, id)
	}
	if u.replayed == nil {
		u.offset = *u.hello.Offset
	}
	return u
}

func (u *user) read() (websocket.MessageType, []byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return u.conn.Read(ctx)
}

// next reads one message; output is collected and gives nil.
func (u *user) next() (*serverFrame, error) {
	u.t.Helper()
	kind, msg, err := u.read()
	if err != nil {
		return nil, err
	}
	if kind == websocket.MessageText {
		var f serverFrame
		if err := json.Unmarshal(msg, &f); err != nil {
			u.t.Fatalf("%s: %v", msg, err)
		}
		return &f, nil
	}
	switch msg[0] {
	case prefixStdout:
		u.out.Write(msg[1:])
	case prefixStderr:
		u.errs.Write(msg[1:])
	default:
		u.t.Fatalf("live output with prefix %d", msg[0])
	}
	u.offset += int64(len(msg) - 1)
	return nil, nil
}

// expect reads until the output holds text, and forgets it.
func (u *user) expect(text string) {
	u.t.Helper()
	for !strings.Contains(u.out.String(), text) {
		f, err := u.next()
		if err != nil || f != nil {
			u.t.Fatalf("waiting for %q: frame %+v, %v; got %q", text, f, err, u.out.String())
		}
	}
	u.out.Reset()
}

// frame reads until a text frame.
func (u *user) frame() *serverFrame {
	u.t.Helper()
	for {
		f, err := u.next()
		if err != nil {
			u.t.Fatalf("waiting for a frame: %v; got %q", err, tail(u.out.String()))
		}
		if f != nil {
			return f
		}
	}
}

// closed reads until the end and returns the close code.
func (u *user) closed() websocket.CloseError {
	u.t.Helper()
	for {
		_, err := u.next()
		if err == nil {
			continue
		}
		var ce websocket.CloseError
		if code := websocket.CloseStatus(err); code == -1 {
			u.t.Fatalf("closed without a code: %v", err)
		} else {
			ce.Code = code
		}
		return ce
	}
}

// exit reads until the exit frame and the close.
func (u *user) exit() *serverFrame {
	u.t.Helper()
	f := u.frame()
	if f.Type != "exit" || f.ExitCode == nil {
		u.t.Fatalf("instead of exit: %+v", f)
	}
	if ce := u.closed(); ce.Code != websocket.StatusNormalClosure {
		u.t.Errorf("closed with %d", ce.Code)
	}
	return f
}

func (u *user) send(kind websocket.MessageType, msg string) {
	u.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := u.conn.Write(ctx, kind, []byte(msg)); err != nil {
		u.t.Fatal(err)
	}
}

func (u *user) enter(text string) { u.t.Helper(); u.send(websocket.MessageBinary, "\x00"+text) }
func (u *user) say(frame string)  { u.t.Helper(); u.send(websocket.MessageText, frame) }
func (u *user) drop()             { u.conn.CloseNow() }
func tail(s string) string        { return s[max(0, len(s)-200):] }
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: changes identities")
	}
}

func TestShell(t *testing.T) {
	r := newRig(t)
	id := r.make("")
	if st := r.status(id); st.Running || st.Offset != 0 {
		t.Errorf("before the first client: %+v", st)
	}
	u := r.connect(id, "")
	if u.hello.Mode != "pty" || u.replayed != nil {
		t.Errorf("connected: %+v, replay %q", u.hello, u.replayed)
	}
	u.enter("stty size; tty; echo term=$TERM cwd=$PWD\n")
	u.expect("24 80")
	u.enter("echo term=[$TERM] cwd=[$PWD]\n")
	u.expect("term=[xterm-256color] cwd=[" + r.dir + "]")
	u.say(`{"type":"resize","cols":132,"rows":43}`)
	u.say(`{"type":"stdin","data":"stty size\n"}`)
	u.expect("43 132")
	u.say(`{"type":"ping"}`)
	if f := u.frame(); f.Type != "pong" {
		t.Errorf("ping was answered by %+v", f)
	}
	// The kernel's line editor knows UTF-8: one erase takes one character.
	u.enter("sh -c 'echo re''ady; head -n 1 | tr a-z A-Z'\n")
	u.expect("ready")
	u.enter("[ä\x7fb]\n")
	u.expect("[B]")
	if st := r.status(id); !st.Running || st.Offset == 0 {
		t.Errorf("while running: %+v", st)
	}
	u.enter("exit 7\n")
	if f := u.exit(); *f.ExitCode != 7 || f.Signal != 0 {
		t.Errorf("exit frame %+v", f)
	}
	if st := r.status(id); st.Running {
		t.Errorf("after the end: %+v", st)
	}
	// A client that lost its connection learns how it ended.
	u = r.connect(id, "since=0")
	if !bytes.Contains(u.replayed, []byte("43 132")) {
		t.Errorf("replay after the end: %q", u.replayed)
	}
	if f := u.exit(); *f.ExitCode != 7 {
		t.Errorf("exit frame %+v", f)
	}
	if code, _ := r.do("DELETE", "/pty/"+id, ""); code != http.StatusOK {
		t.Errorf("DELETE: %d", code)
	}
	for _, method := range []string{"GET", "DELETE"} {
		if code, answer := r.do(method, "/pty/"+id, ""); code != http.StatusNotFound || !strings.Contains(answer, "CONTEXT_NOT_FOUND") {
			t.Errorf("%s after DELETE: %d %s", method, code, answer)
		}
	}
}

func TestSignals(t *testing.T) {
	r := newRig(t)
	u := r.connect(r.make(`{}`), "pty=1")
	// Each is sent once the job is in the foreground, which its output proves.
	for _, tc := range []struct {
		send func()
		code string
	}{
		{func() { u.enter("\x03") }, "130"},
		{func() { u.say(`{"type":"signal","signal":"SIGINT"}`) }, "130"},
		{func() { u.say(`{"type":"signal","signal":"SIGTERM"}`) }, "143"},
		{func() { u.say(`{"type":"signal","signal":"SIGQUIT"}`) }, "131"},
	} {
		u.enter("sh -c 'ulimit -c 0; echo re''ady; exec sleep 1000'\n")
		u.expect("ready")
		tc.send()
		u.enter("echo code=$?.\n")
		u.expect("code=" + tc.code + ".")
	}
	u.say(`{"type":"signal","signal":"SIGKILL"}`)
	if f := u.exit(); *f.ExitCode != -1 || f.Signal != 9 {
		t.Errorf("exit frame %+v", f)
	}
}

func TestCreateOptions(t *testing.T) {
	r := newRig(t)
	for _, tc := range []struct{ body, want string }{
		{`{"command":"stty size; echo $TERM","cols":10,"rows":5,"term":"vt100"}`, "5 10\r\nvt100\r\n"},
		{`{"argv":["sh","-c","echo $0 $1 $A $B","x y","z"],"env":{"A":"1","B":"1"},"envs":{"B":"2"}}`, "x y z 1 2\r\n"},
		{`{"command":"pwd","cwd":"made/for it"}`, r.dir + "/made/for it\r\n"},
		{`{"command":"echo $-"}`, "hBc\r\n"},
		{`{"command":"echo $TERM","env":{"TERM":"own"},"term":"vt100"}`, "own\r\n"},
	} {
		u := r.connect(r.make(tc.body), "")
		f := u.exit()
		if got := string(u.replayed) + u.out.String(); got != tc.want || *f.ExitCode != 0 {
			t.Errorf("%s: %q, exit %d, want %q", tc.body, got, *f.ExitCode, tc.want)
		}
	}
}

func TestIdentity(t *testing.T) {
	needRoot(t)
	r := newRig(t)
	// The program may open its terminal by name.
	const script = `id -u; id -g; exec 3<>$(tty) && echo opened`
	for _, tc := range []struct{ id, want string }{
		{`"uid":12345`, "12345\r\n0\r\nopened\r\n"},
		{`"uid":12345,"gid":54321`, "12345\r\n54321\r\nopened\r\n"},
		{`"user":"nobody"`, "65534\r\n65534\r\nopened\r\n"},
		{`"user":"nobody:7"`, "65534\r\n7\r\nopened\r\n"},
	} {
		body, _ := json.Marshal(script)
		u := r.connect(r.make(fmt.Sprintf(`{%s,"command":%s}`, tc.id, body)), "")
		u.exit()
		if got := string(u.replayed) + u.out.String(); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.id, got, tc.want)
		}
	}
}

func TestBadRequests(t *testing.T) {
	r := newRig(t)
	long := strings.Repeat("x", maxArg+1)
	for _, tc := range []struct{ body, want string }{
		{`[]`, "object"},
		{`{`, "middle of a JSON value"},
		{`{"command":"a","argv":["b"]}`, "both command and argv"},
		{`{"argv":[]}`, "argv is empty"},
		{`{"argv":[""]}`, "argv is empty"},
		{`{"command":"a\u0000"}`, "NUL"},
		{`{"argv":["a","\u0000"]}`, "NUL"},
		{`{"command":"` + long + `"}`, "bytes long"},
		{`{"cols":80}`, "both or none"},
		{`{"cols":0,"rows":24}`, "0 columns"},
		{`{"cols":80,"rows":65536}`, "65536 rows"},
		{`{"cols":"80","rows":24}`, "cols"},
		{`{"term":"a b"}`, "term"},
		{`{"env":{"A=B":"x"}}`, "env"},
		{`{"uid":-1}`, "uid"},
		{`{"uid":4294967295}`, "uid"},
		{`{"gid":1}`, "gid is given without uid"},
		{`{"uid":1,"gid":-1}`, "gid"},
		{`{"user":"no such user"}`, "user"},
		{`{"user":"root","uid":0}`, "together"},
		{`{"cwd":"/dev/null/x"}`, "cwd"},
		{`{"cwd":"/dev/null"}`, "cwd"},
	} {
		code, answer := r.do("POST", "/pty", tc.body)
		if code != http.StatusBadRequest || !strings.Contains(answer, "INVALID_REQUEST_BODY") || !strings.Contains(answer, tc.want) {
			t.Errorf("%.60s: %d %s", tc.body, code, answer)
		}
	}
	if n := r.api.Len(); n != 0 {
		t.Errorf("%d sessions came of bad requests", n)
	}
	id := r.make("")
	for query, want := range map[string]string{
		"pty=2": "pty", "pty=true": "pty", "since=-1": "since", "since=x": "since", "takeover=yes": "takeover", "": "WebSocket connections only",
	} {
		if code, answer := r.do("GET", "/pty/"+id+"/ws?"+query, ""); code != http.StatusBadRequest || !strings.Contains(answer, want) {
			t.Errorf("%q: %d %s", query, code, answer)
		}
	}
	if code, answer := r.do("GET", "/pty/nothing/ws", ""); code != http.StatusNotFound {
		t.Errorf("unknown session: %d %s", code, answer)
	}
	// None of these held the session.
	r.connect(id, "").drop()
}

func TestStartFails(t *testing.T) {
	r := newRig(t)
	id := r.make(`{"argv":["no-such-program"]}`)
	for range 2 {
		conn, err := r.dial(id, "")
		if err != nil {
			t.Fatal(err)
		}
		u := &user{t: t, conn: conn}
		if f := u.frame(); f.Type != "error" || f.Code != "START_FAILED" || !strings.Contains(f.Error, "no-such-program") {
			t.Errorf("%+v", f)
		}
		if ce := u.closed(); ce.Code != websocket.StatusInternalError {
			t.Errorf("closed with %d", ce.Code)
		}
	}
	// It is tried anew each time.
	if err := os.WriteFile(r.dir+"/now", []byte("#!/bin/sh\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	id = r.make(`{"argv":["./later"]}`)
	if conn, err := r.dial(id, ""); err != nil {
		t.Fatal(err)
	} else if f := (&user{t: t, conn: conn}).frame(); f.Code != "START_FAILED" {
		t.Errorf("%+v", f)
	}
	if err := os.Rename(r.dir+"/now", r.dir+"/later"); err != nil {
		t.Fatal(err)
	}
	if f := r.connect(id, "").exit(); *f.ExitCode != 3 {
		t.Errorf("%+v", f)
	}
}
