package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestFirstPacket: a sandbox can talk as soon as it is attached. The first
// packet, which is not repeated here, used to be lost at times.
func TestFirstPacket(t *testing.T) {
	l := newLab(t, options("t", outsideSubnet))
	server := l.outside.inbox(t, "0.0.0.0:9")
	var host *ns
	for i := range 100 {
		a := newNS(t)
		inbox := a.inbox(t, "0.0.0.0:9")
		addr, err := l.Attach(testContext(t), a.fd(), i, "")
		if err != nil {
			t.Fatal(err)
		}
		a.send(t, public+":9", strconv.Itoa(i))
		host.send(t, addr.String()+":9", strconv.Itoa(i))
		for _, c := range []net.PacketConn{server, inbox} {
			if got := receive(t, c); got != strconv.Itoa(i) {
				t.Fatalf("packet %s, want %d", got, i)
			}
		}
	}
}

func TestBusy(t *testing.T) {
	ctx := testContext(t)
	l := newLab(t, options("b", outsideSubnet))
	l.outside.whoami(t, "0.0.0.0:80")
	a, _ := l.sandbox(t, 3)
	b := newNS(t)
	if _, err := l.Attach(ctx, b.fd(), 3, "another"); !errors.Is(err, ErrBusy) {
		t.Errorf("a used index: %v", err)
	}
	// The holder is unharmed.
	if found, err := l.Interfaces(ctx); err != nil || !slices.Equal(found, []Interface{{3, "paddock/test/3"}}) {
		t.Errorf("interfaces %v, %v", found, err)
	}
	if _, err := a.dial(public + ":80"); err != nil {
		t.Error(err)
	}
	// A route that is still there while the interface is gone.
	addr, err := l.Addr(4)
	if err != nil {
		t.Fatal(err)
	}
	if err := via(addr.String()+"/32", public); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Attach(ctx, b.fd(), 4, "x"); !errors.Is(err, ErrBusy) {
		t.Errorf("a used address: %v", err)
	}
	if err := netlink.RouteDel(&netlink.Route{Dst: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(32, 32)}}); err != nil {
		t.Fatal(err)
	}
	// Having failed, the namespace can be attached elsewhere.
	if _, err := l.Attach(ctx, b.fd(), 5, "x"); err != nil {
		t.Error(err)
	}
}

func TestAttachRefuses(t *testing.T) {
	ctx := testContext(t)
	l := newLab(t, options("f", "10.213.0.0/29"))
	n := newNS(t)
	if l.Capacity() != 5 {
		t.Errorf("capacity %d", l.Capacity())
	}
	for _, index := range []int{-1, l.Capacity(), 1 << 30} {
		if _, err := l.Attach(ctx, n.fd(), index, ""); err == nil {
			t.Errorf("index %d was taken", index)
		}
	}
	if _, err := l.Attach(ctx, n.fd(), 0, strings.Repeat("x", 256)); err == nil {
		t.Error("a long alias was taken")
	}
	if _, err := l.Attach(ctx, 9999, 0, ""); err == nil {
		t.Error("a closed descriptor was taken")
	}
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := l.Attach(ctx, int(f.Fd()), 0, ""); err == nil {
		t.Error("a descriptor of something else was taken")
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := l.Attach(ended, n.fd(), 0, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
	n.do(t, func() error {
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: peerName}})
	})
	if _, err := l.Attach(ctx, n.fd(), 0, ""); err == nil || errors.Is(err, ErrBusy) {
		t.Errorf("a namespace with an eth0: %v", err)
	}
	if found, err := l.Interfaces(ctx); err != nil || len(found) != 0 {
		t.Errorf("interfaces %v, %v after failures", found, err)
	}
}

// TestMany attaches 200 at once. Half of them end with their namespace, the
// rest is detached.
func TestMany(t *testing.T) {
	const count = 200
	ctx := testContext(t)
	l := newLab(t, options("m", outsideSubnet))
	before, err := countRules(l.Network)
	if err != nil {
		t.Fatal(err)
	}
	all := make([]*ns, count)
	for i := range all {
		all[i] = newNS(t)
	}
	errs := make(chan error, count)
	for i, n := range all {
		go func() {
			_, err := l.Attach(ctx, n.fd(), i, "paddock/test/"+strconv.Itoa(i))
			errs <- err
		}()
	}
	for range all {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
	found, err := l.Interfaces(ctx)
	if err != nil || len(found) != count {
		t.Fatalf("%d interfaces, %v", len(found), err)
	}
	for _, f := range found {
		if f.Alias != "paddock/test/"+strconv.Itoa(f.Index) {
			t.Errorf("interface %+v", f)
		}
	}
	if after, err := countRules(l.Network); err != nil || after != before {
		t.Errorf("%d rules, %v, without sandboxes there were %d", after, err, before)
	}
	for _, n := range all[:count/2] {
		n.f.Close()
	}
	for len(found) > count/2 { // the kernel takes its time
		if ctx.Err() != nil {
			t.Fatalf("%d interfaces are left", len(found))
		}
		time.Sleep(10 * time.Millisecond)
		if found, err = l.Interfaces(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Detach(ctx, count/2); err != nil {
		t.Error(err)
	}
	var rest []int
	for i := range count { // most of them gone already
		rest = append(rest, i)
	}
	for range 2 {
		if err := l.Detach(ctx, rest...); err != nil {
			t.Error(err)
		}
	}
	if found, err := l.Interfaces(ctx); err != nil || len(found) != 0 {
		t.Errorf("%d interfaces are left, %v", len(found), err)
	}
}

func TestLinkSettings(t *testing.T) {
	l := newLab(t, options("l", outsideSubnet))
	a, _ := l.sandbox(t, 0)
	link, err := netlink.LinkByName(l.link(0))
	if err != nil {
		t.Fatal(err)
	}
	if link.Attrs().RawFlags&unix.IFF_NOARP == 0 {
		t.Error("the host's end speaks ARP")
	}
	for name, want := range map[string]string{
		"rp_filter": "1", "forwarding": "1", "accept_redirects": "0", "send_redirects": "0",
		"accept_source_route": "0", "proxy_arp": "0", "route_localnet": "0", "accept_local": "0",
	} {
		b, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + l.link(0) + "/" + name)
		if err != nil || strings.TrimSpace(string(b)) != want {
			t.Errorf("%s is %q, %v, want %s", name, b, err, want)
		}
	}
	a.do(t, func() error {
		neighbours, err := netlink.NeighList(0, unix.AF_INET)
		if err != nil || len(neighbours) != 1 || neighbours[0].State != netlink.NUD_PERMANENT {
			return fmt.Errorf("neighbours %v, %v", neighbours, err)
		}
		return nil
	})
}

func BenchmarkAttach(b *testing.B) {
	l := newLab(b, options("z", "10.213.0.0/16"))
	ctx := context.Background()
	index := 0
	for b.Loop() {
		b.StopTimer()
		n := newNS(b)
		b.StartTimer()
		if _, err := l.Attach(ctx, n.fd(), index, "paddock/test/x"); err != nil {
			b.Fatal(err)
		}
		index++
	}
}
