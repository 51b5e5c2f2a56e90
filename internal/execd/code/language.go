package code

import (
	"net/http"
	"slices"
	"strings"

	_ "embed"

	"github.com/paddock-sandbox/paddock/internal/execd/process"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

//go:embed driver/python.py
var pythonCore string

//go:embed driver/python_extra.py
var pythonExtra string

//go:embed driver/python_magic.py
var pythonMagic string

//go:embed driver/node.js
var nodeCore string

//go:embed driver/java.java
var javaCore string

//go:embed driver/ruby.rb
var rubyCore string

//go:embed driver/r.R
var rCore string

//go:embed driver/godriver/main.go
var goCore string

// language is one that contexts can be of.
type language struct {
	name    string
	aliases []string
	// programs are looked for in this order; the first one found is the driver.
	programs []string
	// needs is another program without which the driver can't work, empty for
	// none.
	needs string
	// args follow the program's name.
	args []string
	// core and extra are the two parts of the driver's program.
	core, extra string
	// file names a file that the program is in, which is the last argument;
	// empty for drivers that read it from their descriptor.
	file string
	// reopens marks a driver that opens its descriptors by their names.
	reopens bool
	// shell marks bash, whose driver is spoken to in another way.
	shell bool
	// probe marks a language for which the program alone may not be enough.
	probe bool
	// env changes the environment; nil leaves it as it is.
	env func([]string) []string
	// kernel names the Jupyter kernel that the language stands for; empty for
	// a language that has a driver.
	kernel string
}

// pythonStart reads the driver's program, which is not in its argument so that
// process lists stay readable.
const pythonStart = `import os;exec(compile(os.pread(5,1<<20,0),"<paddock driver>","exec"),{"__name__":"paddock_driver"})`

// nodeArgs make node read the driver's program. The function that it becomes
// is told where it comes from by the last line, for stack traces.
func nodeArgs(dialect string) []string {
	return []string{"-e", `{const b=Buffer.alloc(1<<20);const n=require("fs").readSync(5,b,0,b.length,0);` +
		`new Function("require","process","load","dialect",b.toString("utf8",0,n)+"\n//# sourceURL=paddock-driver")(require,process,n=>import(n),"` + dialect + `")}`}
}

// javaArgs make java compile and run the driver's program, which needs the
// constructor of inherited descriptors, and little memory of its own.
var javaArgs = []string{
	"-Xshare:auto", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC",
	"--add-modules", "jdk.jshell", "--add-opens", "java.base/java.io=ALL-UNNAMED",
	"--source", "11", "/proc/self/fd/5",
}

// goStart compiles the driver's program, whose file is $0, next to which is a
// directory for its work. Modules of the working directory are none of its
// business.
const goStart = `d="${0%/*}/work" && ( cd "$d" && GO111MODULE=off GOFLAGS= go build -o driver "$0" ) && exec "$d/driver" "$d"`

// languages are all languages, in the order in which they are listed.
var languages = []*language{
	{
		name: "python", aliases: []string{"python3", "py"},
		programs: []string{"python3", "python"},
		args:     []string{"-c", pythonStart},
		core:     pythonCore, extra: pythonExtra + pythonMagic,
	},
	{
		name: "javascript", aliases: []string{"js", "node", "nodejs"},
		programs: []string{"node", "nodejs"},
		args:     nodeArgs("javascript"),
		core:     nodeCore,
	},
	{
		name: "typescript", aliases: []string{"ts"},
		programs: []string{"node", "nodejs"},
		args:     nodeArgs("typescript"),
		core:     nodeCore,
		probe:    true,
	},
	{
		name:     "java",
		programs: []string{"java"},
		needs:    "jshell",
		args:     javaArgs,
		core:     javaCore,
	},
	{
		name: "go", aliases: []string{"golang"},
		programs: []string{"sh", "/bin/sh"},
		needs:    "go",
		args:     []string{"-c", goStart},
		core:     goCore,
		file:     "driver.go",
	},
	{
		name:     "r",
		programs: []string{"R"},
		args:     []string{"--no-save", "--no-restore", "--slave", "--file=/dev/fd/5"},
		core:     rCore,
		reopens:  true,
	},
	{
		name: "ruby", aliases: []string{"rb"},
		programs: []string{"ruby"},
		args:     []string{"-e", `eval(IO.for_fd(5,autoclose:false).pread(1<<20,0).force_encoding("UTF-8"),nil,"<paddock driver>")`},
		core:     rubyCore,
	},
	{
		name: "bash", aliases: []string{"shell", "sh"},
		programs: []string{"bash", "/bin/bash"},
		args:     shellArgs,
		shell:    true,
		env:      shellEnviron,
	},
}

// python is the language that has a kernel of its own in many images.
var python = languages[0]

// languageNames finds a language by its name or an alias.
var languageNames = func() map[string]*language {
	m := make(map[string]*language)
	for _, l := range languages {
		m[l.name] = l
		for _, a := range l.aliases {
			m[a] = l
		}
	}
	return m
}()

// isShell reports whether code of that language is a shell command
// (OpenSandbox code interpreter), and whether it is to run in the background.
func isShell(name string) (shell, background bool) {
	switch strings.ToLower(name) {
	case "", "command":
		return true, false
	case "background-command":
		return true, true
	}
	return false, false
}

// called reports whether the language has that name.
func (l *language) called(name string) bool {
	return slices.Contains(l.names(), strings.ToLower(name))
}

// names are all names of the language.
func (l *language) names() []string { return append([]string{l.name}, l.aliases...) }

// environ is the environment of the language's driver.
func (l *language) environ(env []string) []string {
	if l.env == nil {
		return env
	}
	return l.env(env)
}

// find looks for the driver's program.
func (l *language) find(path, dir string) (string, error) {
	lacks := false
	if l.needs != "" {
		_, err := process.Look(l.needs, path, dir)
		lacks = err != nil
	}
	for _, name := range l.programs {
		if found, err := process.Look(name, path, dir); err == nil && !lacks {
			return found, nil
		}
	}
	return "", web.Errorf(http.StatusInternalServerError, web.CodeRuntime,
		"this image can't run %s: it has no program %s in PATH %q; install it or use an image that has it", l.name, l.missing(), path)
}

// missing names what is looked for.
func (l *language) missing() string {
	var bare []string
	for _, p := range l.programs {
		if !strings.Contains(p, "/") {
			bare = append(bare, p)
		}
	}
	if l.needs != "" {
		return l.needs
	}
	return strings.Join(bare, " or ")
}
