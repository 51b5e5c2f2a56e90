package enginetest

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Host is a place on which engines are opened one after another, as the runs of
// a server are.
type Host struct {
	// Open opens an engine on the host; Recover was not called yet. The suite
	// closes it, and opens the next one only then.
	Open func(t *testing.T) sandbox.Engine
	// Image is a reference that needs no pull. The image has a POSIX sh, sleep,
	// cat and touch in its PATH, and a default entrypoint or command.
	Image string
	// Leftovers, when not nil, names what is on the host of a sandbox, its logs
	// excepted: processes, mounts, cgroups, interfaces, files.
	Leftovers func(t *testing.T, id string) []string
}

// patience bounds every wait for something that must happen.
const patience = 30 * time.Second

// suite is one host with the engine that is open on it.
type suite struct {
	t    *testing.T
	host Host
	eng  sandbox.Engine

	mu    sync.Mutex
	exits []sandbox.Exit
	more  chan struct{} // closed and replaced at each exit
	done  chan struct{} // stops the reader of exits
	read  sync.WaitGroup
}

// Run holds the engines of newHost to the interface. newHost is called for each
// test and skips it when the machine can't run the engine. With only, just the
// tests of these names are run: for one more way to configure an engine that
// passes all of them.
func Run(t *testing.T, newHost func(t *testing.T) Host, only ...string) {
	for _, test := range []struct {
		name string
		run  func(*suite)
	}{
		{"Check", (*suite).testCheck},
		{"Resolve", (*suite).testResolve},
		{"Reserve", (*suite).testReserve},
		{"CreateAndExec", (*suite).testCreateAndExec},
		{"ImageEntrypoint", (*suite).testImageEntrypoint},
		{"ParallelCreates", (*suite).testParallelCreates},
		{"FailedCreate", (*suite).testFailedCreate},
		{"CanceledCreate", (*suite).testCanceledCreate},
		{"UnknownIDs", (*suite).testUnknownIDs},
		{"PauseAndResume", (*suite).testPauseAndResume},
		{"StopAndRemove", (*suite).testStopAndRemove},
		{"Exits", (*suite).testExits},
		{"OutOfMemory", (*suite).testOutOfMemory},
		{"Logs", (*suite).testLogs},
		{"FollowedLog", (*suite).testFollowedLog},
		{"DialPort", (*suite).testDialPort},
		{"Usage", (*suite).testUsage},
		{"Volumes", (*suite).testVolumes},
		{"Recover", (*suite).testRecover},
		{"ExitBetweenRuns", (*suite).testExitBetweenRuns},
		{"RecreateAfterRestart", (*suite).testRecreateAfterRestart},
	} {
		if len(only) > 0 && !slices.Contains(only, test.name) {
			continue
		}
		t.Run(test.name, func(t *testing.T) {
			s := &suite{t: t, host: newHost(t), more: make(chan struct{})}
			s.open(nil)
			t.Cleanup(s.close)
			test.run(s)
		})
	}
}

// ctx bounds one call.
func (s *suite) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	s.t.Cleanup(cancel)
	return ctx
}

// open starts a run of the engine.
func (s *suite) open(recorded []*sandbox.Sandbox) map[string]sandbox.Found {
	s.t.Helper()
	s.eng = s.host.Open(s.t)
	found, err := s.eng.Recover(s.ctx(), recorded)
	if err != nil {
		s.eng.Close()
		s.eng = nil
		s.t.Fatalf("Recover: %v", err)
	}
	s.done = make(chan struct{})
	s.read.Add(1)
	go s.readExits(s.eng.Exits(), s.done)
	return found
}

// close ends the run. The sandboxes go on.
func (s *suite) close() {
	if s.eng == nil {
		return
	}
	close(s.done)
	s.read.Wait()
	if err := s.eng.Close(); err != nil {
		s.t.Errorf("Close: %v", err)
	}
	s.eng = nil
}

func (s *suite) readExits(exits <-chan sandbox.Exit, done chan struct{}) {
	defer s.read.Done()
	for {
		select {
		case exit, ok := <-exits:
			if !ok {
				s.t.Error("the channel of exits was closed before the engine")
				return
			}
			s.mu.Lock()
			s.exits = append(s.exits, exit)
			close(s.more)
			s.more = make(chan struct{})
			s.mu.Unlock()
		case <-done:
			return
		}
	}
}

