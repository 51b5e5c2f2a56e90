package pty

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// numbers is what `seq 1 n` prints on a terminal.
func numbers(n int) []byte {
	var b bytes.Buffer
	for i := range n {
		b.WriteString(strconv.Itoa(i + 1))
		b.WriteString("\r\n")
	}
	return b.Bytes()
}

// A client that drops its connection again and again, at any point, sees every
// byte once.
func TestReplayLosesNothing(t *testing.T) {
	r := newRig(t)
	const n = 200000
	id := r.make(fmt.Sprintf(`{"command":"seq 1 %d"}`, n))
	var all []byte
	for drops := 0; ; drops++ {
		u := r.connect(id, "since="+strconv.Itoa(len(all)))
		if from := u.offset - int64(len(u.replayed)); from != int64(len(all)) {
			t.Fatalf("connection %d begins at %d instead of %d", drops, from, len(all))
		}
		all = append(all, u.replayed...)
		var f *serverFrame
		var err error
		for u.out.Len() < 100<<10 && f == nil && err == nil {
			f, err = u.next()
		}
		all = append(all, u.out.Bytes()...)
		if err != nil {
			t.Fatal(err)
		}
		if f != nil {
			if f.Type != "exit" || *f.ExitCode != 0 {
				t.Fatalf("%+v", f)
			}
			break
		}
		u.drop()
		// The hold ends when execd notices.
		r.until("the end of the hold", func() bool {
			s, _ := r.api.find(id)
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.holder == nil
		})
	}
	if !bytes.Equal(all, numbers(n)) {
		t.Errorf("got %d bytes that are not what was printed", len(all))
	}
	if st := r.status(id); st.Offset != int64(len(all)) {
		t.Errorf("output_offset is %d after %d bytes", st.Offset, len(all))
	}
}

// Without a client the program runs on, and the newest of its output is kept.
func TestReplayIsTheNewest(t *testing.T) {
	r := newRig(t)
	const n = 400000
	id := r.make(fmt.Sprintf(`{"command":"read x; seq 1 %d"}`, n))
	u := r.connect(id, "")
	u.enter("go\n")
	u.expect("go\r\n")
	u.drop()
	r.until("the end", func() bool { return r.status(id).Offset == int64(len(numbers(n))+4) && !r.status(id).Running })
	for _, since := range []string{"0", "5", "999999999"} {
		u = r.connect(id, "since="+since+"&takeover=1")
		if since == "999999999" {
			if u.replayed != nil || u.offset != int64(len(numbers(n))+4) {
				t.Errorf("replay of the future: offset %d, %q", u.offset, tail(string(u.replayed)))
			}
		} else if want := numbers(n); len(u.replayed) != maxReplay || !bytes.HasSuffix(want, u.replayed) {
			t.Errorf("since=%s: %d bytes to %d that are not the newest", since, len(u.replayed), u.offset)
		}
		u.exit()
	}
}

func TestTakeover(t *testing.T) {
	r := newRig(t)
	id := r.make("")
	first := r.connect(id, "")
	first.enter("v=kept; echo he''re\n")
	first.expect("here")
	if _, err := r.dial(id, ""); err == nil || !strings.Contains(err.Error(), "409") || !strings.Contains(err.Error(), "ALREADY_CONNECTED") {
		t.Errorf("second client: %v", err)
	}
	// A handshake that fails evicts nobody.
	if code, answer := r.do("GET", "/pty/"+id+"/ws?takeover=1", ""); code != http.StatusBadRequest {
		t.Errorf("takeover without a WebSocket: %d %s", code, answer)
	}
	first.enter("echo sti''ll\n")
	first.expect("still")
	second := r.connect(id, "takeover=1")
	if ce := first.closed(); ce.Code != closeTakenOver {
		t.Errorf("the first client was closed with %d", ce.Code)
	}
	if !bytes.Contains(second.replayed, []byte("here")) {
		t.Errorf("replay %q", second.replayed)
	}
	second.enter("echo v=$v.\n")
	second.expect("v=kept.")
	third := r.connect(id, "takeover=1&since=999999")
	third.enter("exit\n")
	third.exit()
}

// Clients that take a session over from each other, many at once, leave one
// holder and a working session.
func TestTakeoverStorm(t *testing.T) {
	r := newRig(t)
	id := r.make("")
	r.connect(id, "").enter("while :; do echo flood; done\n")
	const n = 20
	closed := make(chan websocket.StatusCode, n)
	for range n {
		go func() {
			conn, err := r.dial(id, "takeover=1")
			if err != nil {
				t.Error(err)
				closed <- closeTakenOver
				return
			}
			u := &user{t: t, conn: conn}
			for err == nil {
				_, _, err = u.read()
			}
			closed <- websocket.CloseStatus(err)
		}()
	}
	for range n - 1 {
		if code := <-closed; code != closeTakenOver {
			t.Errorf("closed with %d", code)
		}
	}
	if code, _ := r.do("DELETE", "/pty/"+id, ""); code != http.StatusOK {
		t.Errorf("DELETE: %d", code)
	}
	if code := <-closed; code != websocket.StatusGoingAway {
		t.Errorf("the last client was closed with %d", code)
	}
}

