package execd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
)

func TestCommand(t *testing.T) {
	b := claimed(t)
	for _, tc := range []struct {
		name string
		body m
		out  string
		err  string
		code string
	}{
		{"output", m{"command": "echo a; echo b >&2"}, "a\n", "b\n", "0"},
		{"bash", m{"command": "[[ $BASH_VERSION ]] && echo $0"}, "bash\n", "", "0"},
		{"argv", m{"argv": []string{"printf", "%s|", "a b", "$HOME", "*", ""}}, "a b|$HOME|*||", "", "0"},
		{"exit code", m{"command": "exit 42"}, "", "", "42"},
		{"signal", m{"command": "kill -SEGV $$"}, "", "", "-1"},
		{"not found", m{"command": "no-such-program"}, "", "bash: line 1: no-such-program: command not found\n", "127"},
		{"cwd", m{"command": "pwd", "cwd": "/usr/bin"}, "/usr/bin\n", "", "0"},
		{"relative cwd", m{"command": "pwd", "cwd": "usr/../etc"}, "/etc\n", "", "0"},
		{"home", m{"command": "pwd", "cwd": "~"}, "/root\n", "", "0"},
		{"envs", m{"command": "echo $A-$B", "envs": m{"A": "x y", "B": "=\n"}}, "x y-=\n", "", "0"},
		{"uid", m{"command": "id -u; id -g; id -G; echo $HOME", "uid": 12345}, "12345\n0\n0\n/\n", "", "0"},
		{"known uid", m{"command": "id -un; id -gn; echo $HOME", "uid": 1}, "daemon\ndaemon\n/usr/sbin\n", "", "0"},
		{"uid and gid", m{"command": "id -u; id -g", "uid": 1, "gid": 777}, "1\n777\n", "", "0"},
		{"no input", m{"command": "cat; read x || echo end"}, "end\n", "", "0"},
		{"unknown members", m{"command": "echo a", "nothing": m{"x": 1}}, "a\n", "", "0"},
		{"NUL bytes", m{"command": `printf 'a\0b\n\0'`}, "a\x00b\n\x00", "", "0"},
		{"not UTF-8", m{"command": `printf '\377\376x\n\303'`}, "\xff\xfex\n\xc3", "", "0"},
		{"carriage returns", m{"command": `printf '1\r2\r\n\r\n\n3'`}, "1\r2\r\n\r\n\n3", "", "0"},
		{"own group", m{"command": `[ $(ps -o pgid= -p $$) = $$ ] && echo yes`}, "yes\n", "", "0"},
		{"multi-line", m{"command": "cat <<X\none\ntwo\nX\n"}, "one\ntwo\n", "", "0"},
	} {
		r := b.run(tc.body)
		if r.out.String() != tc.out || r.err.String() != tc.err || r.code != tc.code {
			t.Errorf("%s: exit %s, stdout %q, want %q, stderr %q", tc.name, r.code, r.out.String(), tc.out, r.err.String())
		}
		if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(r.id) {
			t.Errorf("%s: id %q", tc.name, r.id)
		}
	}
}

