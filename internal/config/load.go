package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// DefaultPath is read when no file is named; it need not exist.
const DefaultPath = "/etc/paddock/config.toml"

// maxFile bounds a configuration file.
const maxFile = 1 << 20

// Override is one setting from a flag.
type Override struct {
	// Key is "section.key".
	Key, Value string
	// Source says where it is from, for messages, such as "flag --listen".
	Source string
}

// LoadOptions say where the configuration comes from.
type LoadOptions struct {
	// Path is the file. Empty means PADDOCK_CONFIG, else DefaultPath; only the
	// latter may be missing.
	Path string
	// Environ is the environment as "name=value"; usually os.Environ().
	Environ []string
	// Overrides win over file and environment; later ones over earlier ones.
	Overrides []Override
}

// Loaded is a configuration and where its values are from.
type Loaded struct {
	*Config
	// Path is the file that was read; empty when there was none.
	Path string
	// sources holds, for each key that was set, where.
	sources map[string]string
}

// Source says where a key's value is from.
func (l *Loaded) Source(key string) string {
	if s := l.sources[key]; s != "" {
		return s
	}
	return "default"
}

// Error is one thing that is wrong with the configuration.
type Error struct {
	// Source is "file:line", "environment variable X" or "flag --x".
	Source  string
	Message string
}

func (e *Error) Error() string { return e.Source + ": " + e.Message }

// loader collects every error, so that one run shows all of them.
type loader struct {
	out  *Loaded
	keys map[string]*key
	errs []error
}

// Load reads and checks the configuration. Its error joins one *Error for each
// thing that is wrong.
func Load(o LoadOptions) (*Loaded, error) {
	l := &loader{
		out:  &Loaded{Config: Default(), sources: map[string]string{}},
		keys: map[string]*key{},
	}
	for _, k := range keys() {
		l.keys[k.name] = k
	}
	env := environ(o.Environ)
	if err := l.file(o.Path, env[EnvConfig]); err != nil {
		return nil, err
	}
	l.environment(env)
	for _, ov := range o.Overrides {
		k := l.keys[ov.Key]
		if k == nil {
			l.fail(ov.Source, "%q is not a key.%s", ov.Key, l.suggest(ov.Key))
			continue
		}
		l.set(k, ov.Value, ov.Source)
	}
	if len(l.errs) == 0 {
		l.check()
	}
	if len(l.errs) > 0 {
		return nil, errors.Join(l.errs...)
	}
	return l.out, nil
}

func (l *loader) fail(source, format string, args ...any) {
	l.errs = append(l.errs, &Error{Source: source, Message: fmt.Sprintf(format, args...)})
}

// set assigns one value. A secret is not repeated in the message.
func (l *loader) set(k *key, value any, source string) {
	if err := assign(k.field(l.out.Config), value); err != nil {
		shown := fmt.Sprintf(" = %q", fmt.Sprint(value))
		if k.secret {
			shown = ""
		}
		l.fail(source, "%s%s: %s", k.name, shown, err)
		return
	}
	l.out.sources[k.name] = source
}

func (l *loader) suggest(name string) string {
	if near := nearest(name, slices.Sorted(maps.Keys(l.keys))); near != "" {
		return fmt.Sprintf(" Did you mean %q?", near)
	}
	// The right key in the wrong section is the other common slip.
	_, last, _ := strings.Cut(name, ".")
	for _, k := range keys() {
		if _, key, _ := strings.Cut(k.name, "."); key == last || key == name {
			return fmt.Sprintf(" Did you mean %q?", k.name)
		}
	}
	return " `paddock config --markdown` lists all keys."
}

// file reads the configuration file, if there is one.
func (l *loader) file(path, fromEnv string) error {
	optional := false
	switch {
	case path != "":
	case fromEnv != "":
		path = fromEnv
	default:
		path, optional = DefaultPath, true
	}
	f, err := os.Open(path)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	if len(data) > maxFile {
		return fmt.Errorf("configuration %s is larger than 1 MiB: is it the right file?", path)
	}
	l.out.Path = path
	return l.parse(path, data)
}

