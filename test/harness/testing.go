package harness

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
)

// closeTimeout bounds the removal of a server and all that it made.
const closeTimeout = 3 * time.Minute

// importTimeout bounds the import of an archive, which may have a gigabyte.
const importTimeout = 3 * time.Minute

// Require skips the test, or fails it where EnvRequire says so.
func Require(t testing.TB, ok bool, what string) {
	t.Helper()
	if ok {
		return
	}
	if os.Getenv(EnvRequire) != "" {
		t.Fatalf("this test needs %s", what)
	}
	t.Skipf("needs %s", what)
}

// RequireProgram is Require for a program in the path.
func RequireProgram(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	Require(t, err == nil, "the program "+name)
	return path
}

// Binary returns the paddock binary. The test needs root and the binary.
func Binary(t testing.TB) string {
	t.Helper()
	Require(t, os.Geteuid() == 0, "root: paddock makes namespaces, cgroups and interfaces")
	path := BinaryPath()
	_, err := os.Stat(path)
	Require(t, err == nil, "the paddock binary at "+path+": run `make build`")
	return path
}

// BinaryPath is where the paddock binary is looked for.
func BinaryPath() string {
	if path := os.Getenv(EnvBinary); path != "" {
		return path
	}
	path, _ := filepath.Abs(filepath.Join(root(), "bin", "paddock"))
	return path
}

// root is the top of the checkout: the nearest directory above with a go.mod.
func root() string {
	dir, err := os.Getwd()
	if err != nil {
		return "."
	}
	for dir != "/" {
		if exists(filepath.Join(dir, "go.mod")) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return "."
}

// Root is the top of the checkout.
func Root() string { return root() }

// RunTests runs the tests of a package that share a server, and returns the exit
// code. What killed runs have left is removed before. Afterwards shared says which
// server there is, nil when no test needed it, and which directory to remove.
func RunTests(m *testing.M, shared func() (s *Server, work string)) int {
	ctx := context.Background()
	if os.Geteuid() == 0 {
		SweepStale(ctx, BinaryPath())
	}
	code := m.Run()
	s, work := shared()
	if s != nil {
		ctx, cancel := context.WithTimeout(ctx, closeTimeout)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			fmt.Printf("FAIL: closing the shared server:\n%v\n", err)
			code = max(code, 1)
		}
		if code != 0 && testing.Verbose() {
			fmt.Printf("the shared server's log ends with:\n%s\n", s.LogTail(16<<10))
		}
	}
	if work != "" {
		os.RemoveAll(work)
	}
	if dir, err := RunDir(); err == nil {
		os.RemoveAll(dir)
	}
	return code
}

// StarterImage is where scripts/starter-image.sh keeps the starter image's
// archive. The test needs it.
func StarterImage(t testing.TB) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cache, "paddock", "starter.tar")
	_, err = os.Stat(path)
	Require(t, err == nil, "the starter image at "+path+": run scripts/starter-image.sh")
	return path
}

// ImportFile imports an archive under a name.
func (s *Server) ImportFile(ctx context.Context, path, name string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(ctx, importTimeout)
	defer cancel()
	_, err = s.Client.ImportImage(ctx, f, name)
	return err
}

// New starts a server for one test. When the test ends everything of it is
// removed, and what is left behind fails the test.
func New(t testing.TB, settings map[string]string, args ...string) *Server {
	t.Helper()
	o := Options{Binary: Binary(t), Settings: settings, Args: args}
	var err error
	if o.RunDir, err = RunDir(); err != nil {
		t.Fatal(err)
	}
	if o.DataDir, err = os.MkdirTemp("", "paddock-test-"); err != nil {
		t.Fatal(err)
	}
	return start(t, o)
}

// NewAt is New with a data directory that the caller has made and removes.
func NewAt(t testing.TB, dataDir string, settings map[string]string) *Server {
	t.Helper()
	o := Options{Binary: Binary(t), DataDir: dataDir, Settings: settings}
	var err error
	if o.RunDir, err = RunDir(); err != nil {
		t.Fatal(err)
	}
	return start(t, o)
}