func TestCommandRefusals(t *testing.T) {
	b := claimed(t)
	for _, tc := range []struct {
		name, body, code, mention string
		status                    int
	}{
		{"nothing", `{}`, "INVALID_REQUEST_BODY", "argv", 400},
		{"both", `{"command":"a","argv":["a"]}`, "INVALID_REQUEST_BODY", "both", 400},
		{"blank", `{"command":" \n"}`, "INVALID_REQUEST_BODY", "command", 400},
		{"empty argv", `{"argv":[]}`, "INVALID_REQUEST_BODY", "argv", 400},
		{"NUL", `{"command":"a\u0000b"}`, "INVALID_REQUEST_BODY", "command", 400},
		{"NUL in argv", `{"argv":["a","\u0000"]}`, "INVALID_REQUEST_BODY", "argv[1]", 400},
		{"no cwd", `{"command":"a","cwd":"/no/such"}`, "INVALID_REQUEST_BODY", "cwd", 400},
		{"file as cwd", `{"command":"a","cwd":"/etc/passwd"}`, "INVALID_REQUEST_BODY", "cwd", 400},
		{"gid alone", `{"command":"a","gid":1}`, "INVALID_REQUEST_BODY", "uid", 400},
		{"negative uid", `{"command":"a","uid":-1}`, "INVALID_REQUEST_BODY", "uid", 400},
		{"large gid", `{"command":"a","uid":0,"gid":4294967295}`, "INVALID_REQUEST_BODY", "gid", 400},
		{"timeout", `{"command":"a","timeout":-1}`, "INVALID_REQUEST_BODY", "timeout", 400},
		{"variable", `{"command":"a","envs":{"A=B":"c"}}`, "INVALID_REQUEST_BODY", "envs", 400},
		{"type", `{"command":5}`, "INVALID_REQUEST_BODY", "command", 400},
		{"array", `[]`, "INVALID_REQUEST_BODY", "array", 400},
		{"no JSON", `command`, "INVALID_REQUEST_BODY", "JSON", 400},
		{"empty", ``, "INVALID_REQUEST_BODY", "empty", 400},
		{"too large", `{"command":"` + strings.Repeat("x", 11<<20) + `"}`, "INVALID_REQUEST_BODY", "10485760", 413},
	} {
		status, body := b.get("POST", "/command", tc.body)
		if status != tc.status || code(t, body) != tc.code || !strings.Contains(body, tc.mention) {
			t.Errorf("%s: %d %s", tc.name, status, body)
		}
	}
	// What can't be started is an error in the stream.
	for _, argv := range [][]string{{"no-such-program"}, {"/etc/passwd"}, {"/etc"}} {
		r := b.run(m{"argv": argv})
		last := r.events[len(r.events)-1]
		if len(r.events) != 2 || last.Error == nil || last.Error.EName != "CommandExecError" || !strings.Contains(last.Error.EValue, argv[0]) {
			t.Errorf("%q: %+v", argv, r.events)
		}
		_, body := b.get("GET", "/command/status/"+r.id, "")
		if !strings.Contains(body, `"exit_code":255`) {
			t.Errorf("%q: status %s", argv, body)
		}
	}
	for path, want := range map[string]string{
		"/command":         "MISSING_QUERY",
		"/command?id=nope": "COMMAND_NOT_FOUND",
	} {
		status, body := b.get("DELETE", path, "")
		if code(t, body) != want || status >= 500 {
			t.Errorf("DELETE %s: %d %s", path, status, body)
		}
	}
	for _, path := range []string{"/command/status/nope", "/command/nope/logs"} {
		if status, body := b.get("GET", path, ""); status != 404 || code(t, body) != "COMMAND_NOT_FOUND" {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}

// Text that no argument can hold still runs, as any user.
func TestLongCommand(t *testing.T) {
	b := claimed(t)
	data := strings.Repeat("0123456789abcdef", 64<<10)
	r := b.run(m{"command": "cat <<'X' | wc -c\n" + data + "\nX\nexit 3", "uid": 1})
	if r.out.String() != fmt.Sprintln(len(data)+1) || r.code != "3" {
		t.Errorf("exit %s, %q, %q", r.code, r.out.String(), r.err.String())
	}
}

func TestOrderOfStreams(t *testing.T) {
	t.Parallel()
	b := claimed(t)
	r := b.run(m{"command": "for i in 1 2 3 4 5; do echo o$i; sleep 0.02; echo e$i >&2; sleep 0.02; done"})
	var got []string
	for _, e := range r.events[1 : len(r.events)-1] {
		got = append(got, e.Text)
	}
	if s := strings.Join(got, " "); s != "o1 e1 o2 e2 o3 e3 o4 e4 o5 e5" {
		t.Errorf("order: %s", s)
	}
}

func TestLargeOutput(t *testing.T) {
	t.Parallel()
	b := claimed(t)
	const size = 100 << 20
	resp := b.do("POST", "/command", jsonOf(m{"command": fmt.Sprintf("yes $(printf %%0999d 0) | head -c %d", size)}))
	defer resp.Body.Close()
	lines, id := 0, ""
	dec := newFrames(resp.Body)
	for dec.next() {
		switch dec.event.Type {
		case "init":
			id = dec.event.Text
		case "stdout":
			lines++
		}
	}
	if want := (size + 999) / 1000; lines != want || dec.event.Type != "execution_complete" {
		t.Errorf("%d lines, want %d; last event %s", lines, want, dec.event.Type)
	}
	// The newest part is kept, at its true offsets.
	got := b.do("GET", "/command/"+id+"/logs", "")
	text := read(t, got)
	if len(text) != 16<<20 || got.Header.Get("EXECD-COMMANDS-TAIL-CURSOR") != fmt.Sprint(size) {
		t.Errorf("%d bytes of logs, cursor %s", len(text), got.Header.Get("EXECD-COMMANDS-TAIL-CURSOR"))
	}
}

// frames reads events from a live stream.
type frames struct {
	dec   io.Reader
	buf   []byte
	event event
}

func newFrames(r io.Reader) *frames { return &frames{dec: r} }

func (f *frames) next() bool {
	for {
		if data, rest, ok := bytes.Cut(f.buf, []byte("\n\n")); ok {
			f.event = event{}
			err := json.Unmarshal(bytes.TrimPrefix(data, []byte("data: ")), &f.event)
			f.buf = rest
			if err == nil && f.event.Type == "ping" {
				continue
			}
			return err == nil
		}
		chunk := make([]byte, 256<<10)
		n, err := f.dec.Read(chunk)
		f.buf = append(f.buf, chunk[:n]...)
		if n == 0 && err != nil {
			return false
		}
	}
}

// Output comes while the command runs, unfinished lines included.
func TestStreaming(t *testing.T) {
	t.Parallel()
	b := claimed(t)
	gate := filepath.Join(b.dir, "gate")
	resp := b.do("POST", "/command", jsonOf(m{"command": fmt.Sprintf("echo first; printf prompt; until [ -e %s ]; do sleep 0.05; done; echo last", gate)}))
	defer resp.Body.Close()
	f := newFrames(resp.Body)
	for _, want := range []string{"init", "first", "prompt"} {
		if !f.next() || f.event.Type != want && f.event.Text != want {
			t.Fatalf("got %+v, want %s", f.event, want)
		}
	}
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if !f.next() || f.event.Text != "last" || !f.next() || f.event.Type != "execution_complete" || f.next() {
		t.Errorf("got %+v", f.event)
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	b := claimed(t)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			r := b.run(m{"command": fmt.Sprintf("echo %d; exit %d", i, i%7)})
			if r.out.String() != fmt.Sprintln(i) || r.code != fmt.Sprint(i%7) {
				t.Errorf("command %d: exit %s, %q", i, r.code, r.out.String())
			}
		})
	}
	wg.Wait()
}

