package cli_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/client"
)

// screen is a paddock process in a terminal, and all that it has shown.
type screen struct {
	t    *testing.T
	tty  *os.File
	cmd  *exec.Cmd
	done chan struct{}

	mu   sync.Mutex
	text strings.Builder
	more chan struct{} // closed and replaced when text grows
}

// screenWait bounds the wait for a text; a test that passes never needs it.
const screenWait = 30 * time.Second

func (m *machine) terminal(line ...string) *screen {
	m.t.Helper()
	cmd := m.command(line...)
	cmd.Env = append(cmd.Env, "TERM=xterm")
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 30, Cols: 100})
	if err != nil {
		m.t.Fatal(err)
	}
	s := &screen{t: m.t, tty: tty, cmd: cmd, done: make(chan struct{}), more: make(chan struct{})}
	go s.read()
	m.t.Cleanup(func() {
		tty.Close()
		cmd.Process.Kill()
		<-s.done
		cmd.Wait()
	})
	return s
}

func (s *screen) read() {
	defer close(s.done)
	buf := make([]byte, 32<<10)
	for {
		n, err := s.tty.Read(buf)
		s.mu.Lock()
		s.text.Write(buf[:n])
		close(s.more)
		s.more = make(chan struct{})
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (s *screen) shown() (string, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String(), s.more
}

// expect waits for a text that was not there before the last call.
func (s *screen) expect(want string) {
	s.t.Helper()
	limit := time.After(screenWait)
	for {
		text, more := s.shown()
		if strings.Contains(text, want) {
			s.mu.Lock()
			s.text.Reset()
			_, after, _ := strings.Cut(text, want)
			s.text.WriteString(after)
			s.mu.Unlock()
			return
		}
		select {
		case <-more:
		case <-s.done:
			if text, _ := s.shown(); !strings.Contains(text, want) {
				s.t.Fatalf("it ended without showing %q: %q", want, text)
			}
		case <-limit:
			s.t.Fatalf("it does not show %q: %q", want, text)
		}
	}
}

func (s *screen) send(keys string) {
	s.t.Helper()
	if _, err := s.tty.WriteString(keys); err != nil {
		s.t.Fatal(err)
	}
}

// exit waits for the process and returns its exit code.
func (s *screen) exit() int {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(screenWait):
		text, _ := s.shown()
		s.t.Fatalf("it does not end: %q", text)
	}
	err := s.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return s.cmd.ProcessState.ExitCode()
}

// The results of the arithmetic show that a shell has answered: the terminal
// echoes what was typed, but not those.
func TestTerminals(t *testing.T) {
	m := newMachine(t)
	id := m.create()
	for _, test := range []struct {
		name string
		f    func(*testing.T, *machine, string)
	}{
		{"shell", testShell}, {"exec", testExecTerminal}, {"lost connection", testLostConnection},
		{"given up", testGivenUp}, {"hang-up", testHangUp}, {"server restart", testShellAcrossRestart},
		{"paused", testPausedUnderShell}, {"deleted", testDeletedUnderShell},
	} {
		t.Run(test.name, func(t *testing.T) { test.f(t, &machine{m.Server, t}, id) })
	}
}

func testShell(t *testing.T, m *machine, id string) {
	s := m.terminal("shell", "-e", "COLOUR=blue", "-w", "/tmp", id)
	s.send("echo $((40+2))-$COLOUR-$(pwd)-$TERM; stty size\r")
	s.expect("42-blue-/tmp-xterm")
	s.expect("30 100")
	if err := pty.Setsize(s.tty, &pty.Winsize{Rows: 45, Cols: 120}); err != nil {
		t.Fatal(err)
	}
	// The new size comes with a signal of its own, which nothing waits for.
	s.send("until stty size | grep 120; do :; done\r")
	s.expect("45 120")
	// Ctrl-C ends what runs in the shell, and nothing else.
	// It shows itself once it has the terminal.
	s.send("sh -c 'echo wait$((1+1)); exec sleep 1000'\r")
	s.expect("wait2")
	s.send("\x03")
	s.send("echo still$((2+1)); exit 7\r")
	s.expect("still3")
	if code := s.exit(); code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
}

func testExecTerminal(t *testing.T, m *machine, id string) {
	for _, c := range []struct {
		line []string
		text string
		code int
	}{
		{[]string{"exec", "-t", id, "--", "sh", "-c", "test -t 1 && echo a terminal"}, "a terminal\r", 0},
		{[]string{"exec", "-it", "-u", "12:34", id, "id", "-u"}, "12\r\n", 0},
		{[]string{"exec", "-t", id, "sh", "-c", "kill -9 $$"}, "", 137},
		{[]string{"exec", "-t", id, "/no/such/program"}, "could not be run", 127},
		{[]string{"exec", "-t", "nobody", "true"}, "nobody", 125},
	} {
		s := m.terminal(c.line...)
		if c.text != "" {
			s.expect(c.text)
		}
		if code := s.exit(); code != c.code {
			t.Errorf("paddock %q: exit code %d, want %d", c.line, code, c.code)
		}
	}
	s := m.terminal("exec", "-it", id)
	s.send("echo $((6*7)); exit\r")
	s.expect("42\r\n")
	if code := s.exit(); code != 0 {
		t.Errorf("a shell: exit code %d", code)
	}
	for _, line := range [][]string{
		{"exec", "-it", id, "true"}, {"shell", id}, {"exec", "-t", "-d", id, "true"},
		{"exec", "-t", "--timeout", "1s", id, "true"}, {"exec", id}, {"exec", id, "--"},
	} {
		if _, errs, code := m.result(m.command(line...)); code != 2 || !strings.Contains(errs, "Try:") {
			t.Errorf("paddock %q without a terminal: %d, %s", line, code, errs)
		}
	}
	if _, _, code := m.result(m.command("exec", "-t", id, "true")); code != 0 {
		t.Errorf("exec -t without -i and a terminal: %d", code)
	}
}

// wire is a TCP proxy whose connections can be cut.
type wire struct {
	t    *testing.T
	to   string
	l    net.Listener
	mu   sync.Mutex
	open map[net.Conn]bool
	down bool
}

func newWire(t *testing.T, to string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{t: t, to: to, l: l, open: map[net.Conn]bool{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { w.carry(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		w.cut(true)
		wg.Wait()
	})
	return w
}

func (w *wire) carry(c net.Conn) {
	defer c.Close()
	s, err := net.Dial("tcp", w.to)
	if err != nil {
		return
	}
	defer s.Close()
	w.mu.Lock()
	if w.down {
		w.mu.Unlock()
		return
	}
	w.open[c] = true
	w.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(s, c); s.Close() })
	io.Copy(c, s)
	c.Close()
	wg.Wait()
	w.mu.Lock()
	delete(w.open, c)
	w.mu.Unlock()
}

// cut breaks what is open, and with down also what comes later.
func (w *wire) cut(down bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.down = down
	for c := range w.open {
		c.(*net.TCPConn).SetLinger(0) // a reset, as from a network that has gone
		c.Close()
	}
}

func (m *machine) wire() (w *wire, server []string) {
	w = newWire(m.t, strings.TrimPrefix(m.URL, "http://"))
	m.t.Setenv("PADDOCK_API_KEY", m.Key)
	return w, []string{"--server", "http://" + w.l.Addr().String()}
}

func (m *machine) terminalOver(server []string, line ...string) *screen {
	m.t.Helper()
	return m.terminal(append(server, append([]string{"--api-key", m.Key}, line...)...)...)
}

// A connection that is lost comes back, and what was printed meanwhile with it.
func testLostConnection(t *testing.T, m *machine, id string) {
	w, server := m.wire()
	s := m.terminalOver(server, "shell", id)
	s.send("echo $((1+1))begin\r")
	s.expect("2begin")
	for i := range 3 {
		s.send(fmt.Sprintf("(sleep 0.3; echo $((20+%d))later) &\r", i))
		s.expect("later) &") // the echo: the shell has got it
		w.cut(false)
		s.expect(fmt.Sprintf("%dlater", 20+i))
	}
	s.send("exit 5\r")
	if code := s.exit(); code != 5 {
		t.Errorf("exit code %d, want 5", code)
	}
}

// Ctrl-C gives a lost connection up; the shell runs on and can be returned to.
func testGivenUp(t *testing.T, m *machine, id string) {
	w, server := m.wire()
	s := m.terminalOver(server, "shell", id)
	s.send("X=kept; echo $((3+4))begin\r")
	s.expect("7begin")
	w.cut(true)
	s.expect("connection lost")
	s.send("\x03")
	s.expect("paddock shell --attach ")
	text, _ := s.shown()
	for !strings.Contains(text, id) {
		var more <-chan struct{}
		if text, more = s.shown(); !strings.Contains(text, id) {
			select {
			case <-more:
			case <-time.After(screenWait):
				t.Fatalf("no session and id: %q", text)
			}
		}
	}
	session, _, _ := strings.Cut(text, " ")
	if code := s.exit(); code != 125 {
		t.Errorf("given up: exit code %d, want 125", code)
	}
	back := m.terminal("shell", "--attach", session, id)
	back.expect("7begin")
	back.send("echo $((2+3))$X; exit 3\r")
	back.expect("5kept")
	if code := back.exit(); code != 3 {
		t.Errorf("returned: exit code %d, want 3", code)
	}
	if _, err := m.Client.PTYStatus(t.Context(), id, session); !client.IsNotFound(err) {
		t.Errorf("the session is left: %v", err)
	}
}

// Closing the terminal ends the shell and what runs in it.
func testHangUp(t *testing.T, m *machine, id string) {
	s := m.terminal("shell", id)
	s.send("echo $$ > /tmp/shell.pid; echo $((4+4))begin\r")
	s.expect("8begin")
	if err := s.cmd.Process.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if code := s.exit(); code != 129 {
		t.Errorf("exit code %d, want 129", code)
	}
	m.Must(t, id, "n=0; while kill -0 $(cat /tmp/shell.pid) 2>/dev/null; do n=$((n+1)); test $n -lt 3000 || exit 1; sleep 0.01; done")
}

// A server that is killed takes no shell with it.
func testShellAcrossRestart(t *testing.T, m *machine, id string) {
	s := m.terminal("shell", id)
	s.send("Y=here; echo $((5+4))begin\r")
	s.expect("9begin")
	m.Kill()
	s.expect("connection lost")
	if err := m.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.send("echo $((5+5))$Y; exit 4\r")
	s.expect("10here")
	if code := s.exit(); code != 4 {
		t.Errorf("exit code %d, want 4", code)
	}
}

// What is typed while the sandbox is paused is there when it goes on.
func testPausedUnderShell(t *testing.T, m *machine, id string) {
	s := m.terminal("shell", id)
	s.send("echo $((6+6))begin\r")
	s.expect("12begin")
	m.ok("pause", id)
	s.send("echo $((6+7))after; exit 2\r")
	m.ok("resume", id)
	s.expect("13after")
	if code := s.exit(); code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
}

// The end of the sandbox is said, and not waited out.
func testDeletedUnderShell(t *testing.T, m *machine, _ string) {
	id := m.create()
	s := m.terminal("shell", id)
	s.send("echo $((5+6))begin\r")
	s.expect("11begin")
	m.ok("rm", id)
	s.expect("paddock: ")
	if code := s.exit(); code != 125 {
		t.Errorf("exit code %d, want 125", code)
	}
}
