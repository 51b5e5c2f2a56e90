package code

import "testing"

func TestRuby(t *testing.T) {
	need(t, "ruby")
	s := newSandbox(t)
	s.steps("ruby", []step{
		{code: "puts 'hi'", out: "hi\n", result: "-"},
		{code: "x = 41; nil", result: "-"},
		{code: "x + 1", result: "42"},
		{code: "def twice(a) = a * 2\ntwice(x)", result: "82"},
		{code: `"é\u2028"`, result: "é"},
		{code: "def f\n  raise ArgumentError, 'bad'\nend\nputs 'so far'\nf", out: "so far", name: "ArgumentError", value: "bad", trace: "<cell 6>:2:in `f'"},
		{code: "x = (1,", name: "SyntaxError"},
		{code: "exit 0"},
		{code: "exit 3", name: "SystemExit"},
		{code: "$stderr.puts 'e'; x", err: "e\n", result: "41"},
		{code: "gets", result: "-"},
		{code: "fork { puts 'child' }; Process.wait; `echo sub`", out: "child", result: `"sub\n"`},
		{code: "class Odd; def inspect = raise('no text'); end\nOdd.new", name: "RuntimeError", value: "no text"},
	})
}
