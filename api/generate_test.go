package api

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestGeneratedFilesAreFresh runs the generators again and compares. They are
// built from the module cache, so no network is needed.
func TestGeneratedFilesAreFresh(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the code generator")
	}
	dir := t.TempDir()
	for _, c := range []struct {
		name, want string
		args       []string
	}{
		{"types", "lifecycle.gen.go", []string{"tool", "oapi-codegen", "-config", "lifecycle.codegen.yaml", "-o", "OUT", "lifecycle.yaml"}},
		{"document", "lifecycle.gen.json", []string{"run", "./internal/openapijson", "-o", "OUT", "lifecycle.yaml"}},
		{"execd types", "execd/execd.gen.go", []string{"tool", "oapi-codegen", "-config", "execd.codegen.yaml", "-o", "OUT", "execd.yaml"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := filepath.Join(dir, filepath.Base(c.want))
			for i, a := range c.args {
				if a == "OUT" {
					c.args[i] = out
				}
			}
			if text, err := exec.CommandContext(t.Context(), "go", c.args...).CombinedOutput(); err != nil {
				t.Fatalf("go %v: %v\n%s", c.args, err, text)
			}
			got, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(c.want)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s is stale: run `go generate ./api`", c.want)
			}
		})
	}
}

func TestDocumentIsJSON(t *testing.T) {
	var doc struct {
		OpenAPI string                    `json:"openapi"`
		Paths   map[string]map[string]any `json:"paths"`
	}
	if err := json.Unmarshal(LifecycleJSON, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.OpenAPI != "3.1.0" || len(doc.Paths) == 0 {
		t.Errorf("openapi = %q with %d paths", doc.OpenAPI, len(doc.Paths))
	}
}
