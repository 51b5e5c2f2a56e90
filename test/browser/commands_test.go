package browser

import (
	"bufio"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"github.com/paddock-sandbox/paddock/test/harness"
)

// What the command line prints can be opened as it is.
func checkCommands(t *testing.T) {
	one, _ := sites(t)
	p := profile(t)
	lines := strings.Split(paddock(t, "port", one.id, fmt.Sprint(appPort), "--expires", "1h"), "\n")
	if r := p.open(lines[0]); r.Status != 200 || js[string](p, "return document.title") != "one" {
		t.Errorf("%q: %d %s", lines[0], r.Status, p.text())
	}
	// Without a signature the address wants the header that is printed with it.
	lines = strings.Split(paddock(t, "port", one.id, fmt.Sprint(appPort)), "\n")
	if len(lines) != 2 {
		t.Fatalf("port printed %q", lines)
	}
	name, value, _ := strings.Cut(lines[1], ": ")
	if r := p.open(lines[0]); r.Status != 401 {
		t.Errorf("without its header: %d %s", r.Status, p.text())
	}
	p = profile(t)
	if _, err := chromedp.Call(p.ctx, network.SetExtraHTTPHeaders, network.SetExtraHTTPHeadersParams{Headers: network.Headers{name: value}}); err != nil {
		t.Fatal(err)
	}
	if r := p.open(lines[0]); r.Status != 200 || js[string](p, "return document.title") != "one" {
		t.Errorf("%q with its header: %d %s", lines[0], r.Status, p.text())
	}
	checkForward(t, one.id)
}

// checkForward opens the local port of a port-forward, which is the application
// itself.
func checkForward(t *testing.T, id string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), harness.BinaryPath(), "port-forward", id, fmt.Sprintf(":%d", appPort))
	cmd.Env = shared.server.Environ()
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = patience
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("port-forward: %v", err)
		}
	}()
	at, _, _ := strings.Cut(line, " ")
	p := profile(t)
	if r := p.open("http://" + at + "/?q=1"); r.Status != 200 {
		t.Fatalf("%d %s", r.Status, p.text())
	}
	if got := js[look](p, lookScript); got.Color != "rgb(1, 2, 3)" || got.Module != 42 || got.Image != 11 {
		t.Errorf("the page is %+v", got)
	}
	checkSocket(p, "ws://"+at+"/ws")
	if r := p.follow(chromedp.Click(chromedp.CSS("#go"))); r.URL != "http://"+at+"/welcome" {
		t.Errorf("the form leads to %s", r.URL)
	}
	if c := p.echo("/api/echo", nil).Headers["cookie"]; c != "session=of-one" {
		t.Errorf("the application got the cookies %q", c)
	}
}

// paddock runs the command line on the server's machine.
func paddock(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), harness.BinaryPath(), args...)
	cmd.Env = shared.server.Environ()
	cmd.WaitDelay = patience
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("paddock %q: %v", args, err)
	}
	return strings.TrimSpace(string(out))
}
