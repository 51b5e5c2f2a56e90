package execd_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/egress/intercept"
	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
)

func (b *box) trust(t hostapi.Trust) (int, string) {
	b.t.Helper()
	body, _ := json.Marshal(t)
	return b.get("POST", hostapi.TrustPath, string(body))
}

// environment is that of a new command.
func (b *box) environment() string {
	b.t.Helper()
	status, body := b.get("POST", "/command", `{"command":"env | sort"}`)
	if status != 200 {
		b.t.Fatalf("%d %s", status, body)
	}
	return body
}

// enter runs a command in the mount namespace of the box, whose execd it waits for.
func (b *box) enter(command ...string) {
	b.t.Helper()
	if status, body := b.get("GET", "/ping", ""); status != 200 {
		b.t.Fatalf("ping: %d %s", status, body)
	}
	pid := strconv.Itoa(b.cmd.Process.Pid)
	child, err := os.ReadFile("/proc/" + pid + "/task/" + pid + "/children")
	if err != nil {
		b.t.Fatal(err)
	}
	args := append([]string{"--mount", "--target", strings.TrimSpace(string(child))}, command...)
	if out, err := exec.Command("nsenter", args...).CombinedOutput(); err != nil {
		b.t.Fatalf("%v: %v %s", command, err, out)
	}
}

// ownEtc gives a box an /etc of its own, on the root directory's filesystem, and
// returns where that is outside.
func ownEtc(t *testing.T, b *box) string {
	t.Helper()
	etc := filepath.Join(b.dir, "etc")
	if err := os.Mkdir(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	var own, root unix.Stat_t
	if err := errors.Join(unix.Stat(etc, &own), unix.Stat("/", &root)); err != nil {
		t.Fatal(err)
	}
	if own.Dev != root.Dev {
		t.Skip("temporary files are on another filesystem than the root directory")
	}
	for _, name := range []string{"passwd", "group"} {
		content, err := os.ReadFile("/etc/" + name)
		if err == nil {
			err = os.WriteFile(filepath.Join(etc, name), content, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	b.enter("mount", "--bind", etc, "/etc")
	return etc
}

func TestTrust(t *testing.T) {
	b := newBox(t)
	etc := ownEtc(t, b)
	if status, body := b.trust(hostapi.Trust{}); status != http.StatusServiceUnavailable {
		t.Errorf("before the claim: %d %s", status, body)
	}
	b.claim(hostapi.Claim{Entrypoint: []string{"sleep", "infinity"}, Env: map[string]string{"KEPT": "yes", "CHANGED": "no"}})
	path := filepath.Join(etc, "paddock", "ca.crt")
	told := hostapi.Trust{Files: []hostapi.TrustFile{{Path: intercept.CertPath, Content: []byte("one")}}, Env: map[string]string{"CHANGED": "yes", "ADDED": "yes"}}
	for _, content := range []string{"one", "two"} { // again is no fault
		told.Files[0].Content = []byte(content)
		if status, body := b.trust(told); status != 200 {
			t.Fatalf("%d %s", status, body)
		}
		st, err := os.Stat(path)
		if got, rerr := os.ReadFile(path); err != nil || rerr != nil || string(got) != content || st.Mode().Perm() != 0o644 {
			t.Errorf("the file has %q, %v %v", got, err, rerr)
		}
	}
	env := b.environment()
	for _, want := range []string{"KEPT=yes", "CHANGED=yes", "ADDED=yes"} {
		if !strings.Contains(env, want) {
			t.Errorf("%s is not in %s", want, env)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("there are %v, %v", left, err)
	}
	if err := os.Mkdir(filepath.Join(etc, "paddock", "ca-bundle.crt"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]struct {
		told hostapi.Trust
		code string
	}{
		"relative":  {hostapi.Trust{Files: []hostapi.TrustFile{{Path: "ca.crt"}}}, "INVALID_REQUEST_BODY"},
		"elsewhere": {hostapi.Trust{Files: []hostapi.TrustFile{{Path: b.dir + "/ca.crt"}}, Env: map[string]string{"BAD": "x"}}, "INVALID_REQUEST_BODY"},
		"around":    {hostapi.Trust{Files: []hostapi.TrustFile{{Path: "/etc/paddock/../ca.crt"}}}, "INVALID_REQUEST_BODY"},
		"beside":    {hostapi.Trust{Files: []hostapi.TrustFile{{Path: "/etc/paddock/x"}}}, "INVALID_REQUEST_BODY"},
		"directory": {hostapi.Trust{Files: []hostapi.TrustFile{{Path: intercept.BundlePath}}, Env: map[string]string{"BAD": "x"}}, hostapi.CodeTrustUnwritable},
		"variable":  {hostapi.Trust{Env: map[string]string{"A=B": ""}}, "INVALID_REQUEST_BODY"},
	} {
		if status, body := b.trust(bad.told); status < 400 || code(t, body) != bad.code {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	if strings.Contains(b.environment(), "BAD=") {
		t.Error("what was refused is in the environment")
	}
}

// What the sandbox puts in the way of the files has nothing written to a volume.
func TestTrustStaysOnTheRoot(t *testing.T) {
	for name, lead := range map[string]func(b *box, etc string) error{
		"link":          func(_ *box, etc string) error { return os.Symlink("/etc/volume", filepath.Join(etc, "paddock")) },
		"link to below": func(_ *box, etc string) error { return os.Symlink("/etc/volume/below", filepath.Join(etc, "paddock")) },
		"volume": func(b *box, etc string) error {
			err := os.Mkdir(filepath.Join(etc, "paddock"), 0o755)
			b.enter("mount", "--bind", "/etc/volume", "/etc/paddock")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBox(t)
			etc := ownEtc(t, b)
			if err := os.Mkdir(filepath.Join(etc, "volume"), 0o755); err != nil {
				t.Fatal(err)
			}
			b.enter("mount", "-t", "tmpfs", "volume", "/etc/volume")
			if err := lead(b, etc); err != nil {
				t.Fatal(err)
			}
			b.claim(hostapi.Claim{Entrypoint: []string{"sleep", "infinity"}})
			for _, path := range []string{intercept.CertPath, intercept.BundlePath, intercept.JavaPath} {
				status, body := b.trust(hostapi.Trust{Files: []hostapi.TrustFile{{Path: path, Content: []byte("x")}}, Env: map[string]string{"BAD": "x"}})
				if status < 400 || code(t, body) != hostapi.CodeTrustUnwritable || !strings.Contains(body, "/etc/paddock") {
					t.Errorf("%d %s", status, body)
				}
			}
			if status, body := b.get("POST", "/command", `{"command":"echo of the volume: $(ls -A /etc/volume) $BAD."}`); status != 200 || !strings.Contains(body, "of the volume: .") {
				t.Errorf("%d %s", status, body)
			}
		})
	}
}
