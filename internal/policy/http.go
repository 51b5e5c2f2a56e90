package policy

import (
	"errors"
	"slices"
	"strings"
)

// checkPattern says what is wrong with a path pattern.
func checkPattern(p string) error {
	switch {
	case !strings.HasPrefix(p, "/"):
		return errors.New(`a path begins with "/".`)
	case len(p) > maxPath:
		return errors.New("it is longer than 2048 bytes.")
	case strings.ContainsAny(p, "?#%\\"):
		return errors.New(`it is compared with the decoded path, without a query: leave out "?", "#", "%" and "\".`)
	case strings.Contains(p, "//"), slices.Contains(strings.Split(p, "/"), "."), slices.Contains(strings.Split(p, "/"), ".."):
		return errors.New(`it has an empty, "." or ".." segment, which no cleaned path has.`)
	}
	for _, c := range p {
		if c < ' ' || c == 0x7f {
			return errors.New("it holds a control character.")
		}
	}
	return nil
}

// Matches reports whether a request is allowed. path is the path of the request
// target as it was sent, still encoded and without its query. A path with more
// than one reading matches no pattern: one with an encoded slash, backslash,
// percent or NUL, a wrong escape, an empty segment, or a dot segment.
func (h *HTTP) Matches(method, path string) bool {
	if len(h.Methods) > 0 && !slices.Contains(h.Methods, method) {
		return false
	}
	if len(h.Paths) == 0 {
		return true
	}
	clear, ok := plainPath(path)
	if !ok {
		return false
	}
	return slices.ContainsFunc(h.Paths, func(p string) bool { return matchPath(p, clear) })
}

// plainPath decodes a path that can be read in one way only.
func plainPath(path string) (string, bool) {
	if !strings.HasPrefix(path, "/") || len(path) > 64<<10 {
		return "", false
	}
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '%' {
			if i+2 >= len(path) {
				return "", false
			}
			hi, lo := unhex(path[i+1]), unhex(path[i+2])
			if hi < 0 || lo < 0 {
				return "", false
			}
			c = byte(hi<<4 | lo)
			i += 2
			if c == '/' || c == '%' {
				return "", false
			}
		}
		if c < ' ' || c == 0x7f || c == '\\' {
			return "", false
		}
		b.WriteByte(c)
	}
	clear := b.String()
	segments := strings.Split(clear[1:], "/")
	for i, s := range segments {
		// Some servers cut parameters off ("..;x") before they resolve dots.
		name, _, _ := strings.Cut(s, ";")
		if name == "." || name == ".." || s == "" && i < len(segments)-1 {
			return "", false
		}
	}
	return clear, true
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// matchPath is linear in the path for each star: the position of the last star
// is all that has to be gone back to.
func matchPath(pattern, path string) bool {
	prefix, open := strings.CutSuffix(pattern, "*")
	p, s := 0, 0
	star, from := -1, 0
	for {
		switch {
		case p == len(prefix) && (open || s == len(path)):
			return true
		case p < len(prefix) && prefix[p] == '*':
			star, from = p, s
			p++
		case p < len(prefix) && s < len(path) && prefix[p] == path[s]:
			p, s = p+1, s+1
		case star >= 0 && from < len(path) && path[from] != '/':
			from++
			p, s = star+1, from
		default:
			return false
		}
	}
}