func TestPipes(t *testing.T) {
	r := newRig(t)
	id := r.make(`{"command":"echo out; echo err >&2; cat; echo end >&2; exit 4"}`)
	u := r.connect(id, "pty=0")
	if u.hello.Mode != "pipe" {
		t.Errorf("mode %q", u.hello.Mode)
	}
	u.expect("out\n")
	u.enter("one\x00\xff\n")
	u.say(`{"type":"stdin","data":"two\n"}`)
	u.say(`{"type":"resize","cols":10,"rows":10}`)
	u.expect("one\x00\xff\ntwo\n")
	u.say(`{"type":"eof"}`)
	if f := u.exit(); *f.ExitCode != 4 {
		t.Errorf("%+v", f)
	}
	if got := u.errs.String(); got != "err\nend\n" {
		t.Errorf("stderr %q", got)
	}
	// A replay is of both, without telling them apart.
	u = r.connect(id, "pty=0&takeover=1")
	if len(u.replayed) != len("out\nerr\none\x00\xff\ntwo\nend\n") || u.hello.Mode != "pipe" {
		t.Errorf("replay %q, %+v", u.replayed, u.hello)
	}
	u.exit()

	// A shell without a command reads its commands from the pipe.
	u = r.connect(r.make(""), "pty=0")
	u.enter("echo [$-]; exit 9\n")
	if f := u.exit(); *f.ExitCode != 9 || u.out.String() != "[hBs]\n" {
		t.Errorf("%+v, %q", f, u.out.String())
	}
}

func TestStdinNobodyReads(t *testing.T) {
	r := newRig(t)
	u := r.connect(r.make(`{"command":"exec <&-; echo ready; sleep 1000"}`), "pty=0")
	u.expect("ready\n")
	u.enter("x\n")
	if f := u.frame(); f.Type != "error" || f.Code != "STDIN_WRITE_FAILED" {
		t.Errorf("%+v", f)
	}
	// The connection lives on.
	u.enter("y\n")
	u.say(`{"type":"ping"}`)
	if f := u.frame(); f.Type != "pong" {
		t.Errorf("%+v", f)
	}
	u.say(`{"type":"signal","signal":"SIGTERM"}`)
	if f := u.exit(); f.Signal != 15 {
		t.Errorf("%+v", f)
	}

	// A program that does not read holds its client up, not more: the session
	// can be taken over and deleted.
	id := r.make(`{"command":"echo ready; sleep 1000"}`)
	u = r.connect(id, "pty=0")
	u.expect("ready\n")
	go func() {
		for range 64 {
			if u.conn.Write(t.Context(), websocket.MessageBinary, make([]byte, 64<<10)) != nil {
				return
			}
		}
	}()
	v := r.connect(id, "takeover=1&since=9")
	v.say(`{"type":"ping"}`)
	if f := v.frame(); f.Type != "pong" {
		t.Errorf("%+v", f)
	}
	if code, _ := r.do("DELETE", "/pty/"+id, ""); code != http.StatusOK {
		t.Errorf("DELETE: %d", code)
	}
}

// A reader that is slow gets everything all the same, and what waits for it is
// bounded.
func TestSlowReader(t *testing.T) {
	r := newRig(t)
	const total = 24 << 20
	id := r.make(fmt.Sprintf(`{"command":"head -c %d /dev/zero"}`, total))
	u := r.connect(id, "pty=0")
	// Nothing is read until the program can write no more: the same offset many
	// times over, while it runs.
	same, last := 0, int64(-1)
	r.until("the end of the output", func() bool {
		st := r.status(id)
		if same++; st.Offset != last {
			same, last = 0, st.Offset
		}
		return same > 20
	})
	if last >= total {
		t.Errorf("%d bytes went out to a client that does not read", last)
	}
	n := 0
	for {
		f, err := u.next()
		if err != nil {
			t.Fatal(err)
		}
		n += u.out.Len()
		u.out.Reset()
		if f != nil {
			if f.Type != "exit" || *f.ExitCode != 0 {
				t.Errorf("%+v", f)
			}
			break
		}
	}
	if n != total {
		t.Errorf("got %d bytes of %d", n, total)
	}
}

// A reader that has stopped for good loses its connection, and the program
// goes on.
func TestStuckReader(t *testing.T) {
	r := newRig(t)
	r.api.times.write = 50 * time.Millisecond
	id := r.make(`{"command":"head -c 50000000 /dev/zero; exit 3"}`)
	r.connect(id, "pty=0")
	r.until("the end of the program", func() bool { st := r.status(id); return st.Offset == 50000000 && !st.Running })
	if f := r.connect(id, "since=50000000").exit(); *f.ExitCode != 3 {
		t.Errorf("%+v", f)
	}
}

