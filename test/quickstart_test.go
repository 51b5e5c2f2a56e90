package test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/test/harness"
)

var block = regexp.MustCompile("(?s)<!-- test:([a-z]+) -->\\s*```[a-z]*\\n(.*?)```")

// documented returns the block of a document with the given mark, with this test's
// server in place of the default one.
func documented(t *testing.T, s *harness.Server, name, mark string) string {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join(harness.Root(), name))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range block.FindAllStringSubmatch(string(doc), -1) {
		if m[1] == mark {
			return strings.NewReplacer(
				"/var/lib/paddock/api-key", filepath.Join(s.DataDir, "api-key"),
				"127.0.0.1:8080", strings.TrimPrefix(s.URL, "http://"),
			).Replace(m[2])
		}
	}
	t.Fatalf("%s has no block marked test:%s", name, mark)
	return ""
}

func script(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(harness.CleanEnviron(), "no_proxy=127.0.0.1", "NO_PROXY=127.0.0.1")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

func TestReadmeWithCurl(t *testing.T) {
	harness.RequireProgram(t, "curl")
	s := withStarter(t)
	before := total(t, s)
	out := script(t, "bash", "-euo", "pipefail", "-c", documented(t, s, "README.md", "curl"))
	if !strings.Contains(out, `"text":"42"`) && !strings.Contains(out, `"42`) {
		t.Errorf("the command's output is not there: %s", out)
	}
	if after := total(t, s); after != before {
		t.Errorf("the quick start leaves %d sandboxes", after-before)
	}
}

func TestReadmeWithPython(t *testing.T) {
	s := withStarter(t)
	python := sdkPython(t, newestSDK)
	out := script(t, python, "-c", documented(t, s, "README.md", "python"))
	if !strings.Contains(out, "Hello from paddock\nhello\n") {
		t.Errorf("it printed %q", out)
	}
}
