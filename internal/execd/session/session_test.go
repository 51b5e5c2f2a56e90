package session

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
)

// table owns all waiting of the test program, as in execd: nothing here may use
// os/exec.
var table = process.NewTable()

func TestPersists(t *testing.T) {
	b := newBox(t, "bash")
	for name, steps := range map[string][]step{
		"variable": {{"a=1; b=(x 'y z')", "", "0"}, {`echo $a "${b[1]}"`, "1 y z\n", "0"}},
		"exported": {{"export V='a b'", "", "0"}, {`sh -c 'echo "$V"'`, "a b\n", "0"}},
		"function": {{"f() { echo f:$1; return 4; }", "", "0"}, {"f x", "f:x\n", "4"}},
		"alias":    {{"alias hi='echo hello'", "", "0"}, {"hi you", "hello you\n", "0"}},
		"option":   {{"shopt -s nullglob; set -f", "", "0"}, {"shopt -q nullglob && case $- in *f*) echo f;; esac", "f\n", "0"}},
		"cwd":      {{"cd / && cd usr", "", "0"}, {"pwd; echo $OLDPWD", "/usr\n/\n", "0"}},
		"code":     {{"(exit 7)", "", "7"}, {"echo $?", "7\n", "0"}, {"echo $?", "0\n", "0"}},
		"code and errexit": {{"set -e; trap 'echo ERR' ERR", "", "0"}, {"false || true", "", "0"},
			{"echo $-  | grep -c e", "1\n", "0"}},
		"background": {{"sleep 60 & p=$!", "", "0"}, {"jobs -p | grep -cx $p; kill $p; wait $p 2>/dev/null", "1\n", "143"}},
		"descriptor": {{"exec 7>" + b.dir + "/seven; echo a >&7", "", "0"}, {"echo b >&7; cat " + b.dir + "/seven", "a\nb\n", "0"}},
		"positional": {{"set -- x 'y z'", "", "0"}, {`echo "$2"`, "y z\n", "0"}},
		"trap":       {{"trap 'echo usr' USR1", "", "0"}, {"kill -USR1 $$; :", "usr\n", "0"}},
		"ifs":        {{"IFS=0123456789", "", "0"}, {"(exit 10)", "", "10"}, {"cd /; pwd", "/\n", "0"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := *b
			c.t = t
			c.talk(steps)
		})
	}
}

// TestNewShell is about what is there after a run that ended its shell.
func TestNewShell(t *testing.T) {
	b := newBox(t, "bash")
	setUp := `cd /usr; umask 027; export E='e
x'; v="quo'te"; declare -A m=([k]=v); f() { ls "$@"; }; export -f f; alias ls='echo alias'; alias f2='f'
shopt -s extglob; g() { [[ $1 == +(a) ]]; }; readonly r=ro; declare -i n=3; set -u`
	check := `pwd; umask; sh -c 'echo "$E"'; echo "$v ${m[k]} $r $((n+1))"; bash -c 'f >/dev/null && echo exported'
ls x; g aaa && echo glob; set +e; case $- in *u*) echo nounset;; esac`
	kept := "/usr\n0027\ne\nx\nquo'te v ro 4\nexported\nalias x\nglob\nnounset\n"
	for _, end := range []step{
		{"exit 3", "", "3"},
		{"echo bye; exit", "bye\n", "0"},
		{"exec echo replaced", "replaced\n", "0"},
		{"exec /nonexistent", "", "127"},
		{"set -e; false; echo no", "", "1"},
		{"kill -9 $$", "", "-1"},
		{"trap 'echo trapped' EXIT; exit 9", "trapped\n", "9"},
		{"(sleep 0.05; kill -9 $$) & wait", "", "-1"},
	} {
		t.Run(end.command, func(t *testing.T) {
			c := *b
			c.t = t
			id := c.create()
			c.want(id, setUp, "", "0")
			o := c.run(id, "cd /; v=lost; "+end.command)
			if o.code != end.code || !strings.HasPrefix(end.command, "exec /") && o.out != end.out {
				t.Errorf("%q printed %q, code %s (%s)", end.command, o.out, o.code, o.why)
			}
			c.want(id, check, kept, "0")
			c.want(id, "exit 1", "", "1")
			c.want(id, check, kept, "0")
		})
	}
}

