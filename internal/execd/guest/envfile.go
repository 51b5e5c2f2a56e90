package guest

import "strings"

const (
	// maxEnvFile bounds what is read of the extra environment file, in bytes.
	// execve takes no more than a few MiB in all.
	maxEnvFile = 1 << 20
	// maxEnvValue is MAX_ARG_STRLEN of Linux: a longer string makes every
	// execve fail.
	maxEnvValue = 128<<10 - 1
)

// parseEnvFile reads lines KEY=VALUE. Empty lines and lines that begin with '#'
// are skipped, "export " in front is allowed, and a later line wins. A value in
// single quotes is literal. One in double quotes knows \n \r \t \" \\ and \$;
// there and in a bare value $NAME and ${NAME} are replaced, first from earlier
// lines, then by lookup. Quoted values may span lines. What can't be understood
// is skipped: the file is written by hostile or careless code, and one bad line
// must not disable the rest.
func parseEnvFile(text string, lookup func(string) string) map[string]string {
	env := make(map[string]string)
	find := func(name string) string {
		if v, ok := env[name]; ok {
			return v
		}
		return lookup(name)
	}
	for text != "" {
		var line string
		line, text, _ = strings.Cut(text, "\n")
		line = strings.TrimLeft(strings.TrimSuffix(line, "\r"), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		line = strings.TrimPrefix(line, "export ")
		name, raw, ok := strings.Cut(line, "=")
		name = strings.TrimSpace(name)
		if !ok || !isName(name) {
			continue
		}
		raw = strings.TrimLeft(raw, " \t")
		var value string
		switch {
		case strings.HasPrefix(raw, "'"):
			value, text, ok = singleQuoted(raw[1:], text)
		case strings.HasPrefix(raw, `"`):
			value, text, ok = doubleQuoted(raw[1:], text, find)
		default:
			value = expand(strings.TrimRight(raw, " \t"), find)
		}
		if ok && len(name)+len(value) < maxEnvValue && !strings.ContainsRune(value, 0) {
			env[name] = value
		}
	}
	return env
}

// singleQuoted reads up to the closing quote, which may be on a later line.
// What follows it on its line is ignored.
func singleQuoted(line, rest string) (value, after string, ok bool) {
	if v, _, found := strings.Cut(line, "'"); found {
		return v, rest, true
	}
	tail, beyond, found := strings.Cut(rest, "'")
	if !found {
		return "", rest, false
	}
	_, after, _ = strings.Cut(beyond, "\n")
	return line + "\n" + tail, after, true
}

// doubleQuoted is singleQuoted with escapes and variables.
func doubleQuoted(line, rest string, find func(string) string) (value, after string, ok bool) {
	all := line + "\n" + rest
	var b strings.Builder
	for i := 0; i < len(all) && b.Len() < maxEnvValue; i++ {
		switch c := all[i]; {
		case c == '"':
			_, after, _ = strings.Cut(all[i+1:], "\n")
			return b.String(), after, true
		case c == '\\' && i+1 < len(all):
			i++
			b.WriteString(unescape(all[i]))
		case c == '$':
			v, n := variable(all[i:], find)
			b.WriteString(v)
			i += n - 1
		default:
			b.WriteByte(c)
		}
	}
	return "", rest, false
}

func unescape(c byte) string {
	switch c {
	case 'n':
		return "\n"
	case 'r':
		return "\r"
	case 't':
		return "\t"
	case '"', '\\', '$', '`':
		return string(c)
	}
	return `\` + string(c)
}

// expand replaces variables in a bare value.
func expand(s string, find func(string) string) string {
	if !strings.Contains(s, "$") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s) && b.Len() < maxEnvValue; i++ {
		if s[i] != '$' {
			b.WriteByte(s[i])
			continue
		}
		v, n := variable(s[i:], find)
		b.WriteString(v)
		i += n - 1
	}
	return b.String()
}

// variable reads $NAME or ${NAME} at the start of s and returns its value and
// its length in s. Any other dollar sign stands for itself.
func variable(s string, find func(string) string) (value string, n int) {
	if name, n := reference(s); n > 0 {
		return find(name), n
	}
	return "$", 1
}

// reference returns the variable name at the start of s, which begins with a
// dollar sign, and the length of the reference; 0 when it is none.
func reference(s string) (name string, n int) {
	if strings.HasPrefix(s, "${") {
		end := strings.IndexByte(s, '}')
		if end > 0 && isName(s[2:end]) {
			return s[2:end], end + 1
		}
		return "", 0
	}
	end := 1
	for end < len(s) && nameByte(s[end], end == 1) {
		end++
	}
	if end == 1 {
		return "", 0
	}
	return s[1:end], end
}

func isName(s string) bool {
	for i := range len(s) {
		if !nameByte(s[i], i == 0) {
			return false
		}
	}
	return s != ""
}

func nameByte(c byte, first bool) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || !first && c >= '0' && c <= '9'
}
