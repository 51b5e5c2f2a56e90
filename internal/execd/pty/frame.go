package pty

import (
	"encoding/json"
	"fmt"
	"syscall"
)

// First bytes of binary messages (OpenSandbox execd API).
const (
	prefixStdin  = 0x00
	prefixStdout = 0x01
	prefixStderr = 0x02
	// prefixReplay is followed by the offset, a big-endian int64.
	prefixReplay = 0x03
	replayHeader = 1 + 8
)

// Codes of error frames, and of refusals before the upgrade.
const (
	codeSessionGone      = "SESSION_GONE"
	codeStartFailed      = "START_FAILED"
	codeStdinFailed      = "STDIN_WRITE_FAILED"
	codeInvalidFrame     = "INVALID_FRAME"
	codeAlreadyConnected = "ALREADY_CONNECTED"
	codeTakenOver        = "TAKEN_OVER"
)

// closeTakenOver is the close code for a client whose session another one took
// over, so that it does not come back by itself.
const closeTakenOver = 4001

// Types of text frames from the client.
const (
	frameStdin  = "stdin"
	frameResize = "resize"
	frameSignal = "signal"
	framePing   = "ping"
	// frameEOF is paddock's: it ends the program's input. In a terminal it is
	// the key that does so, Ctrl-D.
	frameEOF = "eof"
)

// clientFrame is a text message of the client.
type clientFrame struct {
	Type   string `json:"type"`
	Data   string `json:"data"`
	Cols   int    `json:"cols"`
	Rows   int    `json:"rows"`
	Signal string `json:"signal"`

	size   size
	signal syscall.Signal
}

// signals are what a client may send.
var signals = map[string]syscall.Signal{
	"SIGINT":  syscall.SIGINT,
	"SIGTERM": syscall.SIGTERM,
	"SIGKILL": syscall.SIGKILL,
	"SIGQUIT": syscall.SIGQUIT,
	"SIGHUP":  syscall.SIGHUP,
}

// decodeFrame reads a text message. Its errors are for the client.
func decodeFrame(text []byte) (*clientFrame, error) {
	var f clientFrame
	if err := json.Unmarshal(text, &f); err != nil {
		return nil, fmt.Errorf("the text frame is not a JSON object of the kind {\"type\":…}: %w", err)
	}
	switch f.Type {
	case frameStdin, framePing, frameEOF:
	case frameResize:
		var err error
		if f.size, err = checkSize(f.Cols, f.Rows); err != nil {
			return nil, err
		}
	case frameSignal:
		sig, ok := signals[f.Signal]
		if !ok {
			return nil, fmt.Errorf("signal is %q; it must be SIGINT, SIGTERM, SIGKILL, SIGQUIT or SIGHUP", clip(f.Signal))
		}
		f.signal = sig
	default:
		return nil, fmt.Errorf("unknown frame type %q; it must be stdin, resize, signal, ping or eof", clip(f.Type))
	}
	return &f, nil
}

// clip keeps a client's text from making an answer long.
func clip(s string) string {
	const longest = 64
	if len(s) > longest {
		return s[:longest] + "…"
	}
	return s
}

// checkSize checks a terminal's size.
func checkSize(cols, rows int) (size, error) {
	// struct winsize has 16 bits for each (ioctl_tty(2)).
	const most = 1<<16 - 1
	if cols < 1 || cols > most || rows < 1 || rows > most {
		return size{}, fmt.Errorf("the terminal's size is %d columns and %d rows; each must be from 1 to %d", cols, rows, most)
	}
	return size{uint16(cols), uint16(rows)}, nil
}

// serverFrame is a text message to the client.
type serverFrame struct {
	Type      string `json:"type"`
	SessionID string `json:"session_id,omitempty"`
	Mode      string `json:"mode,omitempty"`
	// Offset is paddock's: where the live output begins.
	Offset   *int64 `json:"offset,omitempty"`
	ExitCode *int   `json:"exit_code,omitempty"`
	// Signal is paddock's: the number of the signal that ended the program,
	// whose exit_code is -1 then.
	Signal int    `json:"signal,omitempty"`
	Code   string `json:"code,omitempty"`
	Error  string `json:"error,omitempty"`
}

func (f serverFrame) encode() []byte {
	// Cannot fail: strings and numbers only.
	b, _ := json.Marshal(f)
	return b
}

func errorFrame(code, text string) []byte {
	return serverFrame{Type: "error", Code: code, Error: text}.encode()
}
