package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/execd/isolated"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Copies work where overlayfs takes paths only, and on a disk of the sandbox's
// own.
func TestIsolatedCopies(t *testing.T) {
	for _, byPath := range []bool{false, true} {
		for _, disk := range []bool{false, true} {
			t.Run(fmt.Sprintf("overlay by path %v, limited disk %v", byPath, disk), func(t *testing.T) {
				h := newHost(t)
				h.opts.OverlayByPath = byPath
				e, _ := h.open(t)
				defer e.Close()
				change := func(*sandbox.Spec) {}
				if disk {
					needDisks(t)
					change = limited(64)
				}
				id := mustCreate(t, e, change)
				run(t, e, id, "mkdir /work; echo old > /work/file")
				status, body := isolatedCall(t, e, id, "POST", "session", `{"workspace":{"path":"/work"}}`)
				if status != http.StatusCreated {
					t.Fatalf("status %d: %s", status, body)
				}
				_, rest, _ := strings.Cut(body, `"session_id":"`)
				session := "session/" + rest[:36]
				if status, body := isolatedCall(t, e, id, "POST", session+"/run", `{"code":"echo new > file; rm -f none"}`); status != http.StatusOK || !strings.Contains(body, "execution_complete") {
					t.Errorf("run: status %d: %s", status, body)
				}
				if out, _ := run(t, e, id, "cat /work/file"); out != "old" {
					t.Errorf("before the commit the sandbox has %q", out)
				}
				if status, body := isolatedCall(t, e, id, "POST", session+"/commit", ""); status != http.StatusOK {
					t.Errorf("commit: status %d: %s", status, body)
				}
				if out, _ := run(t, e, id, "cat /work/file"); out != "new" {
					t.Errorf("after the commit the sandbox has %q", out)
				}
				if err := e.Remove(context.Background(), id); err != nil {
					t.Error(err)
				}
				if disk {
					awaitNoLoops(t, h)
				}
			})
		}
	}
}

// isolatedCall sends one request about isolated runs.
func isolatedCall(t *testing.T, e *Engine, id, method, path, body string) (int, string) {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return e.Dial(ctx, id, sandbox.IsolatedPort)
	}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://execd/v1/isolated/"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(hostapi.TokenHeader, "token-of-"+id)
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// What is mounted in the sandbox stays mounted, whatever a session made of the
// place beneath.
func TestIsolatedCommitKeepsMounts(t *testing.T) {
	e := newEngine(t)
	id := mustCreate(t, e, nil)
	run(t, e, id, "mkdir -p /work/gone/deep /work/dir; cd /work; for f in changed removed linked gone/deep/file madedir free; do echo old > $f; done; echo mounted > /mounted; mkdir /mounteddir; touch /mounteddir/theirs")
	s := findShell(t, e, id)
	mount := func(what, where string) {
		t.Helper()
		out, err := exec.Command("nsenter", "-t", strconv.Itoa(s.pid), "-m", "mount", "--bind", what, where).CombinedOutput()
		if err != nil {
			t.Fatalf("mounting %s: %v: %s", where, err, out)
		}
	}
	files := []string{"/work/changed", "/work/removed", "/work/linked", "/work/gone/deep/file", "/work/madedir"}
	for _, f := range files {
		mount("/mounted", f)
	}
	mount("/mounteddir", "/work/dir")
	session := newIsolatedSession(t, e, id, `{"workspace":{"path":"/work"}}`)
	code := "echo new > changed; rm removed; ln -sf x linked; rm -r gone; rm madedir; mkdir madedir; echo new > madedir/f; echo new > dir/f; echo new > free"
	if status, body := isolatedCall(t, e, id, "POST", session+"/run", `{"code":"`+code+`"}`); status != http.StatusOK || strings.Contains(body, `"error"`) {
		t.Fatalf("run: status %d: %s", status, body)
	}
	status, body := isolatedCall(t, e, id, "POST", session+"/commit", "")
	if status != http.StatusOK {
		t.Fatalf("commit: status %d: %s", status, body)
	}
	var answer isolated.Commit
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		t.Fatal(err)
	}
	skipped := map[string]string{}
	for _, sk := range answer.Skipped {
		skipped[sk.Path] = sk.Reason
	}
	for _, p := range []string{"/work/changed", "/work/removed", "/work/linked", "/work/gone", "/work/madedir", "/work/dir"} {
		if skipped[p] != errMounted.Error() {
			t.Errorf("%s: the reason is %q", p, skipped[p])
		}
	}
	if len(skipped) != 6 || answer.Committed != 1 {
		t.Errorf("the answer is %s", body)
	}
	if out, _ := run(t, e, id, "cat "+strings.Join(files, " ")+"; ls -A /work/dir; ls -A /mounteddir; cat /work/free; ls -A /work | grep commit"); out != strings.Repeat("mounted\n", len(files))+"theirs\ntheirs\nnew" {
		t.Errorf("the sandbox has %q", out)
	}
}

