package code

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// step is one run and what it must come to. Empty members are not looked at,
// but a run that is not expected to fail must not.
type step struct {
	code string
	// out, err and result are contained in the run's output, errors and plain
	// result; "-" means that there is none.
	out, err, result string
	// name, value and trace are contained in the error.
	name, value, trace string
}

func (s *sandbox) steps(lang string, steps []step) {
	s.t.Helper()
	id := s.make(lang)
	for i, st := range steps {
		s.check(fmt.Sprintf("step %d %q", i, cut(st.code, 60)), st, s.in(id, st.code))
	}
}

func (s *sandbox) check(what string, st step, o *output) {
	s.t.Helper()
	if st.name == "" && o.errName != "" {
		s.t.Errorf("%s: failed: %s: %s\n%s\nstderr: %s", what, o.errName, o.errValue, o.traceback, o.stderr)
		return
	}
	result := "-"
	if len(o.results) > 0 {
		result = o.text(len(o.results) - 1)
	}
	for _, c := range []struct{ name, want, got string }{
		{"stdout", st.out, orNone(o.stdout)}, {"stderr", st.err, orNone(o.stderr)}, {"result", st.result, result},
		{"error name", st.name, o.errName}, {"error value", st.value, o.errValue}, {"traceback", st.trace, o.traceback},
	} {
		if c.want == "-" && c.got != "-" || !strings.Contains(c.got, c.want) {
			s.t.Errorf("%s: %s is %q; it must contain %q", what, c.name, c.got, c.want)
		}
	}
	last := o.events[len(o.events)-1].Type
	if (st.name != "") != (last == "error") || (st.name == "") != (last == "execution_complete") {
		s.t.Errorf("%s: the last event is %s", what, last)
	}
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func TestPythonState(t *testing.T) {
	need(t, "python3")
	s := newSandbox(t)
	s.steps("python", []step{
		{code: "print(1)", out: "1\n", err: "-", result: "-"},
		{code: "x = 41", out: "-", result: "-"},
		{code: "x + 1", result: "42", out: "-"},
		{code: "_ + 1", result: "43"},
		{code: "x;", result: "-"},
		{code: "None", result: "-"},
		{code: "def f(a):\n    return a * 2\nf(x)", result: "82"},
		{code: "'a' + \"b\"", result: "'ab'"},
		{code: "import sys; print('e', file=sys.stderr)", err: "e\n", out: "-"},
		{code: "print('é ☃ \\udc80')", out: "é ☃ \\udc80"},
		{code: "class A:\n    pass\nA", result: "A'>"},
		{code: "import pickle; pickle.loads(pickle.dumps(A())).__class__.__name__", result: "'A'"},
		{code: "import os; os.getcwd()", result: s.dir},
		{code: "__name__", result: "'__main__'"},
		{code: "sorted(n for n in globals() if not n.startswith('_'))", result: "['A', 'f', 'os', 'pickle', 'sys', 'x']"},
		{code: "from __future__ import annotations\ndef g(a: nowhere): pass"},
		{code: "def h(a: nowhere): pass\nh.__annotations__", result: "{'a': 'nowhere'}"},
		{code: "{'key%d' % i: list(range(12)) for i in range(3)}", result: ",\n 'key1'"},
		{code: "exit()"},
		{code: "exit(3)", name: "SystemExit", value: "3"},
		{code: "x", result: "41"},
		{code: "import subprocess; subprocess.run(['echo', 'child']).returncode", out: "child", result: "0"},
		{code: "import os\nif os.fork() == 0:\n    print('forked')\nelse:\n    os.wait()", out: "forked\n"},
		{code: "sys.stdin.read()", result: "''"},
	})
}

func TestPythonErrors(t *testing.T) {
	need(t, "python3")
	s := newSandbox(t)
	s.steps("python", []step{
		{code: "a = 1\nprint('so far')\n1/0", out: "so far\n", name: "ZeroDivisionError", value: "division by zero", trace: "    1/0"},
		{code: "def f():\n    raise ValueError('bad\\nvalue')\n"},
		{code: "f()", name: "ValueError", value: "bad\nvalue", trace: "line 2, in f\n    raise ValueError('bad\\nvalue')"},
		{code: "try:\n    f()\nexcept ValueError as e:\n    raise KeyError('other') from e", name: "KeyError", trace: "direct cause"},
		{code: "x = (1,", name: "SyntaxError", trace: "x = (1,"},
		{code: "if True:\nprint(1)", name: "IndentationError"},
		{code: "def g(): g()\ng()", name: "RecursionError", trace: "in g"},
		{code: "input('name? ')", name: "StdinNotImplementedError", value: "nobody is there to answer"},
		{code: "import traceback\ntry:\n    f()\nexcept ValueError:\n    traceback.print_exc()", err: "raise ValueError('bad"},
		{code: "class Odd(Exception):\n    def __str__(self): raise RuntimeError\nraise Odd()", name: "Odd", value: "failed"},
		{code: "class Worse(Exception):\n    __str__ = __repr__ = property(lambda self: 1/0)\n    __traceback__ = 5\nraise Worse()", name: "Worse"},
		{code: "raise KeyboardInterrupt", name: "KeyboardInterrupt"},
		{code: "raise BaseException('x' * 1000000)", name: "BaseException", value: "xxx"},
		{code: "class R:\n    def __repr__(self): raise OSError('no text')\nR()", name: "OSError", value: "no text"},
		{code: "import inspect; inspect.getsource(f)", result: "raise ValueError"},
		{code: "undefined", name: "NameError", value: "name 'undefined' is not defined"},
		{code: "print('alive')", out: "alive"},
	})
	o := s.do("python", "def f():\n    1/0\nf()")
	if strings.Contains(o.traceback, "paddock") {
		t.Errorf("the traceback shows the driver:\n%s", o.traceback)
	}
}

func TestPythonRich(t *testing.T) {
	need(t, "python3")
	s := newSandbox(t)
	id := s.make("python")
	o := s.in(id, `
class Table:
    def _repr_html_(self): return "<b>é</b>"
    def _repr_png_(self): return b"\x89PNG"
    def _repr_json_(self): return {"a": [1, None, True, 1.5, "\u2028"]}
    def _repr_latex_(self): return None
    def _repr_svg_(self): raise ValueError("no picture")
    def __repr__(self): return "a table"
print("before")
display(Table(), Table())
print("between")
display({"text/markdown": "# x"}, raw=True)
print("after", end="")
Table()`)
	s.check("rich", step{out: "before\nbetween\nafter", err: "_repr_svg_ failed: ValueError: no picture"}, o)
	// The order between output and errors is not kept.
	if got, want := strings.ReplaceAll(o.types(), " stderr", ""), "init status stdout result result stdout result stdout execution_count result status execution_complete"; got != want {
		t.Errorf("order of events: %s; want %s", got, want)
	}
	if len(o.results) != 4 {
		t.Fatalf("%d results; want 4", len(o.results))
	}
	for kind, want := range map[string]string{
		"text": "a table", "text/html": "<b>é</b>", "image/png": "iVBORw==", "application/json": `{"a":[1,null,true,1.5,"\u2028"]}`,
	} {
		if got := o.mime(3, kind); got != want {
			t.Errorf("%s is %q; want %q", kind, got, want)
		}
	}
	if got := o.mime(2, "text/markdown"); got != "# x" {
		t.Errorf("raw display: %q", got)
	}
	for _, st := range []step{
		{code: "class B:\n    def _repr_mimebundle_(self, include=None, exclude=None):\n        return {'text/html': 'h'}, {}\nB()", result: "<__main__.B"},
		{code: "class D:\n    def _ipython_display_(self): print('shown')\nD()", out: "shown", result: "-"},
		{code: "'x' * 5_000_000", result: "(5000002 characters in all)"},
		{code: "class Big:\n    def _repr_html_(self): return 'x' * 5_000_000\n    def __repr__(self): return 'big'\nBig()", result: "big", err: "text/html was left out"},
		{code: "class Nan:\n    def _repr_json_(self): return float('nan')\n    def __repr__(self): return 'nan'\nNan()", result: "nan", err: "not valid JSON"},
		{code: "from IPython.display import HTML, Markdown, display as show\nshow(HTML('<i>x</i>'))\nMarkdown('*x*')", result: "Markdown object"},
		{code: "import threading\nt = threading.Thread(target=lambda: display('from a thread')); t.start(); t.join()", result: "'from a thread'"},
	} {
		s.check(st.code, st, s.in(id, st.code))
	}
}

// TestPythonFigures uses a stand-in for matplotlib's modules with the few
// functions that the driver calls, unless the real one is there.
func TestPythonFigures(t *testing.T) {
	need(t, "python3")
	s := newSandbox(t)
	if err := s.python("import matplotlib"); err != nil {
		s.fakeMatplotlib()
	}
	id := s.make("python")
	o := s.in(id, "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nprint('x')\nplt.show()\nprint('y')\nplt.plot([3])\n'last'")
	s.check("figures", step{out: "x\ny\n", err: "-"}, o)
	pictures := 0
	for i := range o.results {
		if strings.HasPrefix(o.mime(i, "image/png"), "iVBORw") {
			pictures++
		}
	}
	if pictures != 2 {
		t.Errorf("%d pictures; want 2: %s", pictures, o.types())
	}
	o = s.in(id, "fig = plt.figure()\nfig.add_subplot()\nfig")
	s.check("figure as value", step{}, o)
	if len(o.results) != 1 || !strings.HasPrefix(o.mime(0, "image/png"), "iVBORw") {
		t.Errorf("a figure as last value: %v", o.results)
	}
}

func (s *sandbox) python(code string) error {
	o := s.do("python", code)
	if o.errName != "" {
		return fmt.Errorf("%s: %s", o.errName, o.errValue)
	}
	return nil
}

func (s *sandbox) fakeMatplotlib() {
	for name, text := range map[string]string{
		"__init__.py": "rcParams = {'backend': 'agg'}\n",
		"figure.py": `class Figure:
    number = 0
    lines = texts = images = ()
    axes = ()
    def get_axes(self): return self.axes
    def add_subplot(self): self.axes = (1,)
    def get_facecolor(self): return "w"
    def savefig(self, out, **options): out.write(b"\x89PNG\r\n")
`,
		"pyplot.py": `import warnings
from .figure import Figure
figures = {}
def get_backend(): return "agg"
def get_fignums(): return sorted(figures)
def fignum_exists(n): return n in figures
def figure(n=None):
    if n is None:
        n = max(figures, default=0) + 1
    if n not in figures:
        figures[n] = Figure()
        figures[n].number = n
    return figures[n]
def plot(data): figure(max(figures, default=1)).add_subplot()
def show(): warnings.warn("no screen")
def close(which):
    if which == "all": figures.clear()
    else: figures.pop(which.number, None)
`,
	} {
		dir := filepath.Join(s.dir, "matplotlib")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
}

func TestPythonAwait(t *testing.T) {
	need(t, "python3")
	s := newSandbox(t)
	s.steps("python", []step{
		{code: "import asyncio\nawait asyncio.sleep(0, 'done')", result: "'done'"},
		{code: "async def f():\n    await asyncio.sleep(0)\n    return 7\nv = await f()\nasync with asyncio.Lock(): print(v)", out: "7\n"},
		{code: "asyncio.run(f())", result: "7"},
		{code: "t = asyncio.ensure_future(f()) if False else asyncio.get_event_loop_policy()\nq = await asyncio.sleep(0)\nprint('ok')", out: "ok"},
		{code: "async def tick():\n    await asyncio.sleep(0.01)\n    print('ticked')\n    fired.set()\nfired = asyncio.Event()\njob = None\nasync def begin():\n    global job\n    job = asyncio.create_task(tick())\nawait begin()"},
		{code: "await fired.wait()", out: "ticked"},
		{code: "async def bad():\n    raise OSError('deep')\nawait bad()", name: "OSError", trace: "in bad"},
	})
}

func TestPythonMagics(t *testing.T) {
	need(t, "python3")
	s := newSandbox(t)
	s.steps("python", []step{
		{code: "!echo hello $((1+1))", out: "hello 2\n", result: "-"},
		{code: "name = 'wor ld'\n!echo \"$name {name.upper()} ${HOME}\"", out: "wor ld WOR LD " + s.dir},
		{code: "!echo '{print $1}' $$", out: "{print $1} $"},
		{code: "files = !printf 'a\\nb\\n'\nfiles", result: "['a', 'b']"},
		{code: "for i in range(2):\n    !echo $i\nprint('''\n!not a command\n%nor a magic\n''')", out: "0\n1\n\n!not a command\n%nor a magic"},
		{code: "x = (7\n% 4)\nx", result: "3"},
		{code: "%cd /", out: "/\n"},
		{code: "%pwd", result: "'/'"},
		{code: "%cd -", out: s.dir},
		{code: "%env PADDOCK_TEST=v{1+1}\n!echo $PADDOCK_TEST", out: "v2\n"},
		{code: "%env PADDOCK_TEST", result: "'v2'"},
		{code: "%%bash\nv=inner; echo \"$v\" \"$PADDOCK_TEST\"; echo e >&2", out: "inner v2", err: "e\n"},
		{code: "%%bash\nexit 3", name: "UsageError", value: "exit status 3"},
		{code: "%time y = sum(range(10))\ny", out: "Wall time", result: "45"},
		{code: "%%time\nz = 5\nz", out: "Wall time", result: "5"},
		{code: "%timeit -n 1 -r 2 1 + 1", out: "per loop"},
		{code: "%matplotlib inline", out: "-"},
		{code: "%%writefile note.txt\none\ntwo", out: "Writing note.txt"},
		{code: "open('note.txt').read()", result: "'one\\ntwo\\n'"},
		{code: "%%capture kept\nprint('hidden')", out: "-"},
		{code: "kept.stdout", result: "'hidden\\n'"},
		{code: "%%html\n<p>x</p>"},
		{code: "%whos", out: "Variable"},
		{code: "len?", out: "Return the number of items"},
		{code: "%nosuch 1", name: "UsageError", value: "%nosuch is not known here; known are"},
		{code: "%%nosuch\n1", name: "UsageError", value: "%%nosuch"},
		{code: "!false\n_exit_code", result: "1"},
		{code: "a = 1\n%cd", out: s.dir},
		{code: "y = = 1\n%cd", name: "SyntaxError", trace: "y = = 1"},
	})
}

func TestPythonPip(t *testing.T) {
	need(t, "python3")
	s := newSandbox(t)
	o := s.do("python", "%pip --version")
	if o.errName != "" && strings.Contains(o.stderr, "No module named pip") {
		t.Skip("needs pip")
	}
	s.check("pip", step{out: "pip "}, o)
}
