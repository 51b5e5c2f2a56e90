package code

import (
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// TestHostileKernel has kernels that misbehave during a run. Whatever they do,
// the run ends or can be ended, and the context can be used again.
func TestHostileKernel(t *testing.T) {
	need(t, "python3")
	program, err := filepath.Abs("testdata/hostile.py")
	if err != nil {
		t.Fatal(err)
	}
	broken := step{out: "said", name: kernelDied, value: "the connection to the kernel broke"}
	for mode, want := range map[string]step{
		"forged":  {out: "said\n", err: "-", result: "-"},
		"shapes":  {out: "said", err: "-", name: "Error"},
		"huge":    broken,
		"garbage": broken,
		"closes":  broken,
		"parts":   {out: "said", err: "bytes from the kernel was left out"},
		"asks":    {out: "said", err: "nobody is there to answer", name: "Interrupted", value: "v", trace: "red"},
		"twice":   {out: "said"},
		"stderr":  {out: "said", name: kernelDied, value: "exit status 9"},
		"lost":    {out: "said", err: "some of the output of this run may be missing"},
		"silent":  {out: "said", name: kernelDied, value: "gave no sign of life"},
		"flood":   {out: "said", name: kernelDied, value: "did not stop"},
	} {
		t.Run(mode, func(t *testing.T) {
			if testing.Short() && (mode == "flood" || mode == "huge" || mode == "lost" || mode == "silent") {
				t.Skip("takes its time")
			}
			t.Parallel()
			s := newSandbox(t)
			s.api.grace = 300 * time.Millisecond
			s.api.waits = kernelWaits{idle: 500 * time.Millisecond, leave: 100 * time.Millisecond}
			s.install("hostile", map[string]any{
				"argv": []string{"python3", program, mode, "{connection_file}"}, "language": "none", "interrupt_mode": "message",
			})
			id := s.make("hostile")
			resp := s.start(t.Context(), "", id, "x")
			defer resp.Body.Close()
			if mode == "silent" || mode == "flood" {
				s.stream(resp, func(o *output) bool { return o.stdout != "" })
				var asking sync.WaitGroup
				asking.Go(func() { s.call("DELETE", "/code?id="+id, nil) })
				o := s.stream(resp, nil)
				asking.Wait()
				o.stdout += "said"
				s.check(mode, want, o)
			} else {
				s.check(mode, want, s.stream(resp, nil))
			}
			if mode == "flood" {
				return
			}
			// It does so again: the context goes on.
			resp = s.start(t.Context(), "", id, "x")
			defer resp.Body.Close()
			s.stream(resp, func(o *output) bool { return o.stdout != "" })
		})
	}
}
