package code

import "testing"

func TestGo(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("compiles a program for each run")
	}
	need(t, "go")
	s := newSandbox(t)
	s.steps("go", []step{
		{code: "import \"fmt\"\n\nfmt.Println(\"hi\")", out: "hi\n", result: "-"},
		{code: "var x = 41\nfunc twice(a int) int {\n\treturn a * 2\n}\ntype P struct{ A, B int }\nfunc (p P) Sum() int { return p.A + p.B }", result: "-"},
		{code: "y := x + 1\ntwice(x)", result: "82"},
		{code: "P{1, 2}.Sum() +\n\t1", result: "4"},
		{code: "strings.ToUpper(\"up\")", result: `"UP"`},
		{code: "func() { println(\"called\") }()", err: "called"},
		{code: "var x = 7 // again\nx", result: "7"},
		{code: "nosuch(1)", name: "CompilationError", value: "undefined: nosuch", trace: "cell_8.go:1"},
		{code: "fmt.Println(\"so far\")\npanic(\"bad\")", out: "so far", err: "cell_9.go:2", name: "ExitError", value: "exit status 2"},
		{code: "package main\n\nimport (\n\t\"fmt\"\n\t\"os\"\n)\n\nfunc main() {\n\tfmt.Println(\"whole\", len(os.Args))\n}", out: "whole 1"},
		{code: "for i := 0; i < 2; i++ {\n\tfmt.Println(i, x)\n}", out: "0 7\n1 7\n"},
		{code: "x = (1", name: "CompilationError"},
	})
}
