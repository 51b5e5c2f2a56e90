package intercept

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"
)

// A second connection of a sandbox takes its sessions up again on both sides.
func TestSessionsAreResumed(t *testing.T) {
	versions(t, func(t *testing.T, http2 bool) {
		r := newRig(t, rigOptions{http2: http2}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, r.TLS.DidResume)
		}))
		r.bind("", bearer)
		cache := tls.NewLRUClientSessionCache(8)
		for _, want := range []bool{false, true} {
			rt := r.transport(http2)
			rt.TLSClientConfig.ClientSessionCache = cache
			resp, body := r.do(rt, r.request("GET", "/", ""))
			if resp.TLS.DidResume != want || body != fmt.Sprint(want) {
				t.Errorf("resumed with the sandbox %v, with the destination %s, want %v", resp.TLS.DidResume, body, want)
			}
			rt.CloseIdleConnections()
		}
	})
}

// Sandboxes have no sessions in common.
func TestTenantsShareNothing(t *testing.T) {
	i, err := New(Options{Authority: authority(t)})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	one, two := i.tenants.enter("one"), i.tenants.enter("two")
	if one == two || one.sessions == two.sessions || one.ticketKeys(now)[0] == two.ticketKeys(now)[0] {
		t.Error("two sandboxes share their sessions")
	}
	first := slices.Clone(one.ticketKeys(now))
	if again := i.tenants.enter("one"); again != one || !slices.Equal(again.ticketKeys(now.Add(keyTime)), first) {
		t.Error("a sandbox does not find its sessions again")
	}
	next := one.ticketKeys(now.Add(keyTime + time.Second))
	if len(next) != 2 || next[0] == first[0] || next[1] != first[0] {
		t.Error("the key was not renewed, or the old one is forgotten at once")
	}
	if last := one.ticketKeys(now.Add(9 * keyTime)); len(last) != 1 || last[0] == next[0] {
		t.Error("an old key is kept")
	}
	// Those that have connections are kept, of the others the last used.
	i.tenants.leave(two)
	for n := range maxTenants + 10 {
		i.tenants.leave(i.tenants.enter(fmt.Sprint(n)))
	}
	if n := i.tenants.recent.Len(); n > maxTenants || n != len(i.tenants.all) {
		t.Errorf("%d and %d are remembered", n, len(i.tenants.all))
	}
	if i.tenants.enter("one") != one || i.tenants.enter("two") == two {
		t.Error("not those were forgotten that should have been")
	}
}

func TestTooManyConnections(t *testing.T) {
	h, _ := listening(nil)
	r := newRig(t, rigOptions{http2: true}, h)
	r.bind("", bearer)
	tenant := r.i.tenants.enter("sb1")
	tenant.conns2.Store(maxConns2)
	if resp, err := r.transport(true).RoundTrip(r.request("GET", "/", "")); err == nil {
		b, _ := io.ReadAll(resp.Body)
		t.Errorf("one more goes through: %d %s", resp.StatusCode, b)
	}
	tenant.conns2.Store(0)
	if resp, body := r.do(r.transport(true), r.request("GET", "/", "")); resp.StatusCode != 200 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}
