package mcp

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/paddock-sandbox/paddock/client"
)

const (
	// maxImages and maxImage bound the pictures of one answer, in number and in
	// bytes each.
	maxImages = 8
	maxImage  = 1 << 20
	// maxResults bounds the text of all results together, in bytes.
	maxResults = 64 << 10
	// interruptGrace is how long code may take to stop after an interrupt; the
	// sandbox kills it before (OpenSandbox code interpreter).
	interruptGrace = 20 * time.Second
	// kernelDied is the name of the error of a run whose interpreter ended.
	kernelDied = "KernelDied"
)

type codeIn struct {
	on
	Code     string `json:"code" jsonschema:"the code; the value of its last expression is shown, as in a notebook"`
	Language string `json:"language,omitempty" jsonschema:"python (default), javascript, typescript, bash, or another that the image has"`
	Timeout  int    `json:"timeout_seconds,omitempty" jsonschema:"interrupt the code after this many seconds, 1 to 3600; default 120"`
	Restart  bool   `json:"restart,omitempty" jsonschema:"begin with a fresh context: forget the variables of earlier calls"`
}

func (s *Server) addCodeTools() {
	addText(s, "run_code", "Run code", changes,
		"Run code in a sandbox and get what it prints, the value of its last expression, pictures (such as matplotlib figures) and errors. Variables, imports and functions last between calls with the same language and sandbox. Needs only the language itself in the image (python3, node, bash).",
		s.runCode)
}

// results collects the values that code shows.
type results struct {
	text   strings.Builder
	images []mcp.Content
	// dropped counts pictures that are not shown.
	dropped int
}

// runCode is run_code. The context is the sandbox's default one of the language,
// so that it is the same whichever session asks.
func (s *Server) runCode(ctx context.Context, req *mcp.CallToolRequest, in codeIn) (*mcp.CallToolResult, error) {
	if strings.TrimSpace(in.Code) == "" {
		return nil, errors.New("code is empty")
	}
	if in.Language == "" {
		in.Language = "python"
	}
	seconds, err := within("timeout_seconds", in.Timeout, 1, maxTimeout, defaultTimeout)
	if err != nil {
		return nil, err
	}
	stdout, stderr, shown := newExcerpt(defaultOutput), newExcerpt(defaultOutput), new(results)
	var outcome *client.CodeOutcome
	timedOut := false
	limit := time.Duration(seconds) * time.Second
	t, err := s.actFor(ctx, req, in.on, limit+interruptGrace, func(id string) (err error) {
		defer s.progress(ctx, req)()
		if in.Restart {
			if err := s.o.Client.DeleteCodeContexts(ctx, id, in.Language); err != nil {
				return err
			}
		}
		out := client.CodeOutput{Stdout: stdout, Stderr: stderr, OnResult: shown.add}
		outcome, timedOut, err = s.limitedCode(ctx, id, client.Code{Source: in.Code, Language: in.Language}, out, limit)
		return err
	})
	if err != nil {
		return nil, withOutput(codeError(in.Language, err), stdout, stderr)
	}
	var b strings.Builder
	b.WriteString(t.note(s))
	section(&b, "stdout", stdout)
	section(&b, "stderr", stderr)
	if shown.text.Len() > 0 {
		fmt.Fprintf(&b, "--- result ---\n%s\n", strings.TrimSuffix(shown.text.String(), "\n"))
	}
	switch {
	case timedOut:
		kept := "variables are kept"
		if outcome.Err != nil && outcome.Err.Name == kernelDied {
			kept = "it did not stop and was killed, and variables are lost"
		}
		fmt.Fprintf(&b, "--- interrupted ---\nIt ran into the time-out of %d seconds; %s. Use a larger timeout_seconds (up to %d), or run_command with background=true\n", seconds, kept, maxTimeout)
	case outcome.Err != nil:
		fmt.Fprintf(&b, "--- error ---\n%s\n", traceback(outcome.Err))
	}
	if shown.dropped > 0 {
		fmt.Fprintf(&b, "--- note ---\n%d pictures are not shown: at most %d of up to %d MiB are. Save them to files\n", shown.dropped, maxImages, maxImage>>20)
	}
	if b.Len() == 0 && len(shown.images) == 0 {
		b.WriteString("(no output)\n")
	}
	res := &mcp.CallToolResult{IsError: timedOut || outcome.Err != nil}
	if b.Len() > 0 {
		res.Content = append(res.Content, &mcp.TextContent{Text: b.String()})
	}
	res.Content = append(res.Content, shown.images...)
	return res, nil
}

