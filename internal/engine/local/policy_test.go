package local

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/egress/proxy"
	"github.com/paddock-sandbox/paddock/internal/policy"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func denyBut(t *testing.T, targets ...string) *policy.Policy {
	t.Helper()
	p := policy.Policy{DefaultAction: policy.Deny}
	for _, target := range targets {
		p.Egress = append(p.Egress, policy.Rule{Action: policy.Allow, Target: target})
	}
	p, err := p.Normalize()
	if err != nil {
		t.Fatal(err)
	}
	return &p
}

// allowed asks the engine's enforcer about a connection to an address.
func allowed(t *testing.T, e *Engine, id, to string) bool {
	t.Helper()
	s, err := e.find(id)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := e.enforcer.Sandbox(s.addr); !ok {
		t.Fatalf("sandbox %s has no policy", id)
	}
	return e.enforcer.Judge(s.addr, proxy.Claim{To: netip.AddrPortFrom(netip.MustParseAddr(to), 80)}).Allow
}

// A policy is there before the entrypoint, changes, outlives the engine, and ends
// with its sandbox.
func TestPolicyOfSandbox(t *testing.T) {
	const one, other = "203.0.113.1", "203.0.113.2"
	h := newHost(t)
	e, _ := h.open(t)
	spec := func(s *sandbox.Spec) { s.NetworkPolicy = denyBut(t, one) }
	id := mustCreate(t, e, spec)
	if !allowed(t, e, id, one) || allowed(t, e, id, other) {
		t.Error("the policy of the create does not hold")
	}
	ctx := context.Background()
	if err := e.SetPolicy(ctx, id, denyBut(t, other)); err != nil {
		t.Fatal(err)
	}
	if allowed(t, e, id, one) || !allowed(t, e, id, other) {
		t.Error("the changed policy does not hold")
	}
	var notFound *sandbox.Error
	if err := e.SetPolicy(ctx, "nobody", denyBut(t)); !errors.As(err, &notFound) || notFound.Kind != sandbox.KindNotFound {
		t.Errorf("a policy for nobody: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}

	// The record differs: the server died between the two.
	record := func(p *policy.Policy) []*sandbox.Sandbox {
		r := &sandbox.Sandbox{ID: id, Token: "token-of-" + id, Spec: sandbox.Spec{Image: testImage, NetworkPolicy: p}}
		r.Status.State = sandbox.Running
		return []*sandbox.Sandbox{r}
	}
	e, found := h.open(t, record(denyBut(t, one))...)
	if found[id] != sandbox.FoundRunning || !allowed(t, e, id, one) || allowed(t, e, id, other) {
		t.Errorf("after a restart: %v", found)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}

	// A record that can't be read allows nothing until the Manager has spoken.
	path := filepath.Join(e.in.run(id), policyFile)
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := e.in.policies()
	if err != nil || len(list) != 1 || list[0].policy.DefaultAction != policy.Deny || len(list[0].policy.Egress) != 0 {
		t.Errorf("a broken record: %+v, %v", list, err)
	}
	e, _ = h.open(t, record(denyBut(t, other))...)
	defer e.Close()
	if !allowed(t, e, id, other) {
		t.Error("the policy is not restored")
	}
	s, err := e.find(id)
	if err != nil {
		t.Fatal(err)
	}
	addr := s.addr
	if err := e.Remove(ctx, id); err != nil {
		t.Fatal(err)
	}
	if _, ok := e.enforcer.Sandbox(addr); ok {
		t.Error("the policy outlives its sandbox")
	}
}

// A refused packet is told.
func TestDenialsAreDelivered(t *testing.T) {
	e := newEngine(t)
	if !e.network.Reports() {
		t.Skip("this kernel can't report refused packets")
	}
	id := mustCreate(t, e, func(s *sandbox.Spec) { s.NetworkPolicy = denyBut(t) })
	run(t, e, id, "nc -w 2 203.0.113.9 4321 </dev/null; true")
	select {
	case d := <-e.Denials():
		if d.ID != id || d.Protocol != "tcp" || d.To.String() != "203.0.113.9:4321" || d.Rule != -1 || d.Reason == "" {
			t.Errorf("%+v", d)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("nothing was told")
	}
}

// The program of a socket is found by the socket's ends, or its port alone.
func TestProcessOfDenial(t *testing.T) {
	e := newEngine(t)
	id := mustCreate(t, e, nil)
	out, _ := run(t, e, id, "(sleep 1000 | nc -l -p 4000) >/dev/null 2>&1 & until cat /proc/net/tcp /proc/net/tcp6 | grep -q ':0FA0 '; do sleep 0.05; done; "+
		"(sleep 1000 | nc 127.0.0.1 4000) >/dev/null 2>&1 & "+
		`until awk '$3 ~ /:0FA0$/ && $4 == "01" {print $2; n++} END {exit !n}' /proc/net/tcp; do sleep 0.05; done`)
	_, hex, _ := strings.Cut(strings.TrimSpace(out), ":")
	n, err := strconv.ParseUint(hex, 16, 16)
	if err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	port := uint16(n)
	at := func(s string, port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(s), port) }
	right := ends{at("127.0.0.1", port), at("127.0.0.1", 4000)}
	s, err := e.find(id)
	if err != nil {
		t.Fatal(err)
	}
	soon := time.Now().Add(time.Minute)
	exact, listed := tcpInode(s.pid, right, soon), inodeInTables(s.pid, "tcp", port, soon)
	if exact != listed || exact == "" {
		t.Errorf("the kernel's answer is %q, its list has %q", exact, listed)
	}
	for name, c := range map[string]struct {
		id   string
		udp  bool
		flow ends
		time time.Duration
		want string
	}{
		"exact":           {id, false, right, time.Minute, "nc"},
		"by its port":     {id, false, ends{right.local, at("192.0.2.1", 1)}, time.Minute, "nc"},
		"nobody's port":   {id, false, ends{at("127.0.0.1", port^1), right.remote}, time.Minute, ""},
		"another table":   {id, true, right, time.Minute, ""},
		"another sandbox": {"nobody", false, right, time.Minute, ""},
		"no time":         {id, false, right, -1, ""},
	} {
		if got, _, _ := strings.Cut(e.processOf(c.id, c.udp, c.flow, c.time), "["); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// Who asks for a name that is refused is known by its socket, under a name that
// does nothing to a terminal.
func TestProcessOfRefusedName(t *testing.T) {
	e := newEngine(t)
	id := mustCreate(t, e, func(s *sandbox.Spec) { s.NetworkPolicy = denyBut(t, "allowed.example") })
	for _, c := range []struct{ line, program string }{
		{"nslookup -type=a refused.example || true", "nslookup"},
		// A busybox of any name that begins so does what it is told.
		{`n=$(printf '/tmp/busybox\033[2Jb\nc'); cp /bin/busybox "$n"; "$n" nslookup -type=a refused.example || true`, `busybox?[2Jb\nc`},
		{`n=$(printf '/tmp/busybox\377x'); cp /bin/busybox "$n"; "$n" nslookup -type=a refused.example || true`, "busybox\uFFFDx"},
	} {
		run(t, e, id, c.line)
		for deadline := time.After(20 * time.Second); ; {
			select {
			case d := <-e.Denials():
				if d.Process == "" && d.Name == "refused.example" {
					continue // the second of two questions at once
				}
				if name := d.Process[:max(0, strings.LastIndexByte(d.Process, '['))]; d.Name != "refused.example" || name != c.program {
					t.Errorf("%q asked for %q, want %q", d.Process, d.Name, c.program)
				}
			case <-deadline:
				t.Fatalf("nothing was told of %s", c.line)
			}
			break
		}
	}
}

// One sandbox leaves searches for others, and all of them leave time.
func TestSearchesForProcessesAreBounded(t *testing.T) {
	var l looks
	count := func(id string) (n int) {
		for range 2 * lookRate {
			if l.take(id) {
				n++
			}
		}
		return n
	}
	l.take("")
	now := l.second
	one, total := count("one"), 0
	for i := range 10 {
		total += count(fmt.Sprint(i))
	}
	if l.second != now {
		t.Skip("a second began in the middle")
	}
	if one != lookShare || one+total+1 != lookRate {
		t.Errorf("one had %d, all %d", one, one+total+1)
	}
	for range lookAsking {
		if !l.begin() {
			t.Error("too few at once")
		}
	}
	if l.begin() {
		t.Error("too many at once")
	}
	l.end()
	if !l.begin() {
		t.Error("none after one has ended")
	}
}
