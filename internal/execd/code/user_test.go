package code

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
)

// nobody is a user that owns nothing (Debian's "nobody").
const nobody = 65534

// TestOtherUser runs every language as a user that is not execd's.
func TestOtherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can start processes of other users")
	}
	dir := t.TempDir()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	env := map[string]string{"PATH": otherPath(), "HOME": dir, guest.EnvFileVar: filepath.Join(dir, ".env"), "LANG": "C.UTF-8"}
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	g := guest.New(env, account.Identity{UID: nobody, GID: nobody, Home: dir}, dir)
	api := New(Options{Guest: func() *guest.Guest { return g }, Table: table})
	mux := http.NewServeMux()
	api.Routes(mux)
	srv := httptest.NewServer(mux)
	t.Cleanup(func() {
		api.Close()
		srv.Close()
	})
	s := &sandbox{t: t, api: api, url: srv.URL, dir: dir}
	for lang, code := range map[string]string{
		"python": "import os; print(os.getuid()); display(1); input", "javascript": "console.log(process.getuid())", "bash": "id -u",
		"ruby": "puts Process.uid", "r": "cat(Sys.info()[['user']], system('id -u', intern=TRUE))",
	} {
		if _, err := languageNames[lang].find(env["PATH"], dir); err != nil {
			continue
		}
		o := s.do(lang, code)
		if !strings.Contains(o.stdout, "65534") || o.errName != "" {
			t.Errorf("%s: %q %q %s %s", lang, o.stdout, o.stderr, o.errName, o.errValue)
		}
	}
	s.kernelsOfOthers()
	status, body := s.call("POST", "/code", map[string]any{"code": "ls"})
	s.refused("no commands", status, body, 500, "NOT_SUPPORTED", "name a language")
}

// kernelsOfOthers runs kernels over ports and over sockets in the file system.
func (s *sandbox) kernelsOfOthers() {
	s.t.Helper()
	text, err := os.ReadFile("testdata/hostile.py")
	if err != nil {
		s.t.Fatal(err)
	}
	program := filepath.Join(s.dir, "kernel.py")
	if err := os.WriteFile(program, text, 0o644); err != nil {
		s.t.Fatal(err)
	}
	for name, more := range map[string]string{"ports": "", "sockets": "ipykernel"} {
		s.install(name, map[string]any{"argv": []string{"python3", program, "user", "{connection_file}", more}, "language": "python"})
		if o := s.do(kernelPrefix+name, "x"); !strings.Contains(o.stdout, "said by 65534") || o.errName != "" {
			s.t.Errorf("a kernel over %s: %q %q %s %s", name, o.stdout, o.stderr, o.errName, o.errValue)
		}
	}
}

// otherPath leaves out what only root can read.
func otherPath() string {
	var kept []string
	for _, d := range filepath.SplitList(searchPath) {
		if !strings.HasPrefix(d, "/root") {
			kept = append(kept, d)
		}
	}
	return strings.Join(kept, ":")
}
