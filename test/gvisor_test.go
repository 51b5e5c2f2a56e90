package test

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/internal/engine/local/gvisor/gvisortest"
	"github.com/paddock-sandbox/paddock/test/harness"
)

// behindGVisor starts the server again so that sandboxes are behind gVisor.
func behindGVisor(t *testing.T, s *harness.Server) {
	t.Helper()
	runsc := gvisortest.Runsc(t)
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	s.Set("runtime.runsc", runsc)
	s.Set("sandbox.default_isolation", "gvisor")
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// everyAttack asks for all attacks from behind gVisor, not a sample, which takes
// three minutes.
const everyAttack = "PADDOCK_TEST_GVISOR_ATTACKS"

// unheeded are attacks by socket options that gVisor takes and does not heed: what
// leaves is an ordinary packet to where the policy permits it.
var unheeded = []string{"ipv6_routing_header", "ipv6_segment_routing"}

func heeded(attacks []attack) []attack {
	return slices.DeleteFunc(slices.Clone(attacks), func(a attack) bool { return slices.Contains(unheeded, a.name) })
}

// sample tries some of the attacks and of what the policy permits.
func (f *fort) sample(t *testing.T, policed string, attacks []attack) {
	for i, a := range attacks {
		if i%20 != 0 && !strings.HasPrefix(a.name, "spoof_") {
			continue
		}
		t.Run(a.name, func(t *testing.T) {
			if said, seen := f.try(t, policed, a.name); seen || !strings.HasPrefix(said, "BLOCKED") {
				t.Errorf("got through: the witness saw it: %v; it says %q", seen, said)
			}
		})
	}
	// DNS and HTTP, and TLS into which the server looks.
	for _, name := range []string{"good_http", "good_udp", "good_ruled", "good_ruled_h2"} {
		t.Run(name, func(t *testing.T) {
			if said, _ := f.try(t, policed, name); !strings.HasPrefix(said, "OPEN") {
				t.Errorf("does not work: %q", said)
			}
		})
	}
}

// The attacks of TestAttacks and the official SDK, with a server whose sandboxes
// are behind gVisor. Rules hold on the host's end of the interface, whoever makes
// the packets.
func TestBehindGVisor(t *testing.T) {
	if !inOwnNetwork(t) {
		return
	}
	f := newFort(t)
	behindGVisor(t, f.Server)
	other := f.policed(t, nil)
	for name, family := range map[string]string{"OTHER": "socket.AF_INET", "OTHER6": "socket.AF_INET6"} {
		f.env[name] = f.Must(t, other, "python3 -c 'import socket; s=socket.socket("+family+", socket.SOCK_DGRAM); "+
			"s.connect((\"203.0.113.66\" if s.family == socket.AF_INET else \"2001:db8:113::66\", 9)); print(s.getsockname()[0])'")
	}
	if out := f.Must(t, other, "uname -r"); !strings.Contains(out, "gvisor") {
		t.Fatalf("the kernel is %s", out)
	}
	f.env["GATEWAY6"] = f.w.gateway6.String()
	id := f.policed(t, attacked())
	if os.Getenv(everyAttack) != "" {
		open := f.policed(t, nil)
		t.Run("IPv4", func(t *testing.T) { f.campaign(t, id, open, heeded(attacks)) })
		t.Run("IPv6", func(t *testing.T) { f.over6().campaign(t, id, open, heeded(attacks6)) })
	} else {
		t.Run("IPv4", func(t *testing.T) { f.sample(t, id, heeded(attacks)) })
		t.Run("IPv6", func(t *testing.T) { f.over6().sample(t, id, heeded(attacks6)) })
	}
	t.Run("policy_change_cuts", func(t *testing.T) { testPolicyChangeCuts(t, f) })
	t.Run("code", func(t *testing.T) {
		var out bytes.Buffer
		o, err := f.Client.RunCode(t.Context(), other, client.Code{Source: "import math\nprint(math.factorial(20))", Language: "python"}, client.CodeOutput{Stdout: &out})
		if err != nil || strings.TrimSpace(out.String()) != "2432902008176640000" {
			t.Errorf("%+v, %v: %q", o, err, out.String())
		}
	})
	t.Run("SDK", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, sdkPython(t, newestSDK), filepath.Join("python", "sdk_sync.py"))
		cmd.Env = append(harness.CleanEnviron(),
			"OPEN_SANDBOX_DOMAIN="+strings.TrimPrefix(f.URL, "http://"), "OPEN_SANDBOX_API_KEY="+f.Key,
			"TEST_IMAGE="+starterImage, "no_proxy=127.0.0.1", "NO_PROXY=127.0.0.1")
		cmd.WaitDelay = time.Second
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		deleteMarked(t, f.Server)
	})
}

// A create asks for gVisor, on a server whose sandboxes are containers otherwise.
func TestGVisor(t *testing.T) {
	s := ownServer(t, map[string]string{"runtime.runsc": gvisortest.Runsc(t)})
	sb := s.Create(t, client.CreateRequest{Image: busyboxImage, Entrypoint: forever, Extensions: map[string]string{"paddock.isolation": "gvisor"}})
	got, err := s.Client.Get(t.Context(), sb.ID)
	if err != nil || got.Extensions["paddock.isolation"] != "gvisor" {
		t.Errorf("shown: %v, %v", got, err)
	}
	if out := s.Must(t, sb.ID, "uname -r; dmesg | head -n 1"); !strings.Contains(out, "gvisor") || !strings.Contains(out, "Starting gVisor") {
		t.Errorf("another kernel: %s", out)
	}
	t.Run("isolated sessions", func(t *testing.T) {
		r := s.Do(t, http.MethodGet, "/v1/sandboxes/"+sb.ID+"/proxy/44772/v1/isolated/capabilities", nil)
		if !strings.Contains(string(r.Body), `"available":false`) || !strings.Contains(string(r.Body), "gVisor") {
			t.Errorf("%d %s", r.Status, r.Body)
		}
		r = s.Do(t, http.MethodPost, "/v1/sandboxes/"+sb.ID+"/proxy/44772/v1/isolated/session", map[string]any{})
		if r.Status != http.StatusServiceUnavailable || !strings.Contains(string(r.Body), "gVisor") {
			t.Errorf("%d %s", r.Status, r.Body)
		}
	})
	t.Run("a paused sandbox and a killed server", func(t *testing.T) {
		s.Must(t, sb.ID, "echo kept > /kept; (while :; do echo >> /ticks; usleep 100000; done) > /dev/null 2>&1 &")
		if err := s.Client.Pause(t.Context(), sb.ID); err != nil {
			t.Fatal(err)
		}
		s.State(t, sb.ID, client.StatePaused)
		s.Kill()
		if err := s.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.State(t, sb.ID, client.StatePaused)
		if err := s.Client.Resume(t.Context(), sb.ID); err != nil {
			t.Fatal(err)
		}
		s.State(t, sb.ID, client.StateRunning)
		if out := s.Must(t, sb.ID, "cat /kept; a=$(wc -l < /ticks); sleep 1; [ $a -lt $(wc -l < /ticks) ] && echo on"); out != "kept\non" {
			t.Errorf("after the restart: %q", out)
		}
	})
}
