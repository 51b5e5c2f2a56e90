package test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/test/harness"
)

// Versions of the official SDK, installed by scripts/test.sh.
const (
	newestSDK = "1.1.1"
	oldestSDK = "0.1.0"
)

// sdkPython is the interpreter of the virtual environment that has a version of
// the SDK.
func sdkPython(t *testing.T, version string) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cache, "paddock", "opensandbox-"+version, "bin", "python")
	_, err = os.Stat(path)
	harness.Require(t, err == nil, "the SDK "+version+" in "+path+": run scripts/test.sh")
	return path
}

func TestOfficialSDK(t *testing.T) {
	s := withStarter(t)
	for _, c := range []struct{ name, version, script string }{
		{"newest, async", newestSDK, "sdk_async.py"},
		{"newest, sync", newestSDK, "sdk_sync.py"},
		{"oldest", oldestSDK, "sdk_oldest.py"},
	} {
		t.Run(c.name, func(t *testing.T) {
			python := sdkPython(t, c.version)
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, python, filepath.Join("python", c.script))
			cmd.Env = append(harness.CleanEnviron(),
				"OPEN_SANDBOX_DOMAIN="+strings.TrimPrefix(s.URL, "http://"), "OPEN_SANDBOX_API_KEY="+s.Key,
				"TEST_IMAGE="+starterImage, "no_proxy=127.0.0.1", "NO_PROXY=127.0.0.1")
			cmd.WaitDelay = time.Second
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			deleteMarked(t, s)
		})
	}
}

// deleteMarked removes what a script that failed has left.
func deleteMarked(t *testing.T, s *harness.Server) {
	t.Helper()
	for sb, err := range s.Client.All(t.Context(), client.ListOptions{Metadata: map[string]string{"suite": "sdk"}}) {
		if err != nil {
			t.Fatal(err)
		}
		if !t.Failed() {
			t.Errorf("sandbox %s is left", sb.ID)
		}
		s.Forget(t, sb.ID)
	}
}
