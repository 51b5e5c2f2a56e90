package clients

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/test/harness"
)

const (
	// scriptTimeout bounds one script.
	scriptTimeout = 2 * time.Minute
	// reportLimit bounds one line of a script's report, noiseLimit what is kept
	// of the rest of its output.
	reportLimit = 1 << 20
	noiseLimit  = 64 << 10
	// slowCheck is from how many seconds on a check's time is logged.
	slowCheck = 2
)

// report is a line that a script prints.
type report struct {
	Check  string
	OK     bool
	Skip   string
	Detail string
	// Seconds is how long the check took.
	Seconds float64
}

// environment returns the directory of an installed environment. The test is
// skipped when the registry does not serve it.
func environment(t *testing.T, name string) string {
	t.Helper()
	dir, err := environmentDir(name)
	if err != nil {
		t.Fatal(err)
	}
	if why, err := os.ReadFile(dir + ".unavailable"); err == nil {
		t.Skipf("the client can't be had: %s", strings.TrimSpace(string(why)))
	}
	_, err = os.Stat(filepath.Join(dir, ".complete"))
	harness.Require(t, err == nil, "the client's environment "+dir+": run scripts/clients.sh")
	return dir
}

// environ is the environment of a client that shall talk to the server. Nothing
// of it comes from the person who runs the tests.
func environ(t *testing.T, s *harness.Server, extra ...string) []string {
	return append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "LANG=C.UTF-8",
		"PYTHONDONTWRITEBYTECODE=1",
		"OPEN_SANDBOX_DOMAIN=" + strings.TrimPrefix(s.URL, "http://"),
		"OPEN_SANDBOX_API_KEY=" + s.Key,
		"TEST_IMAGE=" + image,
	}, extra...)
}

// runScript runs a client's script and makes a subtest of each of its checks.
// Sandboxes that it leaves fail the test.
func runScript(t *testing.T, s *harness.Server, env []string, argv ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), scriptTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = env
	cmd.WaitDelay = time.Second
	noise := &tail{max: noiseLimit}
	cmd.Stderr = noise
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	checks, failed := subtests(t, out, noise)
	if err := cmd.Wait(); err != nil {
		t.Errorf("%s: %v", strings.Join(argv[1:], " "), err)
	}
	if checks == 0 {
		t.Error("the script has checked nothing")
	}
	if t.Failed() {
		t.Logf("%d of %d checks failed; what the script said besides:\n%s", failed, checks, noise)
	}
	deleteAll(t, s)
}

// subtests reads a script's report to its end.
func subtests(t *testing.T, out io.Reader, noise io.Writer) (checks, failed int) {
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, reportLimit)
	for lines.Scan() {
		var r report
		if json.Unmarshal(lines.Bytes(), &r) != nil || r.Check == "" {
			fmt.Fprintf(noise, "%s\n", lines.Bytes())
			continue
		}
		checks++
		ok := t.Run(r.Check, func(t *testing.T) {
			if r.Skip != "" {
				t.Skip(r.Skip)
			}
			if !r.OK {
				t.Error(r.Detail)
			}
			if r.Seconds >= slowCheck {
				t.Logf("took %.1f s", r.Seconds)
			}
		})
		if !ok {
			failed++
		}
	}
	if err := lines.Err(); err != nil {
		t.Errorf("reading the script's report: %v", err)
	}
	// A line that is too long must not stop the script.
	io.Copy(io.Discard, out)
	return checks, failed
}

// deleteAll deletes every sandbox. One that is there is an error, unless the
// test has failed anyway.
func deleteAll(t *testing.T, s *harness.Server) {
	t.Helper()
	for _, left := range deleteOthers(t, s) {
		if !t.Failed() {
			t.Error(left)
		}
	}
}

// deleteOthers deletes every sandbox, and says which there were.
func deleteOthers(t *testing.T, s *harness.Server) (found []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for sb, err := range s.Client.All(ctx, client.ListOptions{}) {
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, fmt.Sprintf("sandbox %s is left, with metadata %v", sb.ID, sb.Metadata))
		if err := s.Client.Delete(ctx, sb.ID); err != nil && !client.IsNotFound(err) {
			t.Error(err)
		}
	}
	return found
}

// tail keeps the end of what is written to it. It may be used by several at
// once.
type tail struct {
	mu   sync.Mutex
	max  int
	data []byte
}

func (b *tail) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.data = append(b.data, p...)
	if over := len(b.data) - b.max; over > 0 {
		b.data = b.data[over:]
	}
	return len(p), nil
}

func (b *tail) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.data)
}
