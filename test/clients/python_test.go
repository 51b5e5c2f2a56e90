package clients

import (
	"path/filepath"
	"testing"
)

// python runs a script of the folder python in an environment.
func python(t *testing.T, name, script string, args ...string) {
	s := server(t)
	interpreter := filepath.Join(environment(t, name), "bin", "python")
	runScript(t, s, environ(t, s), append([]string{interpreter, filepath.Join("python", script)}, args...)...)
}

func TestPythonSDK(t *testing.T)       { python(t, "python", "sandbox_async.py") }
func TestPythonSDKPools(t *testing.T)  { python(t, "python", "pools.py") }
func TestCodeInterpreter(t *testing.T) { python(t, "python", "interpreter.py") }
func TestCommandLine(t *testing.T)     { python(t, "python", "osb.py") }
func TestMCPServer(t *testing.T)       { python(t, "python", "mcp_stdio.py") }

func TestAgentAdapters(t *testing.T) {
	for _, name := range []string{"langchain", "langchain-sandbox", "deepagents"} {
		t.Run(name, func(t *testing.T) { python(t, name, "adapters.py", name) })
	}
}