func TestOutputIsExact(t *testing.T) {
	b := newBox(t, "bash")
	id := b.create()
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	for _, text := range []string{"no newline", "\n\n", "crlf\r\nand\rcr\n", string(all), strings.Repeat("ü", 100_000)} {
		if err := os.WriteFile(b.dir+"/f", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		b.want(id, "cat "+b.dir+"/f", text, "0")
	}
	b.want(id, "for i in 1 2 3 4; do echo out$i; echo err$i >&2; done", "out1\nerr1\nout2\nerr2\nout3\nerr3\nout4\nerr4\n", "0")
	// The markers of other implementations, and the descriptors of this one.
	b.want(id, `printf "0\0/\0\0" 2>/dev/null >&63`, "", "1")
}

func TestStdinIsEmpty(t *testing.T) {
	for _, shell := range []string{"bash", "dash", "busybox"} {
		t.Run(shell, func(t *testing.T) {
			newBox(t, shell).talk([]step{
				{`read x; echo "[$x] $?"`, "[] 1\n", "0"},
				{"cat; wc -c; echo done", "0\ndone\n", "0"},
				{"sh -c 'cat; echo child'", "child\n", "0"},
				{"(cat; exec cat) | cat", "", "0"},
				{"exec </dev/zero; head -c3 | wc -c", "3\n", "0"},
				{"read x; echo alive", "alive\n", "0"},
				{"exec 0<&-; exec 0</dev/null", "", "0"},
				{"echo alive", "alive\n", "0"},
			})
		})
	}
}

func TestSh(t *testing.T) {
	for _, shell := range []string{"dash", "busybox"} {
		t.Run(shell, func(t *testing.T) {
			b := newBox(t, shell)
			b.talk([]step{
				{"a=1; f() { echo f:$1; return 4; }; alias hi='echo hello'; cd /usr", "", "0"},
				{"echo $a; f x", "1\nf:x\n", "4"},
				{"hi; pwd", "hello\n/usr\n", "0"},
				{"export E=\"it's\"; umask 077", "", "0"},
				{"exit 3", "", "3"},
				{"echo \"$E\"; umask; pwd", "it's\n0077\n/usr\n", "0"},
				{"kill -9 $$", "", "-1"},
				{"set -e; false", "", "1"},
				{"echo alive", "alive\n", "0"},
				{"sleep 60 & p=$!", "", "0"},
				{"kill $p && echo killed", "killed\n", "0"},
			})
			id := b.create()
			for _, broken := range []string{"echo 'abc", "if", "foo() {", "echo $(", ")", "cat <<EOF\nx"} {
				if o := b.run(id, broken); o.code == "0" && !strings.Contains(broken, "EOF") {
					t.Errorf("%q succeeded: %q", broken, o.out)
				}
				b.want(id, "echo alive", "alive\n", "0")
			}
			big := strings.Repeat("x", 300_000)
			b.want(id, "echo "+big+" | wc -c", "300001\n", "0")
		})
	}
}

// TestHostile runs what could confuse the protocol between execd and the shell.
// The session must answer and be usable after.
func TestHostile(t *testing.T) {
	b := newBox(t, "bash")
	for name, command := range map[string]string{
		"close all":         `for i in $(seq 0 255); do eval "exec $i>&-"; done`,
		"close all at once": `eval "exec $(for i in $(seq 3 255); do printf '%s>&- ' $i; done)"`,
		"write to all":      `for i in $(seq 3 255); do echo 1 >&$i; printf '\0\0\0\0' >&$i; done 2>/dev/null`,
		"read from all":     `for i in $(seq 3 255); do read -t 0.01 -u $i x; done 2>/dev/null`,
		"take low ones":     `exec 10>/dev/null 11>/dev/null 12>/dev/null 13>/dev/null`,
		"take high ones":    `exec 62>/dev/null 63>/dev/null 255>/dev/null 254>/dev/null`,
		"fake report":       `for i in $(seq 10 20); do printf '99\0005\000/tmp\000exit 1\000' >&$i; done 2>/dev/null`,
		"fake own report":   `for s in $(seq 0 20); do printf '%d\0005\000/tmp\000exit 1\000' $s >&12; done 2>/dev/null`,
		"quote":             `echo "abc`,
		"single quote":      `echo 'abc`,
		"heredoc":           "cat <<EOF\nfoo",
		"backquote":         "echo `date",
		"subshell":          "(echo a",
		"substitution":      "echo $(date",
		"if":                "if true; then",
		"brace":             "f() {",
		"case":              "case x in",
		"stray":             "}",
		"done":              "done; fi; esac",
		"break":             "break; continue; break 5",
		"return":            "return 5",
		"backslash":         `echo a\`,
		"comment":           "# nothing",
		"nounset":           "set -u; echo $nope",
		"errexit":           "set -e; false",
		"errexit stays":     "set -eEuo pipefail",
		"xtrace":            "set -x; exec 2>/dev/null",
		"debug trap":        "trap 'echo dbg >/dev/null' DEBUG",
		"debug functrace":   "set -T; trap 'echo dbg; false' DEBUG; trap - DEBUG",
		"exit trap":         "trap 'exit 5' EXIT ERR",
		"ignore signals":    "trap '' TERM INT HUP QUIT",
		"stop itself":       "kill -STOP $BASHPID & sleep 0.1; kill -CONT $$",
		"unset all":         "unset -f $(compgen -A function); unset $(compgen -v) 2>/dev/null",
		"override":          "printf() { :; }; eval() { :; }; read() { :; }; cd() { :; }; unset() { :; }; test() { :; }",
		"alias":             "alias eval=false printf=false read=false cd=false builtin=false declare=false return=false",
		"readonly":          "readonly PWD OLDPWD IFS x=1",
		"own names":         "__execd_run=x; readonly __execd_dir; :",
		"posix":             "set -o posix",
		"no path":           "PATH=/nonexistent; hash -r",
		"limits":            "ulimit -n 20",
		"umask":             "umask 777",
		"gone cwd":          "mkdir d && cd d && rmdir ../d",
		"onecmd":            "set -t; echo a",
		"kill group":        "trap '' TERM; kill -TERM 0",
		"kill":              "kill -SEGV $$",
		"deep":              "f() { f; }; ulimit -s 256; f",
		"array pwd":         "unset PWD; PWD=(a b); :",
		"invalid utf8":      "printf '\\xff\\xfe'; cd /",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := *b
			c.t = t
			id := c.create()
			c.want(id, "kept=yes", "", "0")
			o, err := c.post(id, request(command, map[string]any{"timeout": 20_000}))
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(o.out, "__execd") && name != "unset all" {
				t.Errorf("execd's own steps are visible: %q", o.out)
			}
			t.Logf("%q: code %s %s", o.out[:min(len(o.out), 200)], o.code, o.why)
			// Whatever the shell is like now, a second run must end, and a
			// shell that was asked to end is followed by a good one.
			if _, err := c.post(id, request("/bin/true", map[string]any{"timeout": 20_000})); err != nil {
				t.Fatal(err)
			}
			if _, err := c.post(id, request("trap - EXIT; exec /bin/true", map[string]any{"timeout": 20_000})); err != nil {
				t.Fatal(err)
			}
			if o, err = c.post(id, request(`\builtin echo "$kept"`, map[string]any{"timeout": 20_000})); err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(o.out, "yes\n") && name != "unset all" && !strings.HasPrefix(name, "fake") {
				t.Errorf("after it the session printed %q, code %s (%s)", o.out, o.code, o.why)
			}
		})
	}
}

// TestSilentShell is about shells that were made unable to report.
func TestSilentShell(t *testing.T) {
	defer func(old time.Duration) { silenceLimit = old }(silenceLimit)
	silenceLimit = 500 * time.Millisecond
	b := newBox(t, "bash")
	for name, command := range map[string]string{
		"noexec":     "set -n",
		"restricted": "set -r", // no redirections
		"builtin":    "builtin() { :; }",
		"stopped":    "cat <&10 >/dev/null", // eats the orders
	} {
		t.Run(name, func(t *testing.T) {
			c := *b
			c.t = t
			id := c.create()
			c.want(id, "kept=yes", "", "0")
			body := request(command, nil)
			if name == "stopped" {
				body = request(command, map[string]any{"timeout": 500})
			}
			o, err := c.post(id, body)
			if err != nil || o.code != "-1" {
				t.Errorf("%+v, %v", o, err)
			}
			c.want(id, "echo $kept", "yes\n", "0")
		})
	}
}

func TestTimeout(t *testing.T) {
	for _, shell := range []string{"bash", "dash"} {
		t.Run(shell, func(t *testing.T) {
			b := newBox(t, shell)
			id := b.create()
			b.want(id, "export kept=yes; sleep 300 & earlier=$!; export earlier", "", "0")
			// What it starts ignores every signal that can be ignored.
			o, err := b.post(id, request("trap '' TERM INT HUP; echo begun; sh -c 'trap \"\" TERM; sleep 301; sleep 302' & sleep 303; echo not reached",
				map[string]any{"timeout": 300}))
			if err != nil || o.out != "begun\n" || o.code != "-1" || !strings.Contains(o.why, "timeout") {
				t.Errorf("%+v, %v", o, err)
			}
			b.want(id, "echo $kept; kill -0 $earlier && echo lives; ps -eo args | grep -c '^sleep 30[123]'; kill $earlier", "yes\nlives\n0\n", "0")
			o, err = b.post(id, request("while :; do :; done", map[string]any{"timeout": 50}))
			if err != nil || o.code != "-1" {
				t.Errorf("%+v, %v", o, err)
			}
			b.want(id, "echo alive", "alive\n", "0")
		})
	}
}

func TestClientGoes(t *testing.T) {
	b := newBox(t, "bash")
	id := b.create()
	b.want(id, "kept=yes", "", "0")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	fifo := b.dir + "/ended"
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	command := "(trap 'echo told >" + fifo + "; exit' TERM; echo begun; while :; do sleep 0.05; done)"
	req, _ := http.NewRequestWithContext(ctx, "POST", b.url+"/session/"+id+"/run", strings.NewReader(request(command, nil)))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() && !strings.Contains(lines.Text(), "begun") {
	}
	cancel()
	resp.Body.Close()
	// The open blocks until the run was told to end.
	if text, err := os.ReadFile(fifo); err != nil || string(text) != "told\n" {
		t.Errorf("%q, %v", text, err)
	}
	b.want(id, "echo $kept", "yes\n", "0")
}

func TestManyAtOnce(t *testing.T) {
	b := newBox(t, "bash")
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			id := b.create()
			for j := range 5 {
				o, err := b.post(id, request(fmt.Sprintf("n=$((n+1)); echo %d $n; (exit %d)", i, j), nil))
				if want := fmt.Sprintf("%d %d\n", i, j+1); err != nil || o.out != want || o.code != fmt.Sprint(j) {
					t.Errorf("session %d: %+v, %v", i, o, err)
				}
			}
		})
	}
	wg.Wait()
	if n := b.api.Len(); n != 20 {
		t.Errorf("%d sessions", n)
	}
}

func TestRunsTakeTurns(t *testing.T) {
	b := newBox(t, "bash")
	id := b.create()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			o, err := b.post(id, request("n=$((n+1)); sleep 0.01; m=$((m+1)); echo $((n-m))", nil))
			if err != nil || o.out != "0\n" {
				t.Errorf("%+v, %v", o, err)
			}
		})
	}
	wg.Wait()
	b.want(id, "echo $n", "8\n", "0")
}

func TestLargeOutput(t *testing.T) {
	if testing.Short() {
		t.Skip("100 MiB")
	}
	b := newBox(t, "bash")
	id := b.create()
	resp, err := http.Post(b.url+"/session/"+id+"/run", "application/json",
		strings.NewReader(request("l=$(printf %016383d 0); yes $l | head -c 104857600; (exit 3)", nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	o, err := parse(resp.Body)
	if err != nil || len(o.out) != 100<<20 || o.code != "3" {
		t.Errorf("%d bytes, code %s, %v", len(o.out), o.code, err)
	}
	b.want(id, "echo alive", "alive\n", "0")
}

func TestBackgroundOutputGoesToTheNextRun(t *testing.T) {
	b := newBox(t, "bash")
	id := b.create()
	fifo := b.dir + "/go"
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	b.want(id, "{ read x <"+fifo+"; echo late; } &", "", "0")
	if err := os.WriteFile(fifo, []byte("go\n"), 0); err != nil {
		t.Fatal(err)
	}
	b.want(id, "wait; echo next", "late\nnext\n", "0")
}

func TestDelete(t *testing.T) {
	b := newBox(t, "bash")
	id := b.create()
	b.want(id, "set -m; sleep 304 & set +m; sleep 305 &", "", "0")
	done := make(chan outcome)
	go func() {
		o, err := b.post(id, request("trap '' TERM; echo x; sleep 306", nil))
		if err != nil {
			t.Error(err)
		}
		done <- o
	}()
	other := b.create()
	// Wait for the run to be under way.
	b.want(other, "until ps -eo args | grep -q '^sleep 306'; do sleep 0.02; done", "", "0")
	if status, body := b.do("DELETE", "/session/"+id, ""); status != 200 || body != "" {
		t.Errorf("%d %s", status, body)
	}
	if o := <-done; o.code != "-1" || !strings.Contains(o.why, "deleted") {
		t.Errorf("%+v", o)
	}
	b.want(other, "for i in $(seq 500); do ps -eo args | grep -q '^sleep 30[456]' || exit 0; sleep 0.02; done; exit 1", "", "0")
	for _, method := range []string{"DELETE /session/" + id, "POST /session/" + id + "/run", "DELETE /session/none"} {
		m, path, _ := strings.Cut(method, " ")
		status, body := b.do(m, path, request("true", nil))
		if status != 404 || !strings.Contains(body, "CONTEXT_NOT_FOUND") {
			t.Errorf("%s: %d %s", method, status, body)
		}
	}
	if b.api.Len() != 1 || b.api.Has(id) || !b.api.Has(other) {
		t.Error("the wrong session is left")
	}
}

func TestRefusals(t *testing.T) {
	b := newBox(t, "bash")
	id := b.create()
	for _, c := range []struct {
		path, body string
		status     int
		message    string
	}{
		{"/session", `{"cwd":"a\u0000b"}`, 400, "NUL"},
		{"/session", `{"cwd":7}`, 400, "cwd"},
		{"/session", `{"cwd":"/dev/null/x"}`, 400, "cwd"},
		{"/session", `{`, 400, "JSON"},
		{"/session/" + id + "/run", ``, 400, "empty"},
		{"/session/" + id + "/run", `{"command":" \n"}`, 400, "command"},
		{"/session/" + id + "/run", `{"command":"a\u0000b"}`, 400, "NUL"},
		{"/session/" + id + "/run", `{"command":"true","timeout":-1}`, 400, "timeout"},
		{"/session/" + id + "/run", `{"command":"true","timeout":9223372036854775807}`, 400, "timeout"},
		{"/session/" + id + "/run", `{"command":"true","cwd":"/nonexistent"}`, 400, "cwd"},
		{"/session/" + id + "/run", `{"command":"true","cwd":"/etc/passwd"}`, 400, "cwd"},
		{"/session/" + id + "/run", `{"command":"` + strings.Repeat("x", 11<<20) + `"}`, 413, "larger"},
	} {
		status, body := b.do("POST", c.path, c.body)
		if status != c.status || !strings.Contains(body, c.message) || !strings.Contains(body, `"code"`) {
			t.Errorf("%s %.60s: %d %s", c.path, c.body, status, body)
		}
	}
	b.want(id, "echo alive", "alive\n", "0")
}

func TestCwd(t *testing.T) {
	b := newBox(t, "bash")
	status, body := b.do("POST", "/session", `{"cwd":"new/dir"}`)
	if status != 200 {
		t.Fatal(body)
	}
	var made struct {
		ID string `json:"session_id"`
	}
	if err := json.Unmarshal([]byte(body), &made); err != nil {
		t.Fatal(err)
	}
	b.want(made.ID, "pwd", b.dir+"/new/dir\n", "0")
	o, err := b.post(made.ID, request("pwd; cd ..", map[string]any{"cwd": "/usr/bin"}))
	if err != nil || o.out != "/usr/bin\n" {
		t.Errorf("%+v, %v", o, err)
	}
	b.want(made.ID, "pwd", "/usr\n", "0")
	// The session's own directory goes, and the shell has to be replaced.
	b.want(made.ID, "rm -r "+b.dir+"/new; cd /bin", "", "0")
	b.want(made.ID, "exit", "", "0")
	b.want(made.ID, "pwd", "/bin\n", "0")
}

func TestLimit(t *testing.T) {
	b := newBox(t, "bash")
	for range maxSessions {
		id := newID()
		b.api.sessions[id] = &session{id: id, closed: make(chan struct{}), turn: make(chan struct{}, 1), states: &b.api.states}
	}
	status, body := b.do("POST", "/session", "")
	if status != 429 || !strings.Contains(body, "limit") {
		t.Errorf("%d %s", status, body)
	}
}

func TestNotClaimed(t *testing.T) {
	a := New(Options{Guest: func() *guest.Guest { return nil }, Table: table})
	mux := http.NewServeMux()
	a.Routes(mux)
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest("POST", "/session", nil))
	if w.Code != 503 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestStatesAreBounded(t *testing.T) {
	b := newBox(t, "bash")
	id := b.create()
	b.want(id, "kept=yes", "", "0")
	b.want(id, "big=$(head -c 2000000 /dev/zero | tr '\\0' x); kept=no", "", "0")
	b.want(id, "echo ${#big} $kept", "2000000 no\n", "0")
	b.want(id, "exit", "", "0")
	b.want(id, "echo ${#big} $kept", "0 yes\n", "0")
	b.api.Close()
	if used := b.api.states.used.Load(); used != 0 {
		t.Errorf("%d bytes of states leaked", used)
	}
	deadline := time.Now().Add(10 * time.Second)
	for table.Len() > 0 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if n := table.Len(); n != 0 {
		t.Errorf("%d shells leaked", n)
	}
}

// BenchmarkRun is the round trip of a run that does nothing.
func BenchmarkRun(b *testing.B) {
	box := newBox(b, "bash")
	id := box.create()
	for b.Loop() {
		if o, err := box.post(id, `{"command":":"}`); err != nil || o.code != "0" {
			b.Fatal(o, err)
		}
	}
}
