package execd

import (
	"slices"
	"strconv"
	"strings"

	"github.com/paddock-sandbox/paddock/internal/execd/isolated"
)

func itoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// saved is before the name of a variable in that of the one that keeps its value
// while a run has lent it another one.
const saved = "__paddock_was_"

// text is what the shell is given for a run: what the last run was lent is put
// back, what this one is lent is set, and then the code. All that is on the
// code's first line, so that numbers of lines in messages are right. Nothing is
// done after the code, which may leave the shell.
func (own *isolatedSession) text(req *isolated.RunRequest) string {
	var b strings.Builder
	for _, name := range own.lent {
		was := saved + name
		b.WriteString("if [ -n \"${" + was + "+x}\" ]; then " + name + "=\"$" + was + "\"; unset " + was + "; else unset " + name + "; fi; ")
	}
	own.lent = own.lent[:0]
	for name, value := range req.Envs {
		if !shellName(name) {
			continue // no shell could use it
		}
		own.lent = append(own.lent, name)
		was := saved + name
		b.WriteString("if [ -n \"${" + name + "+x}\" ]; then " + was + "=\"$" + name + "\"; fi; export " + name + "=" + quote(value) + "; ")
	}
	slices.Sort(own.lent)
	b.WriteString(req.Code)
	return b.String()
}

// shellName reports whether a shell can have a variable of that name.
func shellName(name string) bool {
	for i, c := range name {
		letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}

// quote writes a word that every POSIX shell reads as s.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
