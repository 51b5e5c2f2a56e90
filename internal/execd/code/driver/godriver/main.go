// Command godriver is the driver for Go. It is not installed: it is compiled in the sandbox when a context is made. Every
// run is a program of its own, made of the declarations of all runs so far and
// the statements of this one as the body of main: functions, types, constants
// and package variables are there in later runs, and package variables begin
// with their first value in each.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Descriptors, see the protocol.
const (
	orderFD  = 3
	reportFD = 4
	haltFD   = 8
	lastFD   = 9
)

const maxText = 1 << 20

// chunk is a declaration or a statement at the top level of the code.
type chunk struct {
	text string
	line int
	cell int
	// keyword is the first token.
	keyword token.Token
}

type driver struct {
	dir     string
	reports *os.File
	run     int
	count   int
	// declared holds the declarations by what they declare, order the keys.
	declared map[string]chunk
	order    []string
	imports  map[string]chunk
	// halts is what was read of the descriptor of that name and is no whole line.
	halts   []byte
	stopped bool
}

func main() {
	d := &driver{dir: os.Args[1], reports: os.NewFile(reportFD, "reports"), declared: map[string]chunk{}, imports: map[string]chunk{}}
	for fd := orderFD; fd <= lastFD; fd++ {
		syscall.CloseOnExec(fd)
	}
	_ = os.Remove(filepath.Join(d.dir, "driver"))
	// It is for the program; the driver is told which run it is about. To ignore
	// it would have the program ignore it, too.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	_ = syscall.SetNonblock(haltFD, true)
	d.send(map[string]any{"t": "ready"})
	orders := bufio.NewReader(os.NewFile(orderFD, "orders"))
	for {
		head, err := orders.ReadString('\n')
		if err != nil {
			return
		}
		var size int
		if _, err := fmt.Sscanf(head, "run %d %d", &d.run, &size); err != nil {
			return
		}
		code := make([]byte, size)
		if _, err := io.ReadFull(orders, code); err != nil {
			return
		}
		d.count++
		d.stopped = false
		d.send(map[string]any{"t": "busy"})
		end := d.execute(string(code))
		end["count"] = d.count
		d.send(end)
	}
}

// halted reports whether the run that is under way was interrupted. What ends a
// program says so here first. Interrupts of earlier runs are read as well: that
// of a run may come when the next has begun.
func (d *driver) halted() bool {
	for buf := make([]byte, 512); ; {
		n, err := syscall.Read(haltFD, buf)
		if err == syscall.EINTR {
			continue
		}
		if n <= 0 {
			return d.stopped
		}
		d.halts = append(d.halts, buf[:n]...)
		for {
			line, rest, whole := bytes.Cut(d.halts, []byte("\n"))
			if !whole {
				break
			}
			d.stopped = d.stopped || string(line) == "stop "+strconv.Itoa(d.run)
			d.halts = rest
		}
	}
}

func (d *driver) send(report map[string]any) {
	report["n"] = d.run
	line, err := json.Marshal(report)
	if err == nil {
		_, _ = d.reports.Write(append(line, '\n'))
	}
}

func failure(name, value string, lines ...string) map[string]any {
	return map[string]any{"t": "error", "ename": name, "evalue": value, "traceback": lines}
}

func interrupted() map[string]any {
	return failure("KeyboardInterrupt", "the code was interrupted", "KeyboardInterrupt")
}

