package code

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

func TestNode(t *testing.T) {
	need(t, "node")
	s := newSandbox(t)
	s.steps("javascript", []step{
		{code: "console.log('hi')", out: "hi\n", err: "-", result: "-"},
		{code: "const x = 41; let y = {a: [1, 2]}", result: "-"},
		{code: "x + 1", result: "42"},
		{code: "_ + 1", result: "43"},
		{code: "const x = 7; x", result: "7"},
		{code: "y", result: "{ a: [ 1, 2 ] }"},
		{code: "{b: x}", result: "{ b: 7 }"},
		{code: "{ const z = 1; z }", result: "1"},
		{code: "'text'", result: "'text'"},
		{code: "10n ** 20n", result: "100000000000000000000n"},
		{code: "NaN", result: "NaN"},
		{code: "null", result: "null"},
		{code: "await new Promise(r => setTimeout(r, 5, 'waited'))", result: "'waited'"},
		{code: "const p = await Promise.resolve(5); p", result: "5"},
		{code: "function f(a) { return a * 2 }\nclass A {}\nf(x)", result: "14"},
		{code: "require('os').EOL", result: `'\n'`},
		{code: "import fs, {readFileSync as read} from 'fs';\nimport * as path from \"path\"\nimport 'os';\n[typeof fs.readFileSync, typeof read, path.basename('/a/b')]", result: "[ 'function', 'function', 'b' ]"},
		{code: "(await import('fs')).existsSync('/')", result: "true"},
		{code: "`import x from 'y' ${ `${'import(1)'}` } `; // import a from 'b'\nvar re = /import \\/ ['\"]/; re.source", result: "import \\\\/ ['\"]"},
		{code: "export const exported = 5; exported", result: "5"},
		{code: "console.error('e')", err: "e\n", out: "-"},
		{code: "process.stdout.write('no newline')", out: "no newline"},
		{code: "process.cwd()", result: s.dir},
		{code: "process.exit(0)", out: "-"},
		{code: "process.exit(3)", name: "SystemExit", value: "3"},
		{code: "x", result: "7"},
		{code: "require('child_process').execSync('echo child').toString()", result: `'child\n'`},
		{code: "setTimeout(() => { throw new Error('late') }, 1); await new Promise(r => setTimeout(r, 20)); 'on'", result: "'on'", err: "late"},
		{code: "Promise.reject(new Error('unseen')); await new Promise(r => setTimeout(r, 20)); 'on'", result: "'on'", err: "unseen"},
	})
}

func TestNodeErrors(t *testing.T) {
	need(t, "node")
	s := newSandbox(t)
	s.steps("javascript", []step{
		{code: "function f() {\n  throw new TypeError('bad')\n}\nconsole.log('so far')\nf()", out: "so far", name: "TypeError", value: "bad", trace: "at f (<cell-1>:2:9)"},
		{code: "let a = ;", name: "SyntaxError", trace: "let a = ;"},
		{code: "nosuch", name: "ReferenceError", value: "nosuch is not defined"},
		{code: "throw {a: 1}", name: "Uncaught", value: "{ a: 1 }"},
		{code: "throw null", name: "Uncaught", value: "null"},
		{code: "await Promise.reject(new RangeError('far'))", name: "RangeError", value: "far"},
		{code: "class E extends Error { get message() { throw 1 } }\nthrow new E()", name: "Error"},
		{code: "function g() { g() }\ng()", name: "RangeError", value: "call stack"},
		{code: "import x from 'no-such-module'", name: "Error", value: "no-such-module"},
		{code: "require('./no-such-file')", name: "Error", value: "no-such-file"},
		{code: "throw new Error('outer', {cause: new Error('inner')})", name: "Error", trace: "inner"},
		{code: "({get [Symbol.for('nodejs.util.inspect.custom')]() { throw new Error('no text') }})", name: "Error", value: "no text"},
		{code: "'alive'", result: "'alive'"},
	})
}

