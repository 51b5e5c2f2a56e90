package code

import (
	"path/filepath"
	"testing"
)

// kernelSandbox is a sandbox whose python3 has ipykernel.
func kernelSandbox(t testing.TB) *sandbox {
	t.Helper()
	return newSandboxPath(t, filepath.Join(environment(t, "jupyter"), "bin")+":"+searchPath)
}

func TestKernelState(t *testing.T) {
	s := kernelSandbox(t)
	s.steps("python", []step{
		{code: "print(1)", out: "1\n", err: "-", result: "-"},
		{code: "get_ipython().__class__.__name__", result: "ZMQInteractiveShell"},
		{code: "x = 41", out: "-", result: "-"},
		{code: "x + 1", result: "42", out: "-"},
		{code: "import sys; print('e', file=sys.stderr)", err: "e\n", out: "-"},
		{code: "import os; os.getcwd()", result: s.dir},
		{code: "1/0", name: "ZeroDivisionError", value: "division by zero", trace: "1/0"},
		{code: "input('name? ')", name: "StdinNotImplementedError", value: "does not support input"},
		{code: "len?", out: "Return the number of items"},
		{code: "!echo $((6*7))", out: "42"},
		{code: "import asyncio\nawait asyncio.sleep(0, 'done')", result: "'done'"},
		{code: "exit()"},
		{code: "x", name: "NameError", err: "had ended (exit status 0)"},
	})
}
