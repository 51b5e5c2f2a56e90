package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

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

// Processes that leave the group, the session and their parents are found.
func TestLineage(t *testing.T) {
	for name, script := range map[string]string{
		"group":       "sleep 1000 & echo $!; wait",
		"session":     "setsid sleep 1000 & echo $!; wait",
		"double fork": "(setsid sh -c 'sleep 1000 & echo $!' &); sleep 1000",
		"own limits":  "ulimit -S -c 0; (setsid sh -c 'sleep 1000 & echo $!' &); sleep 1000",
		// The main thread has gone, the process has not.
		"no main thread": "exec python3 -c 'import ctypes,os,threading,time\nif os.fork() == 0:\n os.setsid()\n threading.Thread(target=time.sleep, args=(1000,)).start()\n print(os.getpid(), flush=True)\n ctypes.CDLL(None).syscall(60, 0)\ntime.sleep(1000)'",
	} {
		t.Run(name, func(t *testing.T) {
			if name == "no main thread" && (runtime.GOARCH != "amd64" || executable("/usr/bin/python3") != nil) {
				t.Skip("needs python3, and knows exit's number on amd64")
			}
			for how, end := range map[string]func(*Process){
				"killed":  func(p *Process) { p.KillAll() },
				"stopped": (*Process).StopAll,
			} {
				out, w, err := NewPipe()
				if err != nil {
					t.Fatal(err)
				}
				lines := make(chan string, 1)
				go out.Pump(func(b []byte) { lines <- string(b) })
				p := sh(t, script, nil, w)
				w.Close()
				pid, _ := strconv.Atoi(strings.TrimSpace(<-lines))
				if !slices.ContainsFunc(p.Lineage(), func(m Member) bool { return m.PID == pid }) {
					t.Errorf("%s: %d is not among %v", how, pid, p.Lineage())
				}
				end(p)
				<-p.Done()
				// The end of the output is the end of all who held it.
				<-out.EOF()
				if left := outlived(p); len(left) > 0 {
					t.Errorf("%s: %v are left", how, left)
				}
			}
		})
	}
}

// outlived returns what is left of a lineage that was ended. A process has closed
// its files a moment before it is gone.
func outlived(p *Process) []Member {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if left := p.Lineage(); len(left) == 0 || time.Now().After(end) {
			return left
		}
	}
}

// A process that forks as fast as it can does not get away.
func TestKillAllForkingForEver(t *testing.T) {
	out, w, err := NewPipe()
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan struct{})
	var once sync.Once
	go out.Pump(func([]byte) { once.Do(func() { close(lines) }) })
	p := sh(t, "echo; while :; do (setsid sleep 1000 &); done", nil, w)
	w.Close()
	<-lines
	p.KillAll()
	<-p.Done()
	<-out.EOF()
	if left := outlived(p); len(left) > 0 {
		t.Errorf("%d are left", len(left))
	}
}

// What a process that ended by itself leaves behind is not touched.
func TestDaemonsStay(t *testing.T) {
	out, w, err := NewPipe()
	if err != nil {
		t.Fatal(err)
	}
	go out.Pump(func([]byte) {})
	p := sh(t, "setsid sleep 1000 & sleep 1000 & exit 0", nil, w)
	w.Close()
	<-p.Done()
	if p.KillAll() {
		t.Error("killed after its end")
	}
	p.StopAll()
	left := p.Lineage()
	if len(left) != 2 {
		t.Errorf("%d daemons are left, want 2", len(left))
	}
	Signal(left, syscall.SIGKILL)
	<-out.EOF()
}

func TestMark(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_RTTIME, nil, &before); err != nil {
		t.Fatal(err)
	}
	p, q := sh(t, "exec sleep 1000"), sh(t, "exec sleep 1000")
	if p.mark == 0 || p.mark == q.mark || markOf(p.PID) != p.mark || markOf(q.PID) != q.mark {
		t.Errorf("marks %d and %d, seen as %d and %d", p.mark, q.mark, markOf(p.PID), markOf(q.PID))
	}
	var after unix.Rlimit
	unix.Prlimit(0, unix.RLIMIT_RTTIME, nil, &after)
	if before != after || markOf(os.Getpid()) != 0 {
		t.Errorf("the test's own limit was %v and is %v", before, after)
	}
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

func FuzzParseMark(f *testing.F) {
	f.Add([]byte("Limit     Soft\nMax realtime timeout      1099511627777        unlimited            us        \n"))
	f.Add([]byte("\nMax realtime timeout "))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m := parseMark(b); m != 0 && m <= firstMark {
			t.Error(m)
		}
	})
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
