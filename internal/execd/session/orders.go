package session

import (
	"fmt"
	"strings"
)

// Descriptors of a shell beyond the usual three. bash's are out of the way of
// those that scripts choose; other shells only know single digits.
const (
	bashTextFD   = 62
	bashReportFD = 63
	shReportFD   = 9
)

// bashSetUp prepares a new bash, and gives it the state of an earlier one. Its
// functions are read-only, so that no "unset -f" of a user ends the session, and
// come before the state, which holds copies of them.
//
// __execd_take N reads directory and text of a run, and returns N.
//
// __execd_done CODE SERIAL reports. Parts of the state are in the order in which
// they can be read back: options decide how functions are parsed, aliases would
// change everything after them, and errexit may only be set when nothing that
// can fail follows (some variables are read-only in every bash). Each part has
// its own redirection where possible, because traps of the user run before it
// is in force.
//
// Aliases and functions of the user must not get in the way, hence "\builtin".
// Redirecting the groups keeps "set -x" from showing execd's own steps.
const bashSetUp = `{ __execd_take() {
IFS= \builtin read -rd '' -u 62 __execd_dir; IFS= \builtin read -rd '' -u 62 __execd_run; \builtin return "$1"
}
__execd_done() {
\builtin printf '%s\0%d\0%s\0' "$2" "$1" "${PWD-}" >&63
\builtin unset -v __execd_dir __execd_run
{ \builtin umask -p; \builtin shopt -p; \builtin declare -f; \builtin export -fp; \builtin declare -p; \builtin set +o; \builtin alias -p; } >&63 || :
\builtin printf '\0' >&63
}
\builtin readonly -f __execd_take __execd_done; \builtin shopt -s expand_aliases; } 2>/dev/null
{ __execd_take 0; \builtin eval "$__execd_run"; \builtin cd -- "$__execd_dir" || :; } >/dev/null 2>&1 </dev/null

{ __execd_done 0 0; } 2>/dev/null
`

// bashRun tells bash to do one run. The list is such that the run finds the
// code of the one before it in $?, and that this code triggers neither errexit
// nor a trap. The empty line takes bash 5.2 out of the confusion into which
// eval of an unterminated quote leads its parser.
func bashRun(serial uint64, last int, cd bool) string {
	op, dir := "&&", ""
	switch {
	case cd:
		last, dir = 0, `\builtin cd -- "$__execd_dir" && `
	case last != 0:
		op = "||"
	}
	return fmt.Sprintf(`{ __execd_take %d; } 2>/dev/null %s %s\builtin eval "$__execd_run" </dev/null 62<&- 63>&-

{ __execd_done "$?" %d; } 2>/dev/null
`, last, op, dir, serial)
}

// shReport is the report of any other shell.
const shReport = `{ printf '%%s\0%%d\0%%s\0' %d "$?" "${PWD-}"; echo "umask $(umask)"; export -p; printf '\0'; } 2>/dev/null >&9
`

// shSetUp prepares a new sh. It can't be read back what it was not told to
// export.
func shSetUp(st state) string {
	return fmt.Sprintf("{ eval %s; cd -- %s; } >/dev/null 2>&1 </dev/null\n", quote(st.text), quote(st.cwd)) +
		fmt.Sprintf(shReport, 0)
}

// shRun tells sh to do one run: the text is part of the order.
func shRun(serial uint64, dir, text string) string {
	cd := ""
	if dir != "" {
		cd = "cd -- " + quote(dir) + " && "
	}
	return fmt.Sprintf("%seval %s </dev/null 9>&-\n\n", cd, quote(text)) + fmt.Sprintf(shReport, serial)
}

// quote makes s one word for every shell.
func quote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