func TestNodeRich(t *testing.T) {
	need(t, "node")
	s := newSandbox(t)
	id := s.make("javascript")
	o := s.in(id, `console.log('before'); display({_repr_html_() { return '<b>x</b>' }, [Symbol.for('Jupyter.display')]() { return {'text/markdown': '*x*'} }});
display({'image/png': Buffer.from('png'), 'application/json': {a: [1]}}, {raw: true});
console.log('after'); ({_repr_html_: () => 'y'.repeat(5e6), a: 1})`)
	s.check("rich", step{out: "before\nafter", err: "text/html was left out"}, o)
	if len(o.results) != 3 {
		t.Fatalf("%d results; want 3: %s", len(o.results), o.types())
	}
	for _, c := range []struct {
		i          int
		kind, want string
	}{{0, "text/html", "<b>x</b>"}, {0, "text/markdown", "*x*"}, {1, "image/png", "cG5n"}, {1, "application/json", `{"a":[1]}`}} {
		if got := o.mime(c.i, c.kind); got != c.want {
			t.Errorf("result %d, %s: %q; want %q", c.i, c.kind, got, c.want)
		}
	}
}

func TestTypeScript(t *testing.T) {
	need(t, "node")
	s := newSandbox(t)
	status, body := s.call("POST", "/code/context", map[string]string{"language": "typescript"})
	if status != 200 {
		s.refused("typescript", status, body, 500, "RUNTIME_ERROR", "typescript needs Node.js 22.13 or newer")
		s.fakeTypeScript()
	}
	s.steps("typescript", []step{
		{code: "const a: number = 5; a + 1", result: "6"},
		{code: "const b: string = 'x' + a; b", result: "'x5'"},
	})
}

// TestTypeScriptPackages runs TypeScript with the compilers of the packages, in a
// Node.js that has none of its own.
func TestTypeScriptPackages(t *testing.T) {
	need(t, "node")
	for _, name := range []string{"typescript", "typescript-js"} {
		t.Run(name, func(t *testing.T) {
			dir := environment(t, name)
			s := newSandbox(t)
			if s.do("javascript", "if (require('module').stripTypeScriptTypes) throw new Error('has its own')").errName != "" {
				t.Skip("this Node.js needs no compiler for TypeScript")
			}
			if err := os.Symlink(filepath.Join(dir, "node_modules"), filepath.Join(s.dir, "node_modules")); err != nil {
				t.Fatal(err)
			}
			s.steps("typescript", []step{
				{code: "const a: number = 5; a + 1", result: "6"},
				{code: "enum Color { Red = 'r' }\nclass P { constructor(private x: Color) {} get v(): string { return this.x as string } }\nnew P(Color.Red).v", result: "'r'"},
				{code: "import { basename } from 'path';\nimport type { X } from './nowhere';\nbasename('/a/b') as any", result: "'b'"},
				{code: "const wait = <T,>(v: T): Promise<T> => Promise.resolve(v);\nawait wait(a + 1)", result: "6"},
				{code: "const x: = 5", name: "SyntaxError", value: "Type expected"},
				{code: "interface I { a: number }\nlet i: I = { a: 'not checked' as any }; i", result: "{ a: 'not checked' }"},
				{code: "throw new RangeError('bad' as string)", name: "RangeError", value: "bad"},
			})
			if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "paddock-typescript-*")); len(left) > 0 {
				t.Errorf("files are left: %v", left)
			}
		})
	}
}

// fakeTypeScript installs the part of the package typescript that the driver
// calls, which takes types away from simple declarations only.
func (s *sandbox) fakeTypeScript() {
	dir := filepath.Join(s.dir, "node_modules", "typescript")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	text := `exports.ScriptTarget = {}; exports.ModuleKind = {}; exports.DiagnosticCategory = {};
exports.transpileModule = (source) => ({outputText: source.replace(/: (number|string)/g, ''), diagnostics: []});`
	if err := os.WriteFile(filepath.Join(dir, "index.js"), []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func TestLanguages(t *testing.T) {
	need(t, "node")
	s := newSandbox(t)
	_, body := s.call("GET", "/code/languages", nil)
	var list []languageInfo
	if err := json.Unmarshal(body, &list); err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		if l.Available == (l.Missing != "") || l.Available && l.Program == "" {
			t.Errorf("%+v", l)
		}
		if (l.Language == "javascript" || l.Language == "bash") && !l.Available {
			t.Errorf("%s is not available: %s", l.Language, l.Missing)
		}
	}
}
