package code

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// environment returns a directory that scripts/clients.sh has filled with
// packages (see test/clients/environments). Where it is missing the test is
// skipped, or fails if PADDOCK_TEST_REQUIRE says that nothing may be missing.
func environment(t testing.TB, name string) string {
	t.Helper()
	list, err := os.ReadFile("../../../test/clients/environments")
	if err != nil {
		t.Fatal(err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(list)) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[0] != name {
			continue
		}
		sum := sha256.Sum256([]byte(strings.Join(fields[1:], " ")))
		dir := filepath.Join(cache, "paddock", "clients", name+"-"+hex.EncodeToString(sum[:6]))
		if why, err := os.ReadFile(dir + ".unavailable"); err == nil {
			t.Skipf("%s can't be had: %s", name, strings.TrimSpace(string(why)))
		}
		if _, err := os.Stat(filepath.Join(dir, ".complete")); err != nil {
			if os.Getenv("PADDOCK_TEST_REQUIRE") != "" {
				t.Fatalf("needs %s: run scripts/clients.sh", dir)
			}
			t.Skipf("needs %s: run scripts/clients.sh", dir)
		}
		return dir
	}
	t.Fatalf("there is no environment %q", name)
	return ""
}