// A command is over when its process is, whoever holds the pipes.
func TestDaemons(t *testing.T) {
	t.Parallel()
	b := claimed(t)
	marker := filepath.Join(b.dir, "marker")
	for name, text := range map[string]string{
		"background":  "sleep 1000 & echo up",
		"setsid":      "setsid sleep 1000 & echo up",
		"double fork": "(setsid sh -c 'sleep 1000 &' &); echo up",
		"closed":      "exec >&- 2>&-; sleep 0.1",
		// Writing on after the command has ended is no SIGPIPE.
		"talking": "(sleep 0.5; echo late; echo late >&2; touch " + marker + ") & echo up",
	} {
		r := b.run(m{"command": text})
		want := "up\n"
		if name == "closed" {
			want = ""
		}
		if r.code != "0" || r.out.String() != want {
			t.Errorf("%s: exit %s, %q", name, r.code, r.out.String())
		}
		if name != "talking" {
			continue
		}
		b.sh("until [ -e " + marker + " ]; do sleep 0.05; done")
		if _, body := b.get("GET", "/command/"+r.id+"/logs", ""); body != "up\nlate\nlate\n" {
			t.Errorf("logs of a talking daemon: %q", body)
		}
	}
}

type commandStatus struct {
	ID, Content string
	Running     bool
	ExitCode    *int `json:"exit_code"`
	Error       string
	Started     time.Time  `json:"started_at"`
	Finished    *time.Time `json:"finished_at"`
}

