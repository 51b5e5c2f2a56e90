package enginetest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// maxAnswer bounds what is read of execd's answers, in bytes.
const maxAnswer = 1 << 20

// request asks the execd of a sandbox something, over the engine's Dial.
func (s *suite) request(ctx context.Context, b *box, method, path string, body any) (*http.Response, error) {
	encoded, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://execd"+path, bytes.NewReader(encoded))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(hostapi.TokenHeader, b.token)
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return s.eng.Dial(ctx, b.id, sandbox.ExecdPort)
		},
	}
	return transport.RoundTrip(req)
}

// exec runs a shell command in the sandbox and returns what it printed and its
// exit code.
func (s *suite) exec(ctx context.Context, b *box, command string) (stdout string, code int, err error) {
	resp, err := s.request(ctx, b, http.MethodPost, "/command", map[string]any{"command": command})
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	body := io.LimitReader(resp.Body, maxAnswer)
	if resp.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(body)
		return "", 0, fmt.Errorf("execd answered %s: %s", resp.Status, said)
	}
	return readEvents(body)
}

// readEvents reads the event stream of a command (OpenSandbox execd API).
func readEvents(r io.Reader) (stdout string, code int, err error) {
	var out strings.Builder
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxAnswer)
	for lines.Scan() {
		line := strings.TrimSpace(strings.TrimPrefix(lines.Text(), "data:"))
		if !strings.HasPrefix(line, "{") {
			continue
		}
		var event struct {
			Type, Text string
			Error      struct {
				EValue string `json:"evalue"`
			}
		}
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			return "", 0, fmt.Errorf("event %q: %w", line, err)
		}
		switch event.Type {
		case "stdout":
			out.WriteString(event.Text)
			out.WriteByte('\n')
		case "execution_complete":
			return out.String(), 0, nil
		case "error":
			code, err := strconv.Atoi(event.Error.EValue)
			if err != nil {
				return "", 0, fmt.Errorf("the command failed: %s", event.Error.EValue)
			}
			return out.String(), code, nil
		}
	}
	if lines.Err() != nil {
		return "", 0, lines.Err()
	}
	return "", 0, io.ErrUnexpectedEOF
}

// mustExec runs a command that has to succeed, and returns what it printed.
func (s *suite) mustExec(b *box, command string) string {
	s.t.Helper()
	out, code, err := s.exec(s.ctx(), b, command)
	if err != nil || code != 0 {
		s.t.Fatalf("running %q in %s: exit code %d, %v; printed %q", command, b.id, code, err, out)
	}
	return strings.TrimRight(out, "\n")
}