// execute runs one piece of code and returns the last report.
func (d *driver) execute(code string) map[string]any {
	chunks, err := d.split(code)
	if err != nil {
		return compilation(err.Error())
	}
	declared, order, imports := clone(d.declared), append([]string(nil), d.order...), clone(d.imports)
	var statements []chunk
	hasMain := false
	for _, c := range chunks {
		keys, err := names(c)
		switch {
		case err != nil:
			return compilation(err.Error())
		case c.keyword == token.IMPORT:
			for i, k := range keys {
				imports[k] = chunk{text: "import " + keys[i], line: c.line, cell: c.cell}
			}
		case keys == nil:
			statements = append(statements, c)
		default:
			hasMain = hasMain || keys[0] == "main"
			for _, k := range keys {
				if _, ok := declared[k]; !ok {
					order = append(order, k)
				}
				declared[k] = c
			}
		}
	}
	if hasMain && len(statements) > 0 {
		return failure("CompilationError", "the code has a function main and statements outside of functions; it can have only one of them")
	}
	p := program{declared: declared, order: order, imports: imports, statements: statements, main: hasMain}
	output, err := d.build(p, true)
	if err != nil && strings.Contains(output, "used as value") {
		output, err = d.build(p, false)
	}
	if d.halted() {
		return interrupted()
	}
	if err != nil {
		return compilation(output)
	}
	// What main does belongs to this run alone.
	delete(declared, "main")
	d.declared, d.imports, d.order = declared, imports, d.order[:0]
	for _, k := range order {
		if k != "main" {
			d.order = append(d.order, k)
		}
	}
	return d.start()
}

func clone(m map[string]chunk) map[string]chunk {
	c := make(map[string]chunk, len(m))
	for k, v := range m {
		c[k] = v
	}
	return c
}

func compilation(output string) map[string]any {
	var lines []string
	for _, l := range strings.Split(strings.TrimSpace(output), "\n") {
		if !strings.HasPrefix(l, "#") {
			lines = append(lines, l)
		}
	}
	first := "the code can't be compiled"
	if len(lines) > 0 {
		first = lines[0]
	}
	return failure("CompilationError", first, lines...)
}

// split takes code apart at the semicolons, written or not, that are outside of
// all brackets.
func (d *driver) split(code string) ([]chunk, error) {
	set := token.NewFileSet()
	file := set.AddFile(fmt.Sprintf("cell_%d.go", d.count), -1, len(code))
	var s scanner.Scanner
	var wrong scanner.ErrorList
	s.Init(file, []byte(code), func(pos token.Position, msg string) { wrong.Add(pos, msg) }, 0)
	var chunks []chunk
	depth, begin := 0, -1
	var keyword token.Token
	for {
		pos, tok, _ := s.Scan()
		at := file.Offset(pos)
		if begin < 0 && tok != token.EOF && tok != token.SEMICOLON {
			begin, keyword = at, tok
		}
		switch tok {
		case token.LPAREN, token.LBRACK, token.LBRACE:
			depth++
		case token.RPAREN, token.RBRACK, token.RBRACE:
			depth--
		}
		if tok == token.EOF || tok == token.SEMICOLON && depth <= 0 {
			if begin >= 0 && keyword != token.PACKAGE {
				chunks = append(chunks, chunk{text: code[begin:at], line: file.Line(file.Pos(begin)), cell: d.count, keyword: keyword})
			}
			begin = -1
		}
		if tok == token.EOF {
			wrong.Sort()
			return chunks, wrong.Err()
		}
	}
}

// names returns what a chunk declares; nil for a statement.
func names(c chunk) ([]string, error) {
	switch c.keyword {
	case token.IMPORT, token.TYPE, token.CONST, token.VAR, token.FUNC:
	default:
		return nil, nil
	}
	set := token.NewFileSet()
	source := fmt.Sprintf("package main; /*line cell_%d.go:%d:1*/%s", c.cell, c.line, c.text)
	f, err := parser.ParseFile(set, "", source, 0)
	if err != nil && c.keyword == token.FUNC {
		// A call of a function literal.
		if _, exprErr := parser.ParseExpr(c.text); exprErr == nil {
			return nil, nil
		}
	}
	if err != nil {
		return nil, err
	}
	var keys []string
	for _, decl := range f.Decls {
		switch decl := decl.(type) {
		case *ast.FuncDecl:
			key := decl.Name.Name
			if decl.Recv != nil && len(decl.Recv.List) == 1 {
				key = receiver(decl.Recv.List[0].Type) + "." + key
			}
			if key == "init" {
				key = fmt.Sprintf("init %d:%d", c.cell, c.line)
			}
			keys = append(keys, key)
		case *ast.GenDecl:
			for _, spec := range decl.Specs {
				switch spec := spec.(type) {
				case *ast.ImportSpec:
					key := spec.Path.Value
					if spec.Name != nil {
						key = spec.Name.Name + " " + key
					}
					keys = append(keys, key)
				case *ast.TypeSpec:
					keys = append(keys, spec.Name.Name)
				case *ast.ValueSpec:
					for _, n := range spec.Names {
						if n.Name == "_" {
							keys = append(keys, fmt.Sprintf("_ %d:%d", c.cell, c.line))
							continue
						}
						keys = append(keys, n.Name)
					}
				}
			}
		}
	}
	if keys == nil {
		keys = []string{fmt.Sprintf("nothing %d:%d", c.cell, c.line)}
	}
	return keys, nil
}