// A client that says nothing, not even pong, is given up.
func TestSilentClient(t *testing.T) {
	r := newRig(t)
	r.api.times.ping, r.api.times.silence = 20*time.Millisecond, 100*time.Millisecond
	id := r.make("")
	// The library answers pings only while it reads.
	r.connect(id, "")
	r.until("the end of the hold", func() bool {
		conn, err := r.dial(id, "")
		if err == nil {
			conn.CloseNow()
		}
		return err == nil
	})
	// One that answers stays.
	u := r.connect(id, "takeover=1")
	u.enter("sleep 0.5; echo he''re\n")
	u.expect("here")
}

// Many turns between the streams: no byte moves to the other one.
func TestStreamsStayApart(t *testing.T) {
	r := newRig(t)
	const n = 3000
	u := r.connect(r.make(fmt.Sprintf(`{"command":"for ((i=0;i<%d;i++)); do echo o$i; echo e$i >&2; done"}`, n)), "pty=0")
	u.exit()
	out, errs := string(u.replayed)+u.out.String(), u.errs.String()
	for i := range n {
		var ok1, ok2 bool
		out, ok1 = strings.CutPrefix(out, fmt.Sprintf("o%d\n", i))
		errs, ok2 = strings.CutPrefix(errs, fmt.Sprintf("e%d\n", i))
		if !ok1 || !ok2 {
			t.Fatalf("line %d: %.20q, %.20q", i, out, errs)
		}
	}
	if out != "" || errs != "" {
		t.Errorf("too much: %.20q, %.20q", out, errs)
	}
}

func TestDelete(t *testing.T) {
	r := newRig(t)
	for _, tc := range []struct{ name, query, body string }{
		{"shell", "", ``},
		{"job in the foreground", "", `{"command":"echo ready; sleep 1000"}`},
		{"stopped", "", `{"command":"echo ready; kill -STOP $$"}`},
		{"deaf to hang-ups", "", `{"command":"trap '' HUP TERM INT; echo ready; while :; do sleep 1000; done"}`},
		{"pipes", "pty=0", `{"command":"echo ready; sleep 1000"}`},
		{"flood", "", `{"command":"echo ready; yes"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			id := r.make(tc.body)
			u := r.connect(id, tc.query)
			if tc.body != "" && !bytes.Contains(u.replayed, []byte("ready")) {
				u.expect("ready")
			}
			s, _ := r.api.find(id)
			if code, _ := r.do("DELETE", "/pty/"+id, ""); code != http.StatusOK {
				t.Errorf("DELETE: %d", code)
			}
			if f := u.frame(); f.Type != "error" || f.Code != "SESSION_GONE" {
				t.Errorf("%+v", f)
			}
			if ce := u.closed(); ce.Code != websocket.StatusGoingAway {
				t.Errorf("closed with %d", ce.Code)
			}
			select {
			case <-s.proc.Done():
			default:
				t.Error("the program still runs")
			}
		})
	}
}

// Sessions leave no process behind that nobody collects, no descriptor and no
// memory.
func TestNothingIsLeft(t *testing.T) {
	r := newRig(t)
	before := descriptors(t)
	for i := range 20 {
		// The middle process ends first, so that the last is an orphan.
		id := r.make(`{"command":"(true & sh -c 'true &' &); echo done"}`)
		query := "pty=" + strconv.Itoa(i%2)
		if f := r.connect(id, query).exit(); *f.ExitCode != 0 {
			t.Errorf("%+v", f)
		}
		if code, _ := r.do("DELETE", "/pty/"+id, ""); code != http.StatusOK {
			t.Errorf("DELETE: %d", code)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	r.until("the end of all processes and descriptors", func() bool {
		return len(children(t)) == 0 && descriptors(t) <= before
	})
	if used := r.api.budget.used.Load(); used != 0 {
		t.Errorf("%d bytes of the budget are still taken", used)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func children(t *testing.T) []string {
	t.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, thread := range threads {
		b, _ := os.ReadFile("/proc/self/task/" + thread.Name() + "/children")
		all = append(all, strings.Fields(string(b))...)
	}
	return all
}

func TestSessionsAreBounded(t *testing.T) {
	r := newRig(t)
	first := r.make(`{"command":"true"}`)
	held := r.make(`{"command":"true"}`)
	for r.api.Len() < maxSessions {
		r.make("")
	}
	// No session is of no use any more: two have a program to run yet.
	code, answer := r.do("POST", "/pty", "")
	if code != http.StatusTooManyRequests || !strings.Contains(answer, "256") {
		t.Errorf("one too many: %d %s", code, answer)
	}
	r.connect(held, "").exit()
	r.connect(first, "").exit()
	r.make("")
	if code, _ := r.do("GET", "/pty/"+first, ""); code != http.StatusNotFound {
		t.Errorf("the oldest that has ended is still there: %d", code)
	}
	if code, _ := r.do("GET", "/pty/"+held, ""); code != http.StatusOK {
		t.Errorf("a newer one is gone: %d", code)
	}
	r.api.Close()
	if code, _ := r.do("POST", "/pty", ""); code != http.StatusServiceUnavailable {
		t.Errorf("after Close: %d", code)
	}
}