func start(t testing.TB, o Options) *Server {
	t.Helper()
	if err := Remember(o.RunDir, o.DataDir); err != nil {
		t.Fatal(err)
	}
	s, err := Launch(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Errorf("%v", err)
		}
		if t.Failed() {
			t.Logf("the server's log ends with:\n%s", s.LogTail(16<<10))
		}
		if strings.HasPrefix(filepath.Base(o.DataDir), "paddock-test-") {
			os.RemoveAll(o.DataDir)
		}
		forget(o.RunDir, o.DataDir)
	})
	return s
}

// Create makes a sandbox, waits until it has left Pending, and deletes it when
// the test ends. It must not fail.
func (s *Server) Create(t testing.TB, r client.CreateRequest) *client.Sandbox {
	t.Helper()
	if r.Wait == 0 {
		r.Wait = time.Minute
	}
	if r.Timeout == 0 {
		r.Timeout = 15 * time.Minute
	}
	sb, err := s.Client.Create(t.Context(), r)
	if sb != nil {
		s.Forget(t, sb.ID)
	}
	if err != nil {
		t.Fatalf("creating a sandbox of %q: %v", r.Image, err)
	}
	if sb.Status.State == client.StatePending {
		t.Fatalf("sandbox %s is still Pending after %s: %s", sb.ID, r.Wait, sb.Status.Message)
	}
	return sb
}

// Forget deletes a sandbox when the test ends, if it is still there.
func (s *Server) Forget(t testing.TB, id string) {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if s.PID() == 0 {
			return // the server's own clean-up comes next
		}
		if err := s.Client.Delete(ctx, id); err != nil && !client.IsNotFound(err) {
			t.Errorf("deleting sandbox %s: %v", id, err)
		}
	})
}

// Shell runs a line in a sandbox and returns what it printed and its exit code.
func (s *Server) Shell(t testing.TB, id, line string) (stdout, stderr string, code int) {
	t.Helper()
	return s.Run(t, id, client.Command{Shell: line})
}

// Run runs a command in a sandbox.
func (s *Server) Run(t testing.TB, id string, cmd client.Command) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var out, errOut strings.Builder
	res, err := s.Client.Run(ctx, id, cmd, client.Output{Stdout: &out, Stderr: &errOut})
	if err != nil {
		t.Fatalf("running %q%q in %s: %v", cmd.Shell, cmd.Argv, id, err)
	}
	return out.String(), errOut.String(), res.ExitCode
}

// Must runs a line that has to succeed and returns what it printed, without
// space at the ends.
func (s *Server) Must(t testing.TB, id, line string) string {
	t.Helper()
	out, errOut, code := s.Shell(t, id, line)
	if code != 0 {
		t.Fatalf("%q in %s ended with %d: %s%s", line, id, code, out, errOut)
	}
	return strings.TrimSpace(out)
}

// State waits until a sandbox is in a state and returns it.
func (s *Server) State(t testing.TB, id, want string) *client.Sandbox {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var last *client.Sandbox
	for delay := 2 * time.Millisecond; ; delay = min(2*delay, 200*time.Millisecond) {
		sb, err := s.Client.Get(ctx, id)
		if err == nil {
			last = sb
			if sb.Status.State == want {
				return sb
			}
		}
		if ctx.Err() != nil || err != nil {
			t.Fatalf("sandbox %s did not become %s: last seen %+v, %v", id, want, last, err)
		}
		time.Sleep(delay)
	}
}

// Gone waits until a sandbox does not exist any more.
func (s *Server) Gone(t testing.TB, id string, limit time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for {
		_, err := s.Client.Get(ctx, id)
		if client.IsNotFound(err) {
			return err
		}
		if ctx.Err() != nil || err != nil {
			t.Fatalf("sandbox %s is not gone: %v", id, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