// What the copies of files and directories have as attributes of users, and that
// alone, is what they have afterwards.
func TestIsolatedCommitTakesXattrs(t *testing.T) {
	e := newEngine(t)
	id := mustCreate(t, e, nil)
	run(t, e, id, "mkdir -p /work/dir /work/plain; echo old > /work/file; echo old > /work/rest")
	s := findShell(t, e, id)
	root := fmt.Sprintf("/proc/%d/root", s.pid)
	set := func(path, name, value string) {
		t.Helper()
		if err := unix.Lsetxattr(path, name, []byte(value), 0); err != nil {
			t.Fatalf("%s of %s: %v", name, path, err)
		}
	}
	set(root+"/work/file", "user.old", "1")
	set(root+"/work/file", "user.kept", "2")
	set(root+"/work/dir", "user.old", "3")
	session := newIsolatedSession(t, e, id, `{"workspace":{"path":"/work"}}`)
	is := s.isolation.all()[0]
	inside := fmt.Sprintf("/proc/%d/root/work/", is.record.PID)
	if status, body := isolatedCall(t, e, id, "POST", session+"/run", `{"code":"echo new > file; mkdir made; touch made/f many large; chmod 700 dir"}`); status != http.StatusOK || strings.Contains(body, `"error"`) {
		t.Fatalf("run: status %d: %s", status, body)
	}
	for _, name := range []string{"file", "dir"} {
		if err := unix.Lremovexattr(inside+name, "user.old"); err != nil {
			t.Fatal(err)
		}
	}
	set(inside+"file", "user.new", strings.Repeat("v", 2000))
	set(inside+"dir", "user.new", "\x00\xff")
	set(inside+"made", "user.made", "")
	set(inside+"made/f", "trusted.mine", "x")
	set(inside+"made/f", "user.f", "f")
	status, body := isolatedCall(t, e, id, "POST", session+"/commit", "")
	if status != http.StatusOK || !strings.Contains(body, `"skipped":[]`) {
		t.Fatalf("commit: status %d: %s", status, body)
	}
	for path, want := range map[string]string{
		"file": "user.kept=2 user.new=" + strings.Repeat("v", 2000), "dir": "user.new=\x00\xff", "made": "user.made=", "made/f": "user.f=f", "plain": "",
	} {
		f, err := os.Open(root + "/work/" + path)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, maxXattrValue)
		n, err := unix.Flistxattr(int(f.Fd()), buf)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
			if name == "" || strings.HasPrefix(name, "security.") {
				continue
			}
			value := make([]byte, maxXattrValue)
			n, err := unix.Fgetxattr(int(f.Fd()), name, value)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, name+"="+string(value[:n]))
		}
		f.Close()
		slices.Sort(got)
		if text := strings.Join(got, " "); text != want {
			t.Errorf("%s has %.100q, want %.100q", path, text, want)
		}
	}
}

// A file with more attributes than a commit takes is left as it was.
func TestCopyXattrs(t *testing.T) {
	open := func(name string) *os.File {
		t.Helper()
		// In memory, where a file may have many.
		f, err := os.CreateTemp("/dev/shm", "paddock-test-"+name)
		if err != nil {
			t.Skip(err)
		}
		t.Cleanup(func() {
			f.Close()
			os.Remove(f.Name())
		})
		return f
	}
	src, dst := open("src"), open("dst")
	if err := unix.Fsetxattr(int(src.Fd()), "user.overlay.opaque", []byte("y"), 0); err != nil {
		t.Skipf("the filesystem of temporary files has no attributes: %v", err)
	}
	if err := copyXattrs(int(dst.Fd()), int(src.Fd())); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Flistxattr(int(dst.Fd()), nil); n != 0 || err != nil {
		t.Errorf("an overlay's own attribute was copied: %d, %v", n, err)
	}
	for i := range maxXattrs + 1 {
		if err := unix.Fsetxattr(int(src.Fd()), fmt.Sprintf("user.%d", i), nil, 0); err != nil {
			t.Skipf("the filesystem of temporary files holds %d attributes: %v", i, err)
		}
	}
	if err := copyXattrs(int(dst.Fd()), int(src.Fd())); !errors.Is(err, errTooManyXattrs) {
		t.Errorf("got %v", err)
	}
}

