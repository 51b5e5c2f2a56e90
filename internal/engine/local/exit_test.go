package local

import (
	"context"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// hog uses more than all memory.
const hog = "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done"

// An entrypoint that outlived a kill for memory and is killed by somebody later
// was once reported as out of memory.
func TestKilledAfterSurvivedOOM(t *testing.T) {
	tests := []struct {
		name string
		// script runs as the entrypoint after a kill for memory that it outlived.
		script string
		// second: there is a second kill for memory.
		second bool
		// adopted: a restarted server has the sandbox.
		adopted bool
		want    sandbox.Exit
	}{
		{name: "killed", script: "kill -9 $$", want: sandbox.Exit{Code: -1, Signal: 9}},
		{name: "shell says that its command was killed", script: "sh -c 'kill -9 $$'; exit $?", want: sandbox.Exit{Code: 137}},
		{name: "terminated", script: "kill -15 $$", want: sandbox.Exit{Code: -1, Signal: 15}},
		{name: "terminated at once", script: "sh -c '" + hog + "'; kill -15 $$", second: true, want: sandbox.Exit{Code: -1, Signal: 15}},
		{name: "out of memory", script: hog, second: true, want: sandbox.Exit{Code: -1, Signal: 9, OutOfMemory: true}},
		{name: "command out of memory", script: "sh -c '" + hog + "'; exit $?", second: true, want: sandbox.Exit{Code: 137, OutOfMemory: true}},
		{name: "killed, adopted", script: "kill -9 $$", adopted: true, want: sandbox.Exit{Code: -1, Signal: 9}},
	}
	h := newHost(t)
	// Longer than a busy machine takes from a kill to what a script does next.
	h.opts.oomSettle = time.Second
	e, _ := h.open(t)
	defer func() { e.Close() }()
	var recorded []*sandbox.Sandbox
	ids := make([]string, len(tests))
	for i, test := range tests {
		var spec *sandbox.Spec
		id, err := create(t, e, func(s *sandbox.Spec) {
			s.Limits.MemoryBytes = 64 << 20
			// It waits without taking memory, which would have execd killed, too,
			// while that of the one that is killed is still being freed.
			s.Entrypoint = []string{"sh", "-c", "mkfifo /tmp/go; read x < /tmp/go; " + test.script}
			spec = s
		})
		if err != nil {
			t.Fatal(err)
		}
		ids[i] = id
		recorded = append(recorded, &sandbox.Sandbox{ID: id, Spec: *spec, Token: "token-of-" + id})
	}
	for i := range tests {
		run(t, e, ids[i], "sh -c '"+hog+"'")
		if n, err := findShell(t, e, ids[i]).group.OOMKills(); err != nil || n < 1 {
			t.Fatalf("killed for memory: %d, %v", n, err)
		}
	}
	for i, test := range tests {
		if test.adopted {
			continue
		}
		awaitSurvived(t, e, ids[i], 1)
		run(t, e, ids[i], "echo > /tmp/go")
	}
	ends := map[string]sandbox.Exit{}
	wantEnds := func(e *Engine, n int) {
		t.Helper()
		for len(ends) < n {
			select {
			case exit := <-e.Exits():
				ends[exit.ID] = exit
			case <-time.After(time.Minute):
				t.Fatal("an end was not reported")
			}
		}
	}
	wantEnds(e, len(tests)-1)
	last := len(tests) - 1
	e.Close()
	e, _ = h.open(t, recorded[last:]...)
	awaitSurvived(t, e, ids[last], 1)
	run(t, e, ids[last], "echo > /tmp/go")
	wantEnds(e, len(tests))
	for i, test := range tests {
		got := ends[ids[i]]
		got.ID = ""
		if got != test.want {
			t.Errorf("%s: got %+v, want %+v", test.name, got, test.want)
		}
	}
}

// awaitSurvived waits until the sandbox's entrypoint counts as having outlived n
// kills.
func awaitSurvived(t *testing.T, e *Engine, id string, n int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		e.mu.RLock()
		ooms := e.live[id].ooms
		e.mu.RUnlock()
		survived := int64(-1)
		if ooms != nil {
			ooms.mu.Lock()
			survived = ooms.survived
			ooms.mu.Unlock()
		}
		if survived >= n {
			return
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("%d kills survived, want %d", survived, n)
		}
	}
}
