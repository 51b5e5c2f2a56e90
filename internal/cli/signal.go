package cli

import (
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

var (
	signalDigits = regexp.MustCompile(`signal:? (\d{1,2})\b`)
	signalName   = regexp.MustCompile(`\bSIG[A-Z0-9]+\b`)
	exitDigits   = regexp.MustCompile(`exit code (\d{1,3})\b`)
)

// signalNumber finds a signal in words such as "signal 9 (SIGKILL)" or
// "signal: killed".
func signalNumber(text string) (int, bool) {
	if m := signalDigits.FindStringSubmatch(text); m != nil {
		n, err := strconv.Atoi(m[1])
		return n, err == nil && n > 0 && n < 65
	}
	if name := signalName.FindString(text); name != "" {
		if s := unix.SignalNum(name); s != 0 {
			return int(s), true
		}
	}
	for n := 1; n < 32; n++ {
		if strings.Contains(text, "signal: "+syscall.Signal(n).String()) {
			return n, true
		}
	}
	return 0, false
}

// exitCode finds the exit code in a status message such as "exit code 3".
func exitCode(message string) (int, bool) {
	m := exitDigits.FindStringSubmatch(message)
	if m == nil {
		return 0, false
	}
	n, err := strconv.Atoi(m[1])
	return n, err == nil && n < 256
}

// parseID reads a user or group id.
func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	// The last value means "no change" to chown(2) and setuid(2).
	return uint32(n), err == nil && n != 1<<32-1
}
