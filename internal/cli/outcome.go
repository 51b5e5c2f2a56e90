package cli

import (
	"errors"
	"io"
	"time"
	"unicode/utf8"
)

// maxCaptured bounds how much of each stream of a command goes into its outcome,
// in bytes: it is in memory until the command has ended.
const maxCaptured = 16 << 20

// outcomeHelp describes outcome where commands that print it are described.
const outcomeHelp = `With -o json nothing is streamed. When the command has ended one object tells how:
"sandbox" is the id, "stdout" and "stderr" hold what was printed, "exitCode" is the
exit code that paddock ends with, "durationMillis" how long it took, and "error", if
there is more to say, why the command could not be run or what ended it. Output that
is not UTF-8 has replacement characters there, and is exact in "stdoutBase64" and
"stderrBase64". Of each stream the first 16 MiB are kept; "stdoutTruncated" and
"stderrTruncated" say that there was more. What fails before the command is asked for,
such as the making of the sandbox, is an error without an object.`

// outcome is what run and exec print with -o json.
type outcome struct {
	Sandbox         string `json:"sandbox"`
	Stdout          string `json:"stdout"`
	StdoutBase64    []byte `json:"stdoutBase64,omitempty"`
	StdoutTruncated bool   `json:"stdoutTruncated,omitempty"`
	Stderr          string `json:"stderr"`
	StderrBase64    []byte `json:"stderrBase64,omitempty"`
	StderrTruncated bool   `json:"stderrTruncated,omitempty"`
	ExitCode        int    `json:"exitCode"`
	DurationMillis  int64  `json:"durationMillis"`
	Error           string `json:"error,omitempty"`
}

// told runs something in a sandbox with the streams of this process or, with
// -o json, prints its outcome. The error is that of run.
func (a *app) told(id string, run func(stdout, stderr io.Writer) error) error {
	if a.output != "json" {
		return run(a.streams.Out, a.streams.Err)
	}
	stdout, stderr := capture{limit: maxCaptured}, capture{limit: maxCaptured}
	began := time.Now()
	err := run(&stdout, &stderr)
	o := outcome{Sandbox: id, DurationMillis: time.Since(began).Milliseconds()}
	o.Stdout, o.StdoutBase64, o.StdoutTruncated = stdout.result()
	o.Stderr, o.StderrBase64, o.StderrTruncated = stderr.result()
	var exit *ExitError
	reason := err
	switch {
	case err == nil:
	case errors.As(err, &exit):
		o.ExitCode, reason = exit.Code, exit.Err
	default:
		o.ExitCode = exitPaddock
	}
	if reason != nil {
		o.Error = reason.Error()
	}
	if jerr := a.json(o); jerr != nil && err == nil {
		return paddockFailed(jerr)
	}
	return err
}

// capture keeps the first bytes that are written to it.
type capture struct {
	limit int
	b     []byte
	more  bool
}

func (c *capture) Write(p []byte) (int, error) {
	n := min(len(p), c.limit-len(c.b))
	c.b = append(c.b, p[:n]...)
	c.more = c.more || n < len(p)
	return len(p), nil
}

// result returns what was kept as text; exact is nil when that says it all.
func (c *capture) result() (text string, exact []byte, truncated bool) {
	b := c.b
	if c.more {
		// The limit is no reason for a character to be broken.
		for i := len(b) - 1; i >= max(0, len(b)-utf8.UTFMax); i-- {
			if utf8.RuneStart(b[i]) {
				if !utf8.FullRune(b[i:]) {
					b = b[:i]
				}
				break
			}
		}
	}
	if !utf8.Valid(b) {
		exact = b
	}
	return string(b), exact, c.more
}