// Who waits for a turn waits no longer than the request.
func TestIsolatedTurns(t *testing.T) {
	e := newEngine(t)
	id := mustCreate(t, e, nil)
	session := newIsolatedSession(t, e, id, `{"workspace":{"path":"/work"}}`)
	a := &isolatedAPI{e: e, s: findShell(t, e, id)}
	is := a.s.isolation.find(strings.TrimPrefix(session, "session/"))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	call := func(ctx context.Context, f func(http.ResponseWriter, *http.Request) error) error {
		r := httptest.NewRequestWithContext(ctx, "POST", "/", nil)
		r.SetPathValue("session", is.record.ID)
		return f(httptest.NewRecorder(), r)
	}
	hold := func(turns *turns, n int) (free func()) {
		var leave []func()
		for range n {
			f, err := turns.take(t.Context(), n)
			if err != nil {
				t.Fatal(err)
			}
			leave = append(leave, f)
		}
		return func() {
			for _, f := range leave {
				f()
			}
		}
	}
	free := hold(&a.s.isolation.walks, maxWalks)
	for _, f := range []func(http.ResponseWriter, *http.Request) error{a.diff, a.commit} {
		if err := call(ended, f); !errors.Is(err, context.Canceled) {
			t.Errorf("with all walks taken: %v", err)
		}
	}
	free()
	free = hold(&is.applying, 1)
	if err := call(ended, a.commit); !errors.Is(err, context.Canceled) {
		t.Errorf("while another one commits: %v", err)
	}
	if err := call(t.Context(), a.diff); err != nil {
		t.Errorf("comparing while another one commits: %v", err)
	}
	free()
	for range maxWalks + 1 {
		for _, f := range []func(http.ResponseWriter, *http.Request) error{a.diff, a.commit} {
			if err := call(t.Context(), f); err != nil {
				t.Error(err)
			}
		}
	}
}

// An idle session that can't be ended is not forgotten.
func TestIsolatedIdleIsTriedAgain(t *testing.T) {
	e := newEngine(t)
	id := mustCreate(t, e, nil)
	session := newIsolatedSession(t, e, id, `{"workspace":{"path":"/work"},"idle_timeout_seconds":3600}`)
	s := findShell(t, e, id)
	is := s.isolation.find(strings.TrimPrefix(session, "session/"))
	stuck := filepath.Join(is.dir, "stuck")
	if err := os.Mkdir(stuck, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", stuck, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(stuck, unix.MNT_DETACH) })
	is.mu.Lock()
	is.used = time.Now().Add(-2 * time.Hour)
	is.mu.Unlock()
	e.endIdle(s, is)
	if s.isolation.find(is.record.ID) != is {
		t.Fatal("the session was forgotten")
	}
	if _, body := isolatedCall(t, e, id, "GET", session, ""); !strings.Contains(body, isolated.Dead) {
		t.Errorf("its state is %s", body)
	}
	if err := unix.Unmount(stuck, 0); err != nil {
		t.Fatal(err)
	}
	e.endIdle(s, is)
	if s.isolation.find(is.record.ID) != nil {
		t.Error("the session is still there")
	}
	if _, err := os.Stat(is.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its directory: %v", err)
	}
	// One that is given back after the sandbox has gone stays away.
	s.isolation.close()
	if s.isolation.giveBack(is) || len(s.isolation.all()) > 0 {
		t.Error("it was put back into a sandbox that ends")
	}
}

func findShell(t *testing.T, e *Engine, id string) *shell {
	t.Helper()
	s, err := e.find(id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// newIsolatedSession makes a session, and returns its path.
func newIsolatedSession(t *testing.T, e *Engine, id, settings string) string {
	t.Helper()
	status, body := isolatedCall(t, e, id, "POST", "session", settings)
	if status != http.StatusCreated {
		t.Fatalf("status %d: %s", status, body)
	}
	var created isolated.Created
	if err := json.Unmarshal([]byte(body), &created); err != nil {
		t.Fatal(err)
	}
	return "session/" + created.ID
}