func (b *box) status(id string) commandStatus {
	b.t.Helper()
	var s commandStatus
	_, body := b.get("GET", "/command/status/"+id, "")
	if err := json.Unmarshal([]byte(body), &s); err != nil {
		b.t.Fatalf("status: %s", body)
	}
	return s
}

// ended polls until a command has ended, as clients do.
func (b *box) ended(id string) commandStatus {
	b.t.Helper()
	for {
		if s := b.status(id); !s.Running {
			return s
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestBackground(t *testing.T) {
	b := claimed(t)
	gate := filepath.Join(b.dir, "gate")
	text := fmt.Sprintf("echo one; echo two >&2; until [ -e %s ]; do sleep 0.02; done; printf 'three\\377'; exit 5", gate)
	r := b.run(m{"command": text, "background": true})
	if len(r.events) != 2 || r.code != "0" {
		t.Errorf("events: %+v", r.events)
	}
	if s := b.status(r.id); !s.Running || s.ExitCode != nil || s.Finished != nil || s.Content != text || s.ID != r.id {
		t.Errorf("status while running: %+v", s)
	}
	for {
		if _, logs := b.get("GET", "/command/"+r.id+"/logs", ""); logs == "one\ntwo\n" {
			break
		}
	}
	if err := os.WriteFile(gate, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s := b.ended(r.id)
	if s.ExitCode == nil || *s.ExitCode != 5 || s.Error != "exit status 5" || s.Finished == nil || s.Finished.Before(s.Started) {
		t.Errorf("status: %+v", s)
	}
	for _, tc := range []struct{ cursor, want string }{
		{"", "one\ntwo\nthree\xff"}, {"?cursor=8", "three\xff"}, {"?cursor=14", ""}, {"?cursor=99", ""}, {"?cursor=x", "one\ntwo\nthree\xff"},
	} {
		resp := b.do("GET", "/command/"+r.id+"/logs"+tc.cursor, "")
		body := read(t, resp)
		if body != tc.want || resp.Header.Get("EXECD-COMMANDS-TAIL-CURSOR") != "14" || resp.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("logs%s: %q, cursor %s", tc.cursor, body, resp.Header.Get("EXECD-COMMANDS-TAIL-CURSOR"))
		}
	}
	if status, body := b.get("DELETE", "/command?id="+r.id, ""); status != 404 || !strings.Contains(body, "already ended") {
		t.Errorf("interrupt of an ended command: %d %s", status, body)
	}
}

func TestTimeout(t *testing.T) {
	t.Parallel()
	b := claimed(t)
	r := b.run(m{"command": "trap '' TERM; echo up; sleep 1000; echo never", "timeout": 300})
	if r.code != "-1" || r.out.String() != "up\n" || !strings.Contains(r.traceback, "timeout") {
		t.Errorf("exit %s, %q, %q", r.code, r.out.String(), r.traceback)
	}
	r = b.run(m{"command": "sleep 1000", "timeout": 50, "background": true})
	if s := b.ended(r.id); *s.ExitCode != -1 || !strings.Contains(s.Error, "timeout") {
		t.Errorf("status: %+v", s)
	}
	if r := b.run(m{"command": "true", "timeout": 60000}); r.code != "0" {
		t.Errorf("exit %s", r.code)
	}
}

func TestInterrupt(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"plain":        "sleep 1000",
		"deaf":         "trap '' TERM; while :; do sleep 0.1; done",
		"deaf child":   "sh -c \"trap '' TERM; while :; do sleep 0.1; done\" & wait",
		"tidy":         "trap 'echo bye; exit 9' TERM; while :; do sleep 0.05; done",
		"with daemons": "sleep 1000 & sleep 1000",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := claimed(t)
			r := b.run(m{"command": text, "background": true})
			// Once the shell sleeps it has set its trap.
			b.sh("until [ $(pgrep -c sleep) -ge 2 ]; do sleep 0.02; done")
			if status, body := b.get("DELETE", "/command?id="+r.id, ""); status != 200 || body != "" {
				t.Errorf("%d %s", status, body)
			}
			want := -1
			if name == "tidy" {
				want = 9
			}
			if s := b.ended(r.id); *s.ExitCode != want {
				t.Errorf("%+v", s)
			}
			// What ignored SIGTERM is gone as well after the grace period.
			// The entrypoint and this command's own are the sleeps to stay.
			b.sh("while pgrep -f 'sleep (0.1|1000)|trap' | grep -qvx $$; do sleep 0.03; done")
		})
	}
}

