package cli_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// forwarding starts a forward and returns its local addresses.
func forwarding(t *testing.T, m *machine, ports int, line ...string) (*exec.Cmd, []string, *strings.Builder) {
	t.Helper()
	cmd := m.command(append([]string{"port-forward"}, line...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	errs := new(strings.Builder)
	cmd.Stderr = errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	var at []string
	for in := bufio.NewReader(out); len(at) < ports; {
		text, err := in.ReadString('\n')
		if err != nil {
			_ = cmd.Wait()
			t.Fatalf("port-forward ended: %v, %s", err, errs)
		}
		address, _, _ := strings.Cut(text, " -> ")
		at = append(at, address)
	}
	return cmd, at, errs
}

func dial(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// Protocols other than HTTP go through, on several connections at once, in both
// directions, with the end of each.
func testPortForward(t *testing.T, m *machine, _ string) {
	id := m.create()
	m.ok("exec", "-d", id, "--", "nc", "-ll", "-p", "7000", "-e", "sh", "-c", "echo ready; cat; echo end")
	m.ok("exec", "-d", id, "--", "nc", "-ll", "-p", "7001", "-e", "cat")
	cmd, at, _ := forwarding(t, m, 2, id, ":7000", "0:7001")
	greeting := ""
	for range 100 {
		// The program may not listen yet.
		c, err := net.Dial("tcp", at[0])
		if err != nil {
			continue
		}
		line, err := bufio.NewReader(c).ReadString('\n')
		c.Close()
		if err == nil {
			greeting = line
			break
		}
	}
	if greeting != "ready\n" {
		t.Fatalf("greeted with %q", greeting)
	}
	var wg sync.WaitGroup
	for i := range 20 {
		c := dial(t, at[0])
		in := bufio.NewReader(c)
		// The queue of this program is short, so one after the other.
		if line, err := in.ReadString('\n'); err != nil {
			t.Fatalf("%q, %v", line, err)
		}
		sent := fmt.Sprintf("%s%d\x00\xff\n", strings.Repeat("x", 100000), i)
		wg.Go(func() {
			_, _ = io.WriteString(c, sent)
			_ = c.CloseWrite()
		})
		wg.Go(func() {
			if got, err := io.ReadAll(in); err != nil || string(got) != sent+"end\n" {
				t.Errorf("connection %d: %d bytes, %v", i, len(got), err)
			}
		})
	}
	wg.Wait()
	c := dial(t, at[1])
	_, _ = io.WriteString(c, "echo")
	_ = c.CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != "echo" {
		t.Errorf("the second port: %q, %v", got, err)
	}
	// Ctrl-C is the usual end, with a connection open too.
	open := dial(t, at[1])
	_, _ = io.WriteString(open, "x")
	if _, err := io.ReadFull(open, make([]byte, 1)); err != nil {
		t.Error(err)
	}
	_ = cmd.Process.Signal(syscall.SIGINT)
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d after Ctrl-C", code)
	}
	if _, err := open.Read(make([]byte, 1)); err == nil {
		t.Error("the connection lives on")
	}

	cmd, at, errs := forwarding(t, m, 1, id, ":9")
	if c, err := net.Dial("tcp", at[0]); err == nil {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("read from a port on which nothing listens")
		}
		c.Close()
	}
	m.ok("rm", id)
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(errs.String(), "Nothing listens on port 9") || !strings.Contains(errs.String(), "sandbox "+id) {
		t.Errorf("after the end of the sandbox: %d, %s", code, errs)
	}

	for _, c := range []struct {
		line string
		code int
		want string
	}{
		{"port-forward " + id + " 80", 1, "SANDBOX_NOT_FOUND"}, {"port-forward " + id, 2, "needs ID [LOCAL:]REMOTE"},
		{"port-forward x 0", 2, "1 to 65535"}, {"port-forward x y:80", 2, "port here is \"y\""}, {"port-forward x 1:2:3", 2, "port of the sandbox"},
		{"port-forward --address nowhere x 80", 2, "IP address"},
	} {
		if _, errs, code := m.result(m.command(strings.Fields(c.line)...)); code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("%s: %d, %s", c.line, code, errs)
		}
	}
}