func receiver(t ast.Expr) string {
	switch t := t.(type) {
	case *ast.StarExpr:
		return receiver(t.X)
	case *ast.IndexExpr:
		return receiver(t.X)
	case *ast.IndexListExpr:
		return receiver(t.X)
	case *ast.Ident:
		return t.Name
	}
	return "?"
}

// program is what one run is made of.
type program struct {
	declared, imports map[string]chunk
	order             []string
	statements        []chunk
	main              bool
}

// show writes values to the driver.
const show = `
func paddockShow(values ...any) {
	f := paddockOS.NewFile(3, "result")
	for i, v := range values {
		if i > 0 {
			paddockFmt.Fprint(f, " ")
		}
		if s, ok := v.(string); ok {
			paddockFmt.Fprintf(f, "%q", s)
		} else {
			paddockFmt.Fprintf(f, "%+v", v)
		}
	}
	f.Close()
}
`

// common are packages that need not be imported: their names mean one thing in
// the standard library.
var common = map[string]string{
	"bufio": "bufio", "bytes": "bytes", "context": "context", "errors": "errors", "fmt": "fmt", "hex": "encoding/hex",
	"http": "net/http", "io": "io", "json": "encoding/json", "log": "log", "maps": "maps", "math": "math", "os": "os",
	"filepath": "path/filepath", "reflect": "reflect", "regexp": "regexp", "runtime": "runtime", "slices": "slices",
	"sort": "sort", "strconv": "strconv", "strings": "strings", "sync": "sync", "time": "time", "unicode": "unicode",
	"url": "net/url", "utf8": "unicode/utf8",
}

// text writes the program. With value, the last statement is shown if it is an
// expression.
func (p program) text(value bool) string {
	var body strings.Builder
	written := map[string]bool{}
	for _, key := range p.order {
		c := p.declared[key]
		id := fmt.Sprintf("%d:%d:%s", c.cell, c.line, c.text)
		if !written[id] {
			written[id] = true
			write(&body, c)
		}
	}
	if !p.main {
		body.WriteString("\nfunc main() {\n")
		for i, c := range p.statements {
			if value && i == len(p.statements)-1 && shown(c.text) {
				fmt.Fprintf(&body, "\n//line cell_%d.go:%d\npaddockShow(%s)\n", c.cell, c.line, c.text)
				continue
			}
			write(&body, c)
			for _, name := range defined(c.text) {
				fmt.Fprintf(&body, "_ = %s\n", name)
			}
		}
		body.WriteString("}\n")
	}
	var head strings.Builder
	head.WriteString("package main\n\nimport paddockFmt \"fmt\"\nimport paddockOS \"os\"\n")
	for _, line := range p.used(body.String()) {
		head.WriteString(line + "\n")
	}
	return head.String() + show + body.String()
}

// shown reports whether a statement is an expression whose value is of interest:
// that of a print is not.
func shown(text string) bool {
	e, err := parser.ParseExpr(text)
	if err != nil {
		return false
	}
	call, ok := e.(*ast.CallExpr)
	if !ok {
		return true
	}
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return true
	}
	p, ok := f.X.(*ast.Ident)
	return !ok || p.Name != "fmt" || !strings.Contains(f.Sel.Name, "rint") || strings.HasPrefix(f.Sel.Name, "S")
}

