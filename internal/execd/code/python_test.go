package code

import "testing"

func TestSmoke(t *testing.T) {
	s := newSandbox(t)
	for _, c := range []string{"print(1)", "x=41\nx+1", "y=x+1;y", "print('a',end='');x", "import asyncio\nawait asyncio.sleep(0.01)\nx"} {
		o := s.do("python", c)
		t.Log(o.types(), o.stdout, o.stderr, o.results, o.errName, o.errValue, o.traceback)
	}
	for _, c := range []string{"x=5; f() { echo in $x; }; echo hi", "f; false", "echo err >&2; cd /tmp; pwd", "alias foo='echo al'", "foo", "if", "exit 3", "echo $x"} {
		o := s.do("bash", c)
		t.Log(o.types(), o.stdout, o.stderr, o.results, o.errName, o.errValue, o.traceback)
	}
}
