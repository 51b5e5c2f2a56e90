package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/thread"
)

// The tests run in a network namespace of their own, which is "the host" to
// them; other namespaces are the sandboxes and the outside. Nothing of the real
// host's network is touched.
func TestMain(m *testing.M) {
	const marker = "NETWORK_TEST_INSIDE"
	if os.Geteuid() != 0 || os.Getenv(marker) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), marker+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
}

// ns is a network namespace.
type ns struct{ f *os.File }

func newNS(t testing.TB) *ns {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	var f *os.File
	err := thread.Run(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		f, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return &ns{f}
}

func (n *ns) fd() int { return int(n.f.Fd()) }

// do runs f in the namespace. Sockets made in it stay there.
func (n *ns) do(t testing.TB, f func() error) {
	t.Helper()
	if err := n.try(f); err != nil {
		t.Fatal(err)
	}
}

func (n *ns) try(f func() error) error {
	if n == nil { // the host
		return f()
	}
	return thread.Run(func() error {
		if err := unix.Setns(n.fd(), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// dial connects from the namespace and returns what the server, a whoami,
// answers.
func (n *ns) dial(to string) (string, error) {
	var answer string
	err := n.try(func() error {
		c, err := net.DialTimeout("tcp", to, 250*time.Millisecond)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		b, err := io.ReadAll(c)
		answer = string(b)
		return err
	})
	return answer, err
}

// whoami serves TCP in the namespace: it tells who asks.
func (n *ns) whoami(t testing.TB, on string) {
	t.Helper()
	n.do(t, func() error {
		l, err := net.Listen("tcp", on)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				io.WriteString(c, host)
				c.Close()
			}
		}()
		return nil
	})
}

// inbox receives UDP in the namespace.
func (n *ns) inbox(t testing.TB, on string) net.PacketConn {
	t.Helper()
	var c net.PacketConn
	n.do(t, func() (err error) {
		c, err = net.ListenPacket("udp", on)
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// receive returns the next message.
func receive(t testing.TB, c net.PacketConn) string {
	t.Helper()
	b := make([]byte, 2048)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, _, err := c.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// send sends one message from the namespace.
func (n *ns) send(t testing.TB, to, message string) {
	t.Helper()
	n.do(t, func() error {
		c, err := net.Dial("udp", to)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = io.WriteString(c, message)
		return err
	})
}

// Addresses of the lab.
const (
	hostOutside   = "203.0.113.1"     // the host's own on the outside
	public        = "203.0.113.2"     // a public server
	private       = "10.99.0.1"       // a private server beyond it
	metadata      = "169.254.169.254" // the cloud's
	hostOutside6  = "2001:db8::1"
	public6       = "2001:db8:1::2"
	beside6       = "2001:db8::2" // on the network that the host is attached to
	private6      = "fd99::1"
	metadata6     = "fd00:ec2::254"
	outsideSubnet = "10.213.0.0/24"
)

// place has the lab's addresses of one family.
type place struct {
	number                                               byte
	public, private, metadata, hostOutside               string
	any, everything, privateNet, metadataNet, outsideNet string
}

var places = []place{
	{unix.NFPROTO_IPV4, public, private, metadata, hostOutside,
		"0.0.0.0", "0.0.0.0/0", "10.99.0.0/24", "169.254.0.0/16", "203.0.113.0/24"},
	{unix.NFPROTO_IPV6, public6, private6, metadata6, hostOutside6,
		"::", "::/0", "fd99::/64", "fd00:ec2::/32", "2001:db8::/32"},
}

// of is the address of the same sandbox, or the gateway, in the place's family.
func (p place) of(n *Network, addr string) string {
	if p.number == unix.NFPROTO_IPV6 {
		return n.Addr6(netip.MustParseAddr(addr)).String()
	}
	return addr
}

// inBothFamilies runs a test for each.
func inBothFamilies(t *testing.T, f func(t *testing.T, p place)) {
	for i, p := range places {
		t.Run([]string{"IPv4", "IPv6"}[i], func(t *testing.T) {
			if i == 1 && !usesIPv6() {
				t.Skip("this host has no IPv6")
			}
			f(t, p)
		})
	}
}

func at(host string, port int) string { return net.JoinHostPort(host, strconv.Itoa(port)) }

// lab is a host that is connected to an outside.
type lab struct {
	*Network
	outside *ns
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// outsideOnce wires the outside to the host; it serves all tests.
var (
	outsideOnce sync.Once
	outsideNS   *ns
	errOutside  error
)

func outside(t testing.TB) *ns {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make network namespaces")
	}
	outsideOnce.Do(func() { outsideNS, errOutside = wire() })
	if errOutside != nil {
		t.Fatal(errOutside)
	}
	return outsideNS
}

func wire() (*ns, error) {
	var n ns
	err := thread.Run(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		n.f, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, err
	}
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "wan0"}, PeerName: "wan0", PeerNamespace: netlink.NsFd(n.fd()),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return nil, err
	}
	setUp := func(addresses ...string) error {
		for _, name := range []string{"lo", "wan0"} {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(l); err != nil {
				return err
			}
			if name == "lo" {
				continue
			}
			for _, a := range addresses {
				addr, err := netlink.ParseAddr(a)
				if err != nil {
					return err
				}
				addr.Flags = unix.IFA_F_NODAD
				if err := netlink.AddrAdd(l, addr); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := setUp(hostOutside+"/24", hostOutside6+"/64"); err != nil {
		return nil, err
	}
	if err := errors.Join(via("0.0.0.0/0", public), via("::/0", beside6)); err != nil {
		return nil, err
	}
	err = n.try(func() error {
		if err := setUp(public+"/24", private+"/32", metadata+"/32", beside6+"/64", public6+"/128", private6+"/128", metadata6+"/128"); err != nil {
			return err
		}
		// An outside that tries to get in.
		return errors.Join(via("10.213.0.0/16", hostOutside), via("fd00::/8", hostOutside6))
	})
	return &n, err
}

func via(dst, gateway string) error {
	_, d, err := net.ParseCIDR(dst)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Dst: d, Gw: net.ParseIP(gateway)})
}

func options(name, subnet string) Options {
	return Options{Name: name, Subnet: netip.MustParsePrefix(subnet)}
}

// newLab makes a network that is torn down with the test, which checks that
// nothing is left.
func newLab(t testing.TB, o Options) *lab {
	t.Helper()
	l := &lab{outside: outside(t)}
	n, err := New(testContext(t), o)
	if err != nil {
		t.Fatal(err)
	}
	l.Network = n
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
		defer cancel()
		for range 2 { // idempotent
			if err := n.Teardown(ctx); err != nil {
				t.Error(err)
			}
		}
		checkNothingLeft(t, n)
	})
	return l
}

// sandbox makes a namespace and attaches it.
func (l *lab) sandbox(t testing.TB, index int) (*ns, string) {
	t.Helper()
	n := newNS(t)
	addr, err := l.Attach(testContext(t), n.fd(), index, "paddock/test/"+strconv.Itoa(index))
	if err != nil {
		t.Fatal(err)
	}
	if l.HasIPv6() {
		n.await6(t, l.Addr6(addr))
	}
	return n, addr.String()
}

// await6 returns when packets to the address are taken: the kernel makes the route
// for them from a work queue, some time after the address.
func (n *ns) await6(t testing.TB, addr netip.Addr) {
	t.Helper()
	ctx := testContext(t)
	n.do(t, func() error {
		for ; ; time.Sleep(time.Millisecond) {
			list, err := netlink.RouteListFiltered(unix.AF_INET6, &netlink.Route{Table: unix.RT_TABLE_LOCAL}, netlink.RT_FILTER_TABLE)
			if err != nil || ctx.Err() != nil {
				return errors.Join(err, ctx.Err())
			}
			for _, r := range list {
				if r.Dst != nil && r.Dst.IP.String() == addr.String() {
					return nil
				}
			}
		}
	})
}

func checkNothingLeft(t testing.TB, n *Network) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if len(l.Attrs().Name) >= len(n.prefix) && l.Attrs().Name[:len(n.prefix)] == n.prefix {
			t.Errorf("interface %s is left", l.Attrs().Name)
		}
	}
	routes, err := netlink.RouteList(nil, unix.AF_UNSPEC)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		if a, ok := netip.AddrFromSlice(r.Dst.IP); ok && n.Sandbox(a.Unmap()).IsValid() {
			t.Errorf("route %v is left", r)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := netlink.AddrList(lo, unix.AF_UNSPEC)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if a.IP.String() == n.gateway.String() || a.IP.String() == n.gateway6.String() {
			t.Errorf("address %v is left", a)
		}
	}
	if rules, err := countRules(n); err == nil {
		t.Errorf("the table with %d rules is left", rules)
	}
}

// countRules fails when there is no table.
func countRules(n *Network) (int, error) {
	c, err := dialNFT(context.Background())
	if err != nil {
		return 0, err
	}
	table, err := c.ListTableOfFamily(n.nftTable().Name, n.nftTable().Family)
	if err != nil {
		return 0, err
	}
	chains, err := c.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return 0, err
	}
	count := 0
	for _, chain := range chains {
		if chain.Table.Name != table.Name {
			continue
		}
		rules, err := c.GetRules(table, chain)
		if err != nil {
			return 0, err
		}
		count += len(rules)
	}
	return count, nil
}