func write(b *strings.Builder, c chunk) {
	fmt.Fprintf(b, "\n//line cell_%d.go:%d\n%s\n", c.cell, c.line, c.text)
}

// defined returns the variables of a definition like "a, b := 1, 2", which may
// stay unused.
func defined(text string) []string {
	f, err := parser.ParseFile(token.NewFileSet(), "", "package p; func _() {"+text+"\n}", 0)
	if err != nil {
		return nil
	}
	var names []string
	for _, s := range f.Decls[0].(*ast.FuncDecl).Body.List {
		if a, ok := s.(*ast.AssignStmt); ok && a.Tok == token.DEFINE {
			for _, left := range a.Lhs {
				if id, ok := left.(*ast.Ident); ok && id.Name != "_" {
					names = append(names, id.Name)
				}
			}
		}
	}
	return names
}

var version = regexp.MustCompile(`^v[0-9]+$`)

// used returns the import declarations that the program needs: Go refuses those
// that are not used.
func (p program) used(body string) []string {
	f, _ := parser.ParseFile(token.NewFileSet(), "", "package main\n"+body, 0)
	seen := map[string]bool{}
	if f != nil {
		ast.Inspect(f, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if id, ok := s.X.(*ast.Ident); ok {
					seen[id.Name] = true
				}
			}
			return true
		})
	}
	have := map[string]bool{}
	var lines []string
	for key, c := range p.imports {
		name, quoted, found := strings.Cut(key, " ")
		if !found {
			quoted = name
			full, _ := strconv.Unquote(quoted)
			name = path.Base(full)
			if version.MatchString(name) {
				name = path.Base(path.Dir(full))
			}
			name = strings.TrimSuffix(strings.TrimPrefix(name, "go-"), ".go")
		}
		if name == "_" || name == "." || seen[name] {
			have[name] = true
			lines = append(lines, c.text)
		}
	}
	for name, full := range common {
		if _, own := p.declared[name]; seen[name] && !have[name] && !own {
			lines = append(lines, fmt.Sprintf("import %q", full))
		}
	}
	sort.Strings(lines)
	return lines
}

// build compiles the program. output is what the compiler says.
func (d *driver) build(p program, value bool) (output string, err error) {
	file := filepath.Join(d.dir, "main.go")
	if err := os.WriteFile(file, []byte(p.text(value)), 0o600); err != nil {
		return err.Error(), err
	}
	// Without tables for a debugger: writing them takes half of the linker's time.
	cmd := exec.Command("go", "build", "-ldflags=-s -w", "-o", filepath.Join(d.dir, "program"), file)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	if err != nil && out.Len() == 0 {
		out.WriteString(err.Error())
	}
	return out.String(), err
}

// start runs the program.
func (d *driver) start() map[string]any {
	cmd := exec.Command(filepath.Join(d.dir, "program"))
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	result, end, err := os.Pipe()
	if err != nil {
		return failure("Error", err.Error())
	}
	defer result.Close()
	cmd.ExtraFiles = []*os.File{end}
	err = cmd.Start()
	end.Close()
	if err != nil {
		return failure("Error", err.Error())
	}
	shown := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(io.LimitReader(result, maxText))
		_, _ = io.Copy(io.Discard, result)
		shown <- string(text)
	}()
	err = cmd.Wait()
	var text string
	select {
	case text = <-shown:
	case <-time.After(time.Second):
		// A process that the program left behind holds the other end.
		_ = result.SetReadDeadline(time.Now())
		text = <-shown
	}
	if err != nil && d.halted() {
		return interrupted()
	}
	if text != "" {
		d.send(map[string]any{"t": "result", "count": d.count, "data": map[string]string{"text/plain": text}})
	}
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return failure("ExitError", exit.String(), exit.String())
	case err != nil:
		return failure("Error", err.Error())
	}
	return map[string]any{"t": "done"}
}
