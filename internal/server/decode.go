package server

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// maxShown is how much of a caller's text an error message repeats, in bytes.
const maxShown = 64

// quote makes a caller's text safe and short enough for a message.
func quote(s string) string { return strconv.QuoteToGraphic(shorten(s)) }

func shorten(s string) string {
	if len(s) <= maxShown {
		return s
	}
	return strings.ToValidUTF8(s[:maxShown], "") + "…"
}

// decoder takes values out of a body. The first error stays, and everything
// that is taken after it is zero, so that decoding reads as a straight line.
type decoder struct{ err *sandbox.Error }

func (d *decoder) fail(err *sandbox.Error) {
	if d.err == nil {
		d.err = err
	}
}

// refuse reports what is wrong with the value at a path.
func (d *decoder) refuse(path, format string, args ...any) {
	d.fail(invalid(sandbox.CodeInvalidParameter, "%s %s", field(path), fmt.Sprintf(format, args...)))
}

func field(path string) string {
	if path == "" {
		return "The body"
	}
	return path
}

// is checks the type of a value. Absent values have to be dealt with before.
func (d *decoder) is(v *value, want kind) bool {
	if d.err != nil {
		return false
	}
	if v.kind == want {
		return true
	}
	got := v.kind.String()
	switch v.kind {
	case kindNumber:
		got += " (" + shorten(v.text) + ")"
	case kindBool:
		got += " (" + strconv.FormatBool(v.yes) + ")"
	}
	// The text of strings is not repeated: it may be a secret in the wrong
	// place.
	d.refuse(v.path, "must be %s, not %s.", want, got)
	return false
}

// member returns a member of an object by its name in camelCase, or in
// snake_case, which counts as the same. It is nil when absent or null.
func (d *decoder) member(obj *value, name string) *value {
	if obj == nil || d.err != nil {
		return nil
	}
	v := obj.find(name)
	if snake := snakeCase(name); snake != name {
		other := obj.find(snake)
		if v != nil && other != nil {
			d.refuse(join(obj.path, name), "is given twice, also as %s.", snake)
			return nil
		}
		if v == nil {
			v = other
		}
	}
	if v == nil || v.kind == kindNull {
		return nil
	}
	return v
}

func snakeCase(name string) string {
	var b strings.Builder
	for _, c := range name {
		if unicode.IsUpper(c) {
			b.WriteByte('_')
			c = unicode.ToLower(c)
		}
		b.WriteRune(c)
	}
	return b.String()
}

// object returns a member that must be an object.
func (d *decoder) object(obj *value, name string) *value {
	v := d.member(obj, name)
	if v == nil || !d.is(v, kindObject) {
		return nil
	}
	return v
}

// only refuses members of an object other than those named.
func (d *decoder) only(obj *value, names ...string) {
	if obj == nil || d.err != nil {
		return
	}
	for _, m := range obj.members {
		known := false
		for _, n := range names {
			known = known || m.name == n || m.name == snakeCase(n)
		}
		if !known {
			d.refuse(m.path, "is not a member that exists here. Allowed: %s.", strings.Join(names, ", "))
			return
		}
	}
}

// bytesRule says what a text may contain.
type bytesRule struct {
	max int // in bytes
	// lines allows control characters, as in a script; NUL is never allowed.
	lines bool
	// secret keeps the text out of messages.
	secret bool
}

// text returns a member that must be a string and not blank. present is false
// when it is absent, and after an error.
func (d *decoder) text(obj *value, name string, rule bytesRule) (s string, present bool) {
	v := d.member(obj, name)
	if v == nil {
		return "", false
	}
	s = d.textOf(v, rule)
	if d.err == nil && strings.TrimSpace(s) == "" {
		d.refuse(v.path, "is empty.")
	}
	return s, d.err == nil
}

// required is text that must be there.
func (d *decoder) required(obj *value, name string, rule bytesRule) string {
	s, ok := d.text(obj, name, rule)
	if !ok && d.err == nil && obj != nil {
		d.refuse(join(obj.path, name), "is missing.")
	}
	return s
}

// textOf checks a string, which may be empty.
func (d *decoder) textOf(v *value, rule bytesRule) string {
	if !d.is(v, kindString) {
		return ""
	}
	if len(v.text) > rule.max {
		d.refuse(v.path, "is %d bytes long; at most %d are allowed.", len(v.text), rule.max)
		return ""
	}
	for i, c := range v.text {
		if c == 0 || !rule.lines && (unicode.IsControl(c) || c == utf8.RuneError) {
			shown := " (" + quote(v.text) + ")"
			if rule.secret {
				shown = ""
			}
			what := "a control character"
			if c == 0 {
				what = "a NUL character"
			} else if c == utf8.RuneError {
				what = "a character that is not valid Unicode"
			}
			d.refuse(v.path, "contains %s at byte %d%s.", what, i, shown)
			return ""
		}
	}
	return v.text
}

// flag returns a boolean member, or otherwise when it is absent.
func (d *decoder) flag(obj *value, name string, otherwise bool) bool {
	v := d.member(obj, name)
	if v == nil || !d.is(v, kindBool) {
		return otherwise
	}
	return v.yes
}

// whole returns the value of a number without a fraction. 600.0 and 6e2 are
// such numbers too.
func (d *decoder) whole(v *value, low, high int64) int64 {
	if !d.is(v, kindNumber) {
		return 0
	}
	n, err := strconv.ParseInt(v.text, 10, 64)
	if err != nil {
		f, ferr := strconv.ParseFloat(v.text, 64)
		switch {
		case ferr != nil || math.Abs(f) >= 1<<53:
			d.refuse(v.path, "is %s; it must be from %d to %d.", shorten(v.text), low, high)
			return 0
		case f != math.Trunc(f):
			d.refuse(v.path, "is %s; it must be a whole number.", shorten(v.text))
			return 0
		}
		n = int64(f)
	}
	if n < low || n > high {
		d.refuse(v.path, "is %s; it must be from %d to %d.", shorten(v.text), low, high)
		return 0
	}
	return n
}

// list returns an array member, bounded.
func (d *decoder) list(obj *value, name string, maxItems int) []*value {
	v := d.member(obj, name)
	if v == nil || !d.is(v, kindArray) {
		return nil
	}
	if len(v.items) > maxItems {
		d.refuse(v.path, "has %d items; at most %d are allowed.", len(v.items), maxItems)
		return nil
	}
	return v.items
}

// entries returns the members of an object member, bounded.
func (d *decoder) entries(obj *value, name string, maxEntries int) []member {
	v := d.object(obj, name)
	if v == nil {
		return nil
	}
	if len(v.members) > maxEntries {
		d.refuse(v.path, "has %d entries; at most %d are allowed.", len(v.members), maxEntries)
		return nil
	}
	return v.members
}