// awaitExit waits for a sandbox's exit.
func (s *suite) awaitExit(id string) sandbox.Exit {
	s.t.Helper()
	deadline := time.After(patience)
	for {
		all, more := s.exitsOf(id)
		if len(all) > 0 {
			return all[0]
		}
		select {
		case <-more:
		case <-deadline:
			s.t.Fatalf("the end of %s is not reported", id)
		}
	}
}

func (s *suite) exitsOf(id string) (all []sandbox.Exit, more <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.exits {
		if e.ID == id {
			all = append(all, e)
		}
	}
	return all, s.more
}

// box is a sandbox that the suite made.
type box struct {
	id, token string
	spec      *sandbox.Spec
	created   *sandbox.Created
}

// record is what a Manager would have stored of it.
func (b *box) record(state sandbox.State) *sandbox.Sandbox {
	return &sandbox.Sandbox{ID: b.id, Token: b.token, Spec: *b.spec, Status: sandbox.Status{State: state}, Entrypoint: b.spec.Entrypoint}
}

func (s *suite) spec(entrypoint ...string) *sandbox.Spec {
	return &sandbox.Spec{Image: s.host.Image, Entrypoint: entrypoint}
}

func (s *suite) shell(script string) *sandbox.Spec { return s.spec("sh", "-c", script) }

// idle is a spec whose entrypoint does nothing for long.
func (s *suite) idle() *sandbox.Spec { return s.spec("sleep", "1000000") }

func (s *suite) try(ctx context.Context, spec *sandbox.Spec) (*box, error) {
	if err := s.eng.Check(ctx, spec); err != nil {
		return nil, err
	}
	id, err := s.eng.Reserve(ctx, spec)
	if err != nil {
		return nil, err
	}
	// The engine of the test's end: it may be a later one.
	s.t.Cleanup(func() {
		if s.eng == nil {
			return
		}
		if err := s.eng.Remove(s.ctx(), id); err != nil {
			s.t.Errorf("Remove(%s): %v", id, err)
		}
		s.wantNothing(id)
	})
	b := &box{id: id, token: "token-of-" + id, spec: spec}
	b.created, err = s.eng.Create(ctx, sandbox.CreateRequest{ID: id, Spec: spec, Token: b.token, Progress: func(string) {}})
	return b, err
}

func (s *suite) create(spec *sandbox.Spec) *box {
	s.t.Helper()
	b, err := s.try(s.ctx(), spec)
	if err != nil {
		s.t.Fatalf("creating a sandbox: %v", describe(err))
	}
	return b
}

// wantNothing checks that nothing of a sandbox is left on the host.
func (s *suite) wantNothing(id string) {
	s.t.Helper()
	if s.host.Leftovers == nil {
		return
	}
	if left := s.host.Leftovers(s.t, id); len(left) > 0 {
		s.t.Errorf("left of %s: %s", id, strings.Join(left, ", "))
	}
}

// wantKind checks that an error is one for callers and of one of the kinds.
func (s *suite) wantKind(what string, err error, kinds ...sandbox.Kind) *sandbox.Error {
	s.t.Helper()
	var e *sandbox.Error
	if !errors.As(err, &e) {
		s.t.Fatalf("%s: got %v, want a *sandbox.Error", what, err)
	}
	for _, k := range kinds {
		if e.Kind == k {
			if e.Code == "" || e.Message == "" {
				s.t.Errorf("%s: the error has code %q and message %q", what, e.Code, e.Message)
			}
			return e
		}
	}
	s.t.Fatalf("%s: got kind %d (%s), want one of %v", what, e.Kind, e.Message, kinds)
	return nil
}

// describe adds the cause, which an Error does not show to callers.
func describe(err error) string {
	var e *sandbox.Error
	if errors.As(err, &e) && e.Err != nil {
		return e.Message + " (" + e.Err.Error() + ")"
	}
	return err.Error()
}

func (s *suite) log(id string, opts sandbox.LogOptions) string {
	s.t.Helper()
	r, err := s.eng.Logs(s.ctx(), id, opts)
	if err != nil {
		s.t.Fatalf("Logs(%s): %v", id, err)
	}
	defer r.Close()
	all, err := io.ReadAll(io.LimitReader(r, 1<<20))
	if err != nil {
		s.t.Fatalf("reading the log of %s: %v", id, err)
	}
	return string(all)
}
