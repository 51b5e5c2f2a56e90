package test

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
)

// Code that forks for ever, exits, fills memory or is as long as it may be: its
// run ends with an error that says so, or can be ended, and the sandbox goes on.
func TestHarmfulCode(t *testing.T) {
	s := withStarter(t)
	sb := s.Create(t, client.CreateRequest{Image: starterImage, Entrypoint: forever, ResourceLimits: map[string]string{"pids": "96", "memory": "256Mi", "cpu": "500m"}})
	run := func(t *testing.T, source string) (*client.CodeOutcome, string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var out bytes.Buffer
		res, err := s.Client.RunCode(ctx, sb.ID, client.Code{Language: "python", Source: source}, client.CodeOutput{Stdout: &out})
		return res, out.String(), err
	}
	for name, source := range map[string]string{
		"exits":        "import os\nos._exit(3)",
		"kills itself": "import os\nos.kill(os.getpid(), 9)",
		"forks for ever": `import os, time
n = 0
while True:
    if os.fork() == 0:
        time.sleep(1000)
        os._exit(0)`,
		"fills memory": "x = []\nwhile True: x.append(bytearray(b'x' * (1 << 20)))",
		"deep":         "def f(): f()\nf()",
	} {
		t.Run(name, func(t *testing.T) {
			res, _, err := run(t, source)
			if err != nil {
				t.Fatalf("%v", err)
			}
			if res.Err == nil || res.Err.Name == "" {
				t.Errorf("it ended with %+v", res)
			}
			// What it left running is nobody's any more.
			if err := s.Client.DeleteCodeContexts(t.Context(), sb.ID, "python"); err != nil {
				t.Error(err)
			}
			if res, out, err := run(t, "print('alive')"); err != nil || res.Err != nil || out != "alive\n" {
				t.Errorf("the next run: %q %+v %v", out, res, err)
			}
		})
	}
	res, out, err := run(t, "x = '"+strings.Repeat("y", 9<<20)+"'\nprint(len(x))")
	if err != nil || res.Err != nil || out != "9437184\n" {
		t.Errorf("9 MiB of code: %q %+v %v", out, res, err)
	}
	if _, _, err := run(t, strings.Repeat("#", 10<<20+1)); err == nil || !strings.Contains(err.Error(), "10485760") {
		t.Errorf("more code than is taken: %v", err)
	}
	if err := s.Client.Delete(t.Context(), sb.ID); err != nil {
		t.Error(err)
	}
	for _, trace := range s.AwaitNoTraces(sb.ID) {
		t.Errorf("left: %s", trace)
	}
}

// A command that kills every process but its own kills the entrypoint, and the
// sandbox with it, which says so.
func TestCommandKillsEverything(t *testing.T) {
	s := sharedServer(t)
	sb := sleeper(t, s)
	_, err := s.Client.Run(t.Context(), sb.ID, client.Command{Shell: "kill -9 -1; kill -9 1; sleep 98765"}, client.Output{})
	if err == nil {
		t.Error("the command's stream ended with success")
	}
	if got := s.State(t, sb.ID, client.StateFailed); got.Status.Reason != "KILLED" || !strings.Contains(got.Status.Message, "SIGKILL") {
		t.Errorf("%+v", got.Status)
	}
	for _, trace := range s.AwaitEnded(sb.ID) {
		t.Errorf("left: %s", trace)
	}
}
