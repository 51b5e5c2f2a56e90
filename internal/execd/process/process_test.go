package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// table is the program's one table. Nothing here may use os/exec.
var table = NewTable()

func TestMain(m *testing.M) {
	// Orphans come here, as they do to PID 1.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	go table.Run(context.Background())
	os.Exit(m.Run())
}

func sh(t testing.TB, script string, files ...*os.File) *Process {
	t.Helper()
	p, err := table.Start(Spec{Path: "/bin/sh", Argv: []string{"sh", "-c", script}, Env: os.Environ(), Dir: "/", Files: files})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.SignalGroup(syscall.SIGKILL) })
	return p
}

func TestExit(t *testing.T) {
	for script, want := range map[string]string{
		"exit 0":       "exit status 0",
		"exit 255":     "exit status 255",
		"kill -9 $$":   "signal: killed",
		"kill -ABRT 0": "signal: aborted",
	} {
		p := sh(t, script)
		<-p.Done()
		if got := p.Exit().String(); got != want {
			t.Errorf("%s: %s", script, got)
		}
		if p.SignalGroup(syscall.SIGTERM) || p.Signal(syscall.SIGTERM) {
			t.Errorf("%s: signalled after its end", script)
		}
	}
	if _, err := table.Start(Spec{Path: "/no/such", Argv: []string{"x"}}); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("starting nothing: %v", err)
	}
}

// Every status goes to its owner, while strangers die by the hundred.
func TestEachStatusOnce(t *testing.T) {
	storm := sh(t, "for i in 1 2 3 4 5; do for j in 1 2 3 4 5 6 7 8 9 10; do (true & (true &) &) & done; done; wait")
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			p := sh(t, fmt.Sprintf("exit %d", i))
			<-p.Done()
			if p.Exit() != (Exit{Code: i}) {
				t.Errorf("process %d: %v", i, p.Exit())
			}
		})
	}
	wg.Wait()
	<-storm.Done()
	if n := table.Len(); n != 0 {
		t.Errorf("%d processes are left", n)
	}
}

func TestPipeDrain(t *testing.T) {
	p, w, err := NewPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	hold := make(chan struct{})
	go p.Pump(func(b []byte) { <-hold; out.Write(b) })
	proc := sh(t, "head -c 60000 /dev/zero; sleep 1000 &", nil, w)
	w.Close()
	<-proc.Done()
	// A sink that is held up, by a slow client, is waited for.
	drained := make(chan struct{})
	go func() { p.Drain(nil); close(drained) }()
	close(hold)
	<-drained
	if out.Len() != 60000 {
		t.Errorf("drained %d bytes", out.Len())
	}
	stop := make(chan struct{})
	close(stop)
	p.Drain(stop)
	proc.KillRest()
	<-p.EOF()
	p.Drain(nil)
	p.Settle(nil)
}

// Bytes of two pipes are taken in the order in which they came.
func TestPumpOrder(t *testing.T) {
	a, wa, err := NewPipe()
	if err != nil {
		t.Fatal(err)
	}
	b, wb, err := NewPipe()
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	gate := make(chan struct{})
	started := make(chan struct{})
	first := true
	done := make(chan struct{})
	go func() {
		PumpAll([]*Pipe{a, b}, func(i int, p []byte) {
			if first {
				first = false
				close(started)
				<-gate
			}
			got.Write(p)
		})
		close(done)
	}()
	wa.WriteString("0")
	<-started
	// While the pump is busy both become readable, the second one first.
	wb.WriteString("1")
	wa.WriteString("2")
	close(gate)
	wa.Close()
	wb.Close()
	<-done
	if got.String() != "012" {
		t.Errorf("order: %s", got.String())
	}
}

func TestFamily(t *testing.T) {
	p, w, err := NewPipe()
	if err != nil {
		t.Fatal(err)
	}
	since := Now()
	ready := make(chan struct{})
	var once sync.Once
	go p.Pump(func([]byte) { once.Do(func() { close(ready) }) })
	proc := sh(t, "sleep 1000 & (sleep 1000 & sleep 1000 & wait) & sleep 0.1; echo; wait", nil, w)
	w.Close()
	<-ready
	family := proc.Family(since)
	if len(family) != 4 {
		t.Errorf("family of %d", len(family))
	}
	if later := proc.Family(Now() + 100); len(later) != 0 {
		t.Errorf("%d processes from the future", len(later))
	}
	Signal(family, syscall.SIGKILL)
	<-proc.Done()
	<-p.EOF()
	// The same numbers, if somebody has them now, are other processes.
	Signal([]Member{{PID: os.Getpid(), started: 1}}, syscall.SIGKILL)
}

func TestLook(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"run": 0o755, "plain": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/no/such -x\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, path, cwd, want string
		err                   error
	}{
		{"run", dir, "/", dir + "/run", nil},
		{"run", "/none:" + dir, "/", dir + "/run", nil},
		{"./run", "", dir, dir + "/run", nil},
		{dir + "/run", "", "/", dir + "/run", nil},
		{"run", "/none", "/", "", ErrNotFound},
		{"run", "", dir, "", ErrNotFound},
		{"", dir, "/", "", ErrNotFound},
		{"run/x", "", dir, "", ErrNotFound},
		{"plain", dir, "/", "", ErrNotExecutable},
		{"dir", dir, "/", "", ErrNotExecutable},
		{strings.Repeat("x", 300), dir, "/", "", ErrNotExecutable},
	} {
		got, err := Look(tc.name, tc.path, tc.cwd)
		if !errors.Is(err, tc.err) || tc.err == nil && (err != nil || got != tc.want) {
			t.Errorf("%.20q in %q: %q, %v", tc.name, tc.path, got, err)
		}
	}
	_, err := table.Start(Spec{Path: dir + "/run", Argv: []string{"run"}})
	if text := ExplainExec(dir+"/run", err).Error(); !strings.Contains(text, "bad interpreter") || !strings.Contains(text, "/no/such") {
		t.Errorf("bad interpreter: %s", text)
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("12 (a) b) S 1 12 12 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 9876 1 2"))
	f.Add([]byte("1 ("))
	f.Add([]byte(") 1 ("))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ok := parseStat(b)
		if !ok && s != (stat{}) {
			t.Error("a value with a failure")
		}
	})
}
