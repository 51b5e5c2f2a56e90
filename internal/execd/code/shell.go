package code

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/execd/process"
)

// Descriptors of a shell. They are out of the way of those that scripts choose.
// Orders are its standard input.
const (
	shellTextFD   = 62
	shellReportFD = 63
)

// shellArgs make bash interactive, without a terminal and without files of the
// user. An interactive bash gives up the command line at hand when it gets
// SIGINT and goes on with the next one, with all its state; any other bash
// would end.
var shellArgs = []string{"--noprofile", "--norc", "--noediting", "-i"}

// shellUnset are variables that make an interactive bash do things on its own:
// print prompts, run commands, end after a while, look for mail.
var shellUnset = []string{"PS0", "PS1", "PS2", "PS4", "PROMPT_COMMAND", "TMOUT", "MAIL", "MAILPATH", "HISTFILE", "IGNOREEOF"}

// shellInit is bash's first order. What it prints up to then is dropped.
const shellInit = `PS1= PS2= PROMPT_COMMAND=; set +H +o history; unset HISTFILE MAILCHECK PS1 PS2 PROMPT_COMMAND; PS4='+ '
\builtin printf '{"t":"ready"}\n' >&63
`

// shellRun evaluates one run and reports. Each line stands for itself: SIGINT
// ends the second, and the third follows. Aliases and functions of the user
// must not get in the way, hence the backslashes and "builtin". The groups keep
// "set -x" from showing execd's own steps.
const shellRun = `{ IFS= \builtin read -rd "" -u 62 __paddock_run; \builtin printf '{"t":"busy","n":%d}\n' >&63; } 2>/dev/null
\builtin eval "$__paddock_run" </dev/null 62<&- 63>&-
{ \builtin printf '{"t":"done","n":%d,"count":%d,"code":%%d}\n' "$?" >&63; \builtin unset __paddock_run; } 2>/dev/null
`

// wireShell gives bash its descriptors.
func (d *driver) wireShell(w *wiring, spec *process.Spec) error {
	fd, err := unix.MemfdCreate("code", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	d.text = os.NewFile(uintptr(fd), "code")
	w.ours = append(w.ours, func() { d.text.Close() })
	std := spec.Files
	spec.Files = make([]*os.File, shellReportFD+1)
	spec.Files[0], spec.Files[1], spec.Files[2] = std[3], std[1], std[2]
	spec.Files[shellTextFD], spec.Files[shellReportFD] = d.text, std[4]
	// The pipe holds it until bash reads.
	_, err = d.orders.WriteString(shellInit)
	return err
}

// orderShell puts the code where bash reads it and tells it to do so. The
// offset of the file is shared with bash.
func (d *driver) orderShell(n uint64, code string) error {
	if err := d.text.Truncate(0); err != nil {
		return err
	}
	if _, err := d.text.WriteAt([]byte(code+"\x00"), 0); err != nil {
		return err
	}
	if _, err := d.text.Seek(0, 0); err != nil {
		return err
	}
	d.shellRuns++
	_, err := fmt.Fprintf(d.orders, shellRun, n, n, d.shellRuns)
	return err
}

// shellEnviron is the environment of bash: without the variables of
// shellUnset.
func shellEnviron(env []string) []string {
	var kept []string
	for _, v := range env {
		name, _, _ := strings.Cut(v, "=")
		drop := false
		for _, u := range shellUnset {
			drop = drop || name == u
		}
		if !drop {
			kept = append(kept, v)
		}
	}
	return kept
}
