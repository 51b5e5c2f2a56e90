// Package gvisortest finds the runsc that tests use.
package gvisortest

import (
	"os"
	"path/filepath"
	"testing"
)

// Runsc returns the path of a runsc: $PADDOCK_RUNSC, or what scripts/runsc.sh
// has built. Without one the test is skipped or, where nothing may be skipped
// for a lack, fails.
func Runsc(t testing.TB) string {
	t.Helper()
	path := os.Getenv("PADDOCK_RUNSC")
	if path == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		path = filepath.Join(cache, "paddock", "runsc")
	}
	if _, err := os.Stat(path); err == nil {
		return path
	}
	const lack = "there is no runsc; build it with scripts/runsc.sh"
	if os.Getenv("PADDOCK_TEST_REQUIRE") == "1" {
		t.Fatal(lack)
	}
	t.Skip(lack)
	return ""
}
