package command

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// FuzzRequest checks whatever a client may post: a request becomes something
// that execve takes, or is refused with the caller's fault in words.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		`{"command":"echo hi"}`, `{"argv":["true","a b"],"cwd":"/tmp","envs":{"A":"b"},"uid":1,"gid":2}`,
		`{"command":"x","timeout":-1}`, `{"command":"x","timeout":9223372036854775807}`, `{"command":"x","uid":4294967296}`,
		`{"command":"a\u0000b"}`, `{"argv":["a\u0000"]}`, `{"argv":[""]}`, `{"command":"x","envs":{"":"","a=b":"c","A":"\u0000"}}`,
		`{"command":"x","cwd":"../../proc/self/fd/0"}`, `{}`, `null`,
	} {
		f.Add([]byte(s), 0)
	}
	// Text that is too long for an argument goes another way.
	f.Add([]byte(`{"command":"x"}`), maxArg+1)
	g := guest.New(map[string]string{"PATH": os.Getenv("PATH")}, account.Identity{UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}, f.TempDir())
	f.Fuzz(func(t *testing.T, body []byte, more int) {
		var req Request
		if json.Unmarshal(body, &req) != nil {
			return
		}
		if req.Command != nil && more > 0 {
			long := *req.Command + strings.Repeat(" ", min(more, 2*maxArg))
			req.Command = &long
		}
		p, err := prepare(g, &req)
		if err != nil {
			var refusal *web.Error
			if !errors.As(err, &refusal) || refusal.Status < 400 || refusal.Status > 499 {
				t.Errorf("%q is refused with %v", body, err)
			}
			return
		}
		if p.script != nil {
			defer p.script.Close()
		}
		if p.timeout < 0 {
			t.Errorf("time-out %s", p.timeout)
		}
		for _, s := range append(append([]string{p.spec.Path, p.spec.Dir}, p.spec.Argv...), p.spec.Env...) {
			if strings.ContainsRune(s, 0) || len(s) > maxArg {
				t.Errorf("%.40q, %d bytes, is no argument", s, len(s))
			}
		}
		if p.err == nil && (p.spec.Path == "" || len(p.spec.Argv) == 0) {
			t.Errorf("nothing to run: %+v", p.spec)
		}
	})
}

// FuzzParseKey: only an id in the form in which ids are shown names a command.
func FuzzParseKey(f *testing.F) {
	f.Add("0123456789abcdef0123456789abcdef")
	f.Add("0123456789ABCDEF0123456789ABCDEF")
	f.Add("../../etc")
	f.Fuzz(func(t *testing.T, id string) {
		if _, ok := parseKey(id); ok && (len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "") {
			t.Errorf("%q was taken", id)
		}
	})
}