// parse takes the file apart. Syntax errors come back at once, with the line;
// the rest is collected.
func (l *loader) parse(path string, data []byte) error {
	var doc map[string]any
	if err := toml.Unmarshal(data, &doc); err != nil {
		var de *toml.DecodeError
		if errors.As(err, &de) {
			line, _ := de.Position()
			return &Error{Source: fmt.Sprintf("%s:%d", path, line), Message: strings.TrimPrefix(de.Error(), "toml: ")}
		}
		return &Error{Source: path, Message: err.Error()}
	}
	lines := keyLines(data)
	for _, section := range slices.Sorted(maps.Keys(doc)) {
		at := func(name string) string { return fmt.Sprintf("%s:%d", path, lines[name]) }
		table, ok := doc[section].(map[string]any)
		if !ok {
			l.fail(at(section), "%q stands outside of a section.%s", section, l.suggest(section))
			continue
		}
		if !slices.Contains(sections(), section) {
			l.fail(at(section), "[%s] is not a section.%s", section, suggestSection(section))
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(table)) {
			full := section + "." + name
			k := l.keys[full]
			if k == nil {
				l.fail(at(full), "%q is not a key of [%s].%s", name, section, l.suggest(full))
				continue
			}
			l.set(k, table[name], at(full))
		}
	}
	return nil
}

// keyLines finds the line on which each table and key begins.
func keyLines(data []byte) map[string]int {
	lines := map[string]int{}
	var p unstable.Parser
	p.Reset(data)
	var table []string
	for p.NextExpression() {
		node := p.Expression()
		var path []string
		line := 0
		for it := node.Key(); it.Next(); {
			part := it.Node()
			if line == 0 {
				line = p.Shape(part.Raw).Start.Line
			}
			path = append(path, string(part.Data))
		}
		switch node.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = path
		default:
			path = append(slices.Clone(table), path...)
		}
		// A dotted key is found under each of its beginnings, and an inline
		// table under its own.
		for n := 1; n <= len(path); n++ {
			name := strings.Join(path[:n], ".")
			if lines[name] == 0 {
				lines[name] = line
			}
		}
		inlineLines(lines, strings.Join(path, "."), node, line)
	}
	return lines
}

// inlineLines gives the keys of an inline table the line of the table.
func inlineLines(lines map[string]int, prefix string, node *unstable.Node, line int) {
	if node.Kind != unstable.KeyValue || node.Value() == nil || node.Value().Kind != unstable.InlineTable {
		return
	}
	for it := node.Value().Children(); it.Next(); {
		for kit := it.Node().Key(); kit.Next(); {
			lines[prefix+"."+string(kit.Node().Data)] = line
			break
		}
	}
}

func sections() []string {
	var out []string
	for _, k := range keys() {
		if !slices.Contains(out, k.section) {
			out = append(out, k.section)
		}
	}
	return out
}

func suggestSection(name string) string {
	if near := nearest(name, sections()); near != "" {
		return fmt.Sprintf(" Did you mean [%s]?", near)
	}
	return " The sections are " + strings.Join(sections(), ", ") + "."
}

func environ(list []string) map[string]string {
	env := map[string]string{}
	for _, kv := range list {
		if name, value, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(name, envPrefix) {
			env[name] = value
		}
	}
	return env
}

// environment applies the variables. One that paddock does not know is an
// error when it looks like a key, because a misspelt one would else be silent.
func (l *loader) environment(env map[string]string) {
	byVar := map[string]*key{}
	known := []string{EnvConfig, EnvServer}
	for _, k := range l.keys {
		byVar[k.env()] = k
		known = append(known, k.env())
	}
	for alias, name := range envAlias {
		known = append(known, alias)
		k := l.keys[name]
		value, set := env[alias]
		if !set {
			continue
		}
		if other, both := env[k.env()]; both && other != value {
			l.fail("environment variable "+alias, "differs from %s: set only one of them", k.env())
			continue
		}
		l.set(k, value, "environment variable "+alias)
	}
	slices.Sort(known)
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if k := byVar[name]; k != nil {
			l.set(k, env[name], "environment variable "+name)
			continue
		}
		if slices.Contains(known, name) {
			continue
		}
		near := nearest(name, known)
		switch {
		case near != "" && (distance(name, near) <= 3 || looksLikeKey(name)):
			l.fail("environment variable "+name, "is not known. Did you mean %s?", near)
		case looksLikeKey(name):
			l.fail("environment variable "+name, "is not known. `paddock config --markdown` lists all keys.")
		}
	}
}

func looksLikeKey(name string) bool {
	for _, s := range sections() {
		if strings.HasPrefix(name, envPrefix+strings.ToUpper(s)+"_") {
			return true
		}
	}
	return false
}
