package execd_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

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

func TestTrust(t *testing.T) {
	b := newBox(t)
	if status, body := b.trust(hostapi.Trust{}); status != http.StatusServiceUnavailable {
		t.Errorf("before the claim: %d %s", status, body)
	}
	b.claim(hostapi.Claim{Entrypoint: []string{"sleep", "infinity"}, Env: map[string]string{"KEPT": "yes", "CHANGED": "no"}})
	path := filepath.Join(b.dir, "etc", "paddock", "ca.crt")
	told := hostapi.Trust{Files: []hostapi.TrustFile{{Path: path, Content: []byte("one")}}, Env: map[string]string{"CHANGED": "yes", "ADDED": "yes"}}
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
	for name, bad := range map[string]struct {
		told hostapi.Trust
		code string
	}{
		"relative":  {hostapi.Trust{Files: []hostapi.TrustFile{{Path: "ca.crt"}}}, "INVALID_REQUEST_BODY"},
		"below":     {hostapi.Trust{Files: []hostapi.TrustFile{{Path: path + "/x"}}, Env: map[string]string{"BAD": "x"}}, hostapi.CodeTrustUnwritable},
		"directory": {hostapi.Trust{Files: []hostapi.TrustFile{{Path: b.dir}}, Env: map[string]string{"BAD": "x"}}, hostapi.CodeTrustUnwritable},
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