// A foreground command is ended when its client goes; a background one is not.
func TestClientGone(t *testing.T) {
	t.Parallel()
	b := claimed(t)
	bg := b.run(m{"command": "sleep 1000", "background": true})
	for _, text := range []string{"sleep 1000", "yes"} {
		ctx, cancel := context.WithCancel(t.Context())
		req := b.request("POST", "/command", jsonOf(m{"command": text})).WithContext(ctx)
		resp, err := b.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		f := newFrames(resp.Body)
		if !f.next() {
			t.Fatal("no init")
		}
		id := f.event.Text
		cancel()
		resp.Body.Close()
		if s := b.ended(id); *s.ExitCode != -1 {
			t.Errorf("%s: %+v", text, s)
		}
	}
	if !b.status(bg.id).Running {
		t.Error("the background command was ended as well")
	}
}

// A client that does not read holds up its own command, and nobody else.
func TestSlowReader(t *testing.T) {
	b := claimed(t)
	resp := b.do("POST", "/command", jsonOf(m{"command": "yes"}))
	defer resp.Body.Close()
	f := newFrames(io.LimitReader(resp.Body, 4096))
	f.next()
	id := f.event.Text
	if got := b.sh("echo hi"); got != "hi\n" {
		t.Errorf("got %q", got)
	}
	if status, _ := b.get("DELETE", "/command?id="+id, ""); status != 200 {
		t.Errorf("interrupt: %d", status)
	}
}

// With the disk full commands run, and only their history is lost.
func TestFullDisk(t *testing.T) {
	b := newBox(t)
	b.claim(hostapi.Claim{Entrypoint: []string{"sleep", "infinity"}})
	// Mounts are execd's own namespace's.
	b.sh("for d in /tmp /var/tmp; do mount -t tmpfs -o size=64k none $d; head -c 1M /dev/zero > $d/filler; done 2>/dev/null; true")
	r := b.run(m{"command": "head -c 1000000 /dev/zero | tr '\\0' x; echo end >&2"})
	if r.code != "0" || r.out.Len() != 1000000 || r.err.String() != "end\n" {
		t.Errorf("exit %s, %d bytes", r.code, r.out.Len())
	}
	if resp := b.do("GET", "/command/"+r.id+"/logs", ""); read(t, resp) != "" && resp.StatusCode != http.StatusOK {
		t.Errorf("logs: %d", resp.StatusCode)
	}
}

func TestEnvFile(t *testing.T) {
	b := claimed(t)
	// As the SDK's set_env does it.
	b.sh(`mkdir -p "$(dirname "$EXECD_ENVS")"; printf '%s\n' 'A='"'"'it is $HOME'"'" >> "$EXECD_ENVS"`)
	b.sh(`printf '%s\n' 'B="it'"'"'s\nB"' >> "$EXECD_ENVS"`)
	if got := b.sh(`echo "$A|$B"`); got != "it is $HOME|it's\nB\n" {
		t.Errorf("got %q", got)
	}
	if r := b.run(m{"command": "echo $A", "envs": m{"A": "request"}}); r.out.String() != "request\n" {
		t.Errorf("got %q", r.out.String())
	}
}

// bench reports the median as well: a shared machine's mean says little.
func bench(b *testing.B, method, path string, body any) {
	box := claimed(b)
	text := ""
	if body != nil {
		text = jsonOf(body)
	}
	var took []time.Duration
	for b.Loop() {
		begun := time.Now()
		read(b, box.do(method, path, text))
		took = append(took, time.Since(begun))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
}

func BenchmarkPing(b *testing.B)  { bench(b, "GET", "/ping", nil) }
func BenchmarkTrue(b *testing.B)  { bench(b, "POST", "/command", m{"argv": []string{"true"}}) }
func BenchmarkShell(b *testing.B) { bench(b, "POST", "/command", m{"command": "true"}) }