// limitedCode runs code and interrupts it when its time is over. Then it waits for
// the end of the run, so that the context is free for the next one.
func (s *Server) limitedCode(ctx context.Context, id string, code client.Code, out client.CodeOutput, limit time.Duration) (_ *client.CodeOutcome, timedOut bool, _ error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit+interruptGrace, errors.New("the code could not be interrupted"))
	defer cancel()
	var over atomic.Bool
	var interrupts sync.WaitGroup
	defer interrupts.Wait()
	var timer *time.Timer
	out.OnStart = func(contextID string) {
		interrupts.Add(1)
		timer = time.AfterFunc(limit, func() {
			defer interrupts.Done()
			over.Store(true)
			if err := s.o.Client.InterruptCode(ctx, id, contextID); err != nil {
				s.o.Log.Debug("code could not be interrupted", "sandbox", id, "error", err)
			}
		})
	}
	outcome, err := s.o.Client.RunCode(ctx, id, code, out)
	if timer != nil && timer.Stop() {
		interrupts.Done()
	}
	return outcome, over.Load() && outcome != nil && outcome.Err != nil, err
}

// pictures are the MIME types that models can see.
var pictures = []string{"image/png", "image/jpeg", "image/gif", "image/webp"}

// words are the MIME types that are shown as text, the best first.
var words = []string{"text/markdown", "text/plain", "application/json", "text/latex", "text/html", "image/svg+xml"}

// add takes one value: as a picture when it has one, else as text.
func (r *results) add(v client.CodeResult) error {
	for _, mime := range pictures {
		if encoded, ok := v.Text(mime); ok {
			r.picture(mime, encoded)
			return nil
		}
	}
	for _, mime := range words {
		if s, ok := v.Text(mime); ok {
			r.write(s)
			return nil
		}
	}
	types := make([]string, 0, len(v))
	for mime := range v {
		types = append(types, client.Printable(mime))
	}
	slices.Sort(types)
	r.write("(a value of type " + strings.Join(types, ", ") + ")")
	return nil
}

func (r *results) picture(mime, encoded string) {
	encoded = strings.Join(strings.Fields(encoded), "")
	if len(r.images) >= maxImages || base64.StdEncoding.DecodedLen(len(encoded)) > maxImage {
		r.dropped++
		return
	}
	data, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		r.dropped++
		return
	}
	r.images = append(r.images, &mcp.ImageContent{MIMEType: mime, Data: data})
}

func (r *results) write(s string) {
	room := maxResults - r.text.Len()
	switch {
	case room <= 0:
		return
	case len(s) > room:
		s = string(wholeEnd([]byte(s[:room]))) + "\n[… cut; print or save the rest …]"
	}
	r.text.WriteString(s)
	if !strings.HasSuffix(s, "\n") {
		r.text.WriteByte('\n')
	}
}

// traceback is an error of the code as a person would read it.
func traceback(e *client.CodeError) string {
	out := newExcerpt(16 << 10)
	for _, line := range e.Traceback {
		fmt.Fprintln(out, stripEscapes(strings.TrimSuffix(line, "\n")))
	}
	summary := e.Error()
	text := strings.TrimSuffix(out.String(), "\n")
	if text == "" {
		return summary
	}
	if e.Name != "" && strings.Contains(text, e.Name) {
		return text
	}
	return text + "\n" + summary
}

// codeError explains why code could not be run.
func codeError(language string, err error) error {
	if client.IsNotSupported(err) {
		return fmt.Errorf("this sandbox has no code interpreter (%w): use run_command, for example with python3 -c or a file that file_write has written", err)
	}
	var e *client.Error
	if errors.As(err, &e) && strings.HasPrefix(e.Message, "session is busy") {
		return errors.New("the code of an earlier call is still running in this sandbox: wait for it, or begin afresh with restart=true")
	}
	if errors.As(err, &e) && strings.Contains(e.Message, "can't run") {
		return fmt.Errorf("%w. Use another image with sandbox_create, or install %s with run_command", err, client.Printable(language))
	}
	return err
}
