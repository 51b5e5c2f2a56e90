package clients

import (
	"path/filepath"
	"testing"

	"github.com/paddock-sandbox/paddock/test/harness"
)

func TestJavaSDK(t *testing.T) {
	s := server(t)
	dir := environment(t, "java")
	java := harness.RequireProgram(t, "java")
	runScript(t, s, environ(t, s), java, "-XX:TieredStopAtLevel=1", "-Xmx256m",
		"-cp", filepath.Join(dir, "lib", "*"), filepath.Join("java", "Sdk.java"))
}
