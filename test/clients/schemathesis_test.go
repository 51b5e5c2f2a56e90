package clients

import (
	"context"
	"encoding/xml"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/test/harness"
)

const (
	// testerTimeout bounds a run of the tester, testerBudget the seconds that
	// it spends.
	testerTimeout = 4 * time.Minute
	testerBudget  = "30"
	// testerExamples is how many requests of each kind are made for each
	// operation, besides those that cover the document's every rule.
	testerExamples = "8"
)

// finding is a failure in the tester's report.
type finding struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// The control plane answers requests made from its own document as the document
// says: good ones, bad ones, and sequences.
func TestLifecycleDocument(t *testing.T) {
	s := server(t)
	// What is made from the image keeps it from being pruned, unless a sequence
	// of requests finds that and deletes it.
	s.Create(t, client.CreateRequest{Image: image, Entrypoint: []string{"sleep", "1000000"}})
	tester(t, s, s.URL+"/openapi.json", "--phases", "coverage,fuzzing,stateful", "--header", "OPEN-SANDBOX-API-KEY: "+s.Key)
	if err := s.ImportFile(t.Context(), harness.StarterImage(t), image); err != nil {
		t.Errorf("importing the image again: %v", err)
	}
}

// tester runs schemathesis on a document and makes a subtest of each operation.
func tester(t *testing.T, s *harness.Server, document string, args ...string) {
	t.Helper()
	dir := environment(t, "schemathesis")
	work := t.TempDir()
	junit := filepath.Join(work, "report.xml")
	hooks, err := filepath.Abs("schemathesis")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testerTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "bin", "st"), append([]string{
		"--no-color", "--config-file", filepath.Join(hooks, "schemathesis.toml"),
		"run", document,
		"--report-junit-path", junit, "--continue-on-failure", "--warnings", "off",
		"--max-examples", testerExamples, "--max-time", testerBudget, "--request-timeout", "30",
	}, args...)...)
	// The same requests every time, unless somebody looks for others.
	if seed := os.Getenv("PADDOCK_TEST_SEED"); seed != "" {
		cmd.Args = append(cmd.Args, "--seed", seed)
	} else {
		cmd.Args = append(cmd.Args, "--generation-deterministic")
	}
	cmd.Dir = work
	cmd.Env = environ(t, s, "SCHEMATHESIS_HOOKS=hooks", "PYTHONPATH="+hooks)
	cmd.WaitDelay = time.Second
	out, runErr := cmd.CombinedOutput()
	var report struct {
		Suites []struct {
			Cases []struct {
				Name     string    `xml:"name,attr"`
				Failures []finding `xml:"failure"`
				Errors   []finding `xml:"error"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	data, err := os.ReadFile(junit)
	if err == nil {
		err = xml.Unmarshal(data, &report)
	}
	if err != nil || len(report.Suites) == 0 {
		t.Fatalf("the tester left no report: %v, %v\n%s", runErr, err, out)
	}
	for _, suite := range report.Suites {
		for _, c := range suite.Cases {
			t.Run(c.Name, func(t *testing.T) {
				for _, f := range append(c.Failures, c.Errors...) {
					t.Errorf("%s\n%s", f.Message, f.Text)
				}
			})
		}
	}
	if runErr != nil && !t.Failed() {
		t.Errorf("%v\n%s", runErr, out)
	}
	if _, summary, ok := strings.Cut(string(out), "Test cases:"); ok {
		t.Log(strings.Join(strings.Fields(summary), " "))
	}
	deleteOthers(t, s)
}

// execd answers requests made from its document as the document says.
func TestExecdDocument(t *testing.T) {
	s := server(t)
	sb := s.Create(t, client.CreateRequest{Image: image, Entrypoint: []string{"sleep", "1000000"}})
	var endpoint struct{ Headers map[string]string }
	s.Do(t, "GET", "/v1/sandboxes/"+sb.ID+"/endpoints/44772", nil).JSON(t, &endpoint)
	const header = "OpenSandbox-Secure-Access"
	tester(t, s, filepath.Join(harness.Root(), "api", "execd.yaml"),
		"--url", s.URL+"/v1/sandboxes/"+sb.ID+"/proxy/44772", "--phases", "coverage,fuzzing,stateful",
		"--header", header+": "+endpoint.Headers[header],
		// Endless streams, what is somebody else's, and forms of pairs of parts.
		"--exclude-path-regex", "/watch$|^/proxy/|^/files/upload$")
}

// The egress API answers requests made from its document as the document says.
func TestEgressDocument(t *testing.T) {
	s := server(t)
	sb := s.Create(t, client.CreateRequest{
		Image: image, Entrypoint: []string{"sleep", "1000000"},
		NetworkPolicy: &client.NetworkPolicy{}, CredentialProxy: true,
	})
	var endpoint struct{ Headers map[string]string }
	s.Do(t, "GET", "/v1/sandboxes/"+sb.ID+"/endpoints/18080", nil).JSON(t, &endpoint)
	args := []string{"--url", s.URL + "/v1/sandboxes/" + sb.ID + "/proxy/18080", "--phases", "coverage,fuzzing,stateful"}
	for name, value := range endpoint.Headers {
		args = append(args, "--header", name+": "+value)
	}
	// Each change of the policy or the vault is on disk before its answer.
	args = append(args, "--max-examples", "4", "--max-time", "20")
	tester(t, s, filepath.Join(harness.Root(), "api", "egress.yaml"), args...)
}
