package clients

import (
	"path/filepath"
	"testing"

	"github.com/paddock-sandbox/paddock/test/harness"
)

func TestJavaScriptSDK(t *testing.T) {
	s := server(t)
	dir := environment(t, "node")
	node := harness.RequireProgram(t, "node")
	runScript(t, s, environ(t, s, "NODE_ENVIRONMENT="+dir), node, filepath.Join("node", "sdk.mjs"))
}
