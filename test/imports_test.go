package test

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/paddock-sandbox/paddock/"

// Imports point downwards: what each package of ours may not import, directly
// or through others.
var forbidden = map[string][]string{
	"internal/sandbox":      {"internal/", "net/http", "database/sql", "golang.org/x/sys"},
	"internal/store":        {"internal/server", "internal/gateway", "internal/engine", "internal/image", "internal/cli"},
	"internal/server":       {"internal/engine", "internal/store", "internal/cli", "internal/execd"},
	"internal/gateway":      {"internal/engine", "internal/store", "internal/cli", "internal/execd", "internal/server"},
	"internal/engine/local": {"internal/server", "internal/gateway", "internal/store", "internal/cli"},
	"internal/image":        {"internal/server", "internal/gateway", "internal/store", "internal/cli", "internal/engine"},
	"internal/egress":       {"internal/"},
	"client":                {"internal/"},
	"cmd/execd":             {"internal/server", "internal/gateway", "internal/store", "internal/cli", "internal/engine", "internal/image", "internal/sandbox", "github.com/spf13", "github.com/prometheus"},
}

func TestImportsPointDownwards(t *testing.T) {
	for pkg, bad := range forbidden {
		for _, dep := range deps(t, pkg) {
			own := strings.TrimPrefix(dep, module)
			if own == "internal/policy" || own == "internal/durable" {
				continue // below everything: rules and what they decide, and files
			}
			for _, b := range bad {
				if own != pkg && !strings.HasPrefix(own, pkg+"/") && strings.HasPrefix(own, b) && (own != dep || !strings.HasPrefix(b, "internal/")) {
					t.Errorf("%s imports %s", pkg, own)
				}
			}
		}
	}
}

// Every package says in one comment what it is for.
func TestPackagesAreDocumented(t *testing.T) {
	for _, p := range list(t, "../...") {
		if p.Doc == "" && p.Name != "main" && len(p.GoFiles) > 0 {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

type pkgInfo struct {
	ImportPath, Name, Doc string
	GoFiles, Deps         []string
}

func deps(t *testing.T, pkg string) []string {
	t.Helper()
	return list(t, "../"+pkg)[0].Deps
}

func list(t *testing.T, pattern string) []pkgInfo {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Name,Doc,GoFiles,Deps", pattern).Output()
	if err != nil {
		t.Fatal(err)
	}
	var all []pkgInfo
	for dec := json.NewDecoder(strings.NewReader(string(out))); dec.More(); {
		var p pkgInfo
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}
