package code

import "testing"

func TestJava(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts two virtual machines of Java")
	}
	need(t, "jshell")
	s := newSandbox(t)
	s.steps("java", []step{
		{code: `System.out.println("hi");`, out: "hi\n", result: "-"},
		{code: "int x = 41;", result: "-"},
		{code: "x + 1", result: "42"},
		{code: "int twice(int a) {\n  return 2 * a; // twice\n}\nrecord P(int a) {}\nvar l = List.of(1, 2);\ntwice(x)", result: "82"},
		{code: "l.stream().map(i -> i * 2).collect(Collectors.toList())", result: "[2, 4]"},
		{code: `"text\u00e9"`, result: `"texté"`},
		{code: "x = 5;\n// a comment\n", result: "-"},
		{code: "int y = nosuch;", name: "CompilationError", value: "cannot find symbol", trace: "int y = nosuch;"},
		{code: "int z = (1", name: "CompilationError"},
		{code: "int f() {\n  throw new IllegalStateException(\"bad\");\n}\nf()", name: "java.lang.IllegalStateException", value: "bad", trace: "at "},
		{code: "System.err.println(x)", err: "5\n"},
	})
}
