package test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/test/harness"
)

// insideMarker tells the test process in the network namespace of its own from
// the one that started it.
const insideMarker = "PADDOCK_ATTACK_INSIDE"

// inOwnNetwork runs the test or benchmark again in a network namespace of its
// own, which is "the host" to it, and reports whether the caller is there. Nothing
// leaves the machine, and its network is not touched.
func inOwnNetwork(t testing.TB) bool {
	t.Helper()
	if os.Getenv(insideMarker) != "" {
		return true
	}
	harness.Require(t, os.Geteuid() == 0, "root, to make network namespaces")
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v=true", "-test.count=1")
	b, bench := t.(*testing.B)
	if bench {
		if b.N > 1 {
			return false // once is enough: inside it is repeated
		}
		cmd.Args = []string{cmd.Path, "-test.run=^$", "-test.bench=^" + b.Name() + "$", "-test.benchtime=" + flag.Lookup("test.benchtime").Value.String()}
	}
	cmd.Env = append(os.Environ(), insideMarker+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if err != nil || bench || testing.Verbose() {
		t.Logf("%s", out.Bytes())
	}
	if err != nil {
		t.Errorf("in a network of its own: %v", err)
	}
	if bytes.Contains(out.Bytes(), []byte("--- SKIP: "+t.Name()+" ")) {
		t.Skip("skipped inside; see there")
	}
	return false
}

// world is what is outside of the host: servers on public, private and special
// addresses, and a witness who sees every packet.
type world struct {
	ns *os.File
	// gateway and gateway6 are addresses that the zone gives for a name.
	mu                sync.Mutex
	gateway, gateway6 netip.Addr
	seen              bytes.Buffer
	queries           map[string]int
	// root vouches for the servers that the host must believe.
	root []byte
}

// worldAddresses are the world's; documentation ranges stand for public ones.
var worldAddresses = []string{
	"203.0.113.10/24", "203.0.113.11/24", "203.0.113.12/24", "203.0.113.13/24", "203.0.113.53/24", "203.0.113.66/24",
	"10.99.0.1/32", "169.254.169.254/32", "100.100.100.200/32",
	"2001:db8:1::2/64", "2001:db8:113::10/128", "2001:db8:113::11/128", "2001:db8:113::12/128", "2001:db8:113::13/128", "2001:db8:113::66/128",
	"fd99::1/128", "fd00:ec2::254/128", "2002:cb00:7142::1/128", "2001:0:cb00:7142::1/128",
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{queries: map[string]int{}}
	w.in(t, true, func() (err error) {
		w.ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	t.Cleanup(func() { w.ns.Close() })
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(linkUp("lo"))
	must(netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: "wan0"}, PeerName: "wan0", PeerNamespace: netlink.NsFd(int(w.ns.Fd())),
	}))
	must(linkUp("wan0", "203.0.113.1/24", "2001:db8:1::1/64"))
	must(errors.Join(addRoute("0.0.0.0/0", "203.0.113.10"), addRoute("::/0", "2001:db8:1::2")))
	w.in(t, false, func() error {
		return errors.Join(linkUp("lo"), linkUp("wan0", worldAddresses...), addRoute("0.0.0.0/0", "203.0.113.1"), addRoute("::/0", "2001:db8:1::1"), w.witness(t))
	})
	w.in(t, false, func() error { return w.serve(t) })
	return w
}

// in runs f on a thread in the world's network namespace, or in a new one.
func (w *world) in(t testing.TB, fresh bool, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and ends the thread
		var err error
		if fresh {
			err = unix.Unshare(unix.CLONE_NEWNET)
		} else {
			err = unix.Setns(int(w.ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func linkUp(name string, addresses ...string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, s := range addresses {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			return err
		}
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(l, a); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(l)
}

func addRoute(dst, gateway string) error {
	_, d, err := net.ParseCIDR(dst)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Dst: d, Gw: net.ParseIP(gateway)})
}

// witness keeps what arrives.
func (w *world) witness(t *testing.T) error {
	const ethPAll = 0x300 // ETH_P_ALL in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, ethPAll)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
		return err
	}
	// So that the end of the test ends the reading.
	tv := unix.NsecToTimeval(int64(100 * time.Millisecond))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return err
	}
	done := make(chan struct{})
	stopped := make(chan struct{})
	t.Cleanup(func() {
		close(done)
		<-stopped
		unix.Close(fd)
	})
	go func() {
		defer close(stopped)
		b := make([]byte, 64<<10)
		for {
			n, from, err := unix.Recvfrom(fd, b, 0)
			select {
			case <-done:
				return
			default:
			}
			ll, ok := from.(*unix.SockaddrLinklayer)
			if err != nil || !ok || ll.Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			w.mu.Lock()
			w.seen.Write(b[:n])
			w.seen.WriteByte('\n')
			w.mu.Unlock()
		}
	}()
	return nil
}

var marks atomic.Int64

// now is a place in what the witness has seen.
func (w *world) now() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen.Len()
}

// saw reports whether the token arrived since a place, once all that was sent
// before has.
func (w *world) saw(t *testing.T, token string, since int) bool {
	t.Helper()
	mark := fmt.Sprintf("mark-%d-end", marks.Add(1))
	c, err := net.Dial("udp", "203.0.113.66:9")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, mark)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		w.mu.Lock()
		all := bytes.ToLower(w.seen.Bytes()[since:])
		w.mu.Unlock()
		marked := bytes.Contains(all, []byte(mark))
		found := bytes.Contains(all, []byte(token))
		if marked {
			return found
		}
		if time.Now().After(deadline) {
			t.Fatal("the witness sees nothing")
		}
	}
}

// serve starts the servers, each on all addresses of the world.
func (w *world) serve(t *testing.T) error {
	welcome := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(rw, "welcome "+r.URL.Path)
	})
	certificate, err := selfSigned()
	if err != nil {
		return err
	}
	for _, port := range []string{"80", "8080", "443", "8443", "853"} {
		l, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		srv := &http.Server{Handler: welcome, Protocols: new(http.Protocols), ErrorLog: quiet}
		srv.Protocols.SetHTTP1(true)
		switch port {
		case "8080":
			srv.Protocols.SetUnencryptedHTTP2(true)
		case "443", "8443", "853":
			l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{certificate},
				CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}})
		}
		go srv.Serve(l)
		t.Cleanup(func() { srv.Close() })
	}
	for _, e := range []struct{ port, greeting string }{{"7000", ""}, {"7002", "220 ready\r\n"}} {
		l, err := net.Listen("tcp", ":"+e.port)
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		go acceptAll(l, func(c net.Conn) {
			io.WriteString(c, e.greeting)
			io.Copy(c, c)
		})
	}
	for _, port := range []string{"7001", "443", "853"} {
		for _, host := range []string{"203.0.113.10", "203.0.113.13", "203.0.113.66", "2001:db8:113::10", "2001:db8:113::13", "2001:db8:113::66", "2001:db8:1::2"} {
			c, err := net.ListenPacket("udp", net.JoinHostPort(host, port))
			if err != nil {
				return err
			}
			t.Cleanup(func() { c.Close() })
			go echo(c)
		}
	}
	return errors.Join(w.serveRuled(t), w.resolve(t))
}

// serveRuled starts the servers of ruled.example, to which the host itself speaks
// TLS. They tell the witness what arrives: one takes anything for a request, the
// other speaks HTTP/2.
func (w *world) serveRuled(t *testing.T) error {
	cert, root := certifiedFor(t, "ruled.example")
	w.root = root
	l, err := net.Listen("tcp", ":9443")
	if err != nil {
		return err
	}
	t.Cleanup(func() { l.Close() })
	go acceptAll(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}}), func(c net.Conn) {
		b := make([]byte, 64<<10)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			w.note(b[:n])
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nwelcome")
		}
	})
	l2, err := net.Listen("tcp", ":9444")
	if err != nil {
		return err
	}
	srv := &http.Server{ErrorLog: quiet, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}},
		Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			w.note(fmt.Append(nil, r.Method, r.Host, r.RequestURI, r.Header, r.Trailer, string(body)))
			io.WriteString(rw, "welcome")
		})}
	go srv.ServeTLS(l2, "", "")
	t.Cleanup(func() { srv.Close() })
	return nil
}

// note tells the witness what arrived in a way that it cannot read.
func (w *world) note(b []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen.Write(append(b, '\n'))
}

func acceptAll(l net.Listener, f func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			f(c)
		}()
	}
}

func echo(c net.PacketConn) {
	b := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		c.WriteTo(b[:n], from)
	}
}

// resolve serves DNS on the usual port and on mDNS's.
func (w *world) resolve(t *testing.T) error {
	for _, at := range []string{"203.0.113.53:53", "203.0.113.66:53", "203.0.113.10:53", "203.0.113.66:5353",
		"[2001:db8:113::66]:53", "[2001:db8:113::10]:53", "[2001:db8:113::66]:5353"} {
		pc, err := net.ListenPacket("udp", at)
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", at)
		if err != nil {
			return err
		}
		for _, srv := range []*dns.Server{{PacketConn: pc, Handler: dns.HandlerFunc(w.answer)}, {Listener: l, Handler: dns.HandlerFunc(w.answer)}} {
			started := make(chan struct{})
			srv.NotifyStartedFunc = func() { close(started) }
			go srv.ActivateAndServe()
			<-started
			t.Cleanup(func() { srv.Shutdown() })
		}
	}
	return nil
}

// zone is what the names are, as records; what is beneath wild.example and not
// here is the allowed server, everything else the evil one.
var zone = map[string]string{
	"allowed.example":            "A 203.0.113.10",
	"ruled.example":              "A 203.0.113.13",
	"other.wild.example":         "A 203.0.113.12",
	"private.wild.example":       "A 10.99.0.1",
	"metadata.wild.example":      "A 169.254.169.254",
	"host.wild.example":          "A 203.0.113.1",
	"mapped.wild.example":        "AAAA ::ffff:10.99.0.1",
	"nat64.wild.example":         "AAAA 64:ff9b::a63:1",
	"alias-private.wild.example": "CNAME inner.example.\ninner.example. 60 IN A 10.99.0.1",
	"to-allowed.example":         "CNAME allowed.example.\nallowed.example. 60 IN A 203.0.113.10",
	"bound.wild.example":         "HTTPS 1 . alpn=h2 ipv4hint=203.0.113.66",
}

// inIPv6 are the addresses of the same servers in IPv6.
var inIPv6 = strings.NewReplacer(
	"A 203.0.113.1\n", "AAAA 2001:db8:1::1\n", "A 203.0.113.", "AAAA 2001:db8:113::",
	"A 10.99.0.1", "AAAA fd99::1", "A 169.254.169.254", "AAAA fd00:ec2::254")

func (w *world) answer(rw dns.ResponseWriter, q *dns.Msg) {
	m := new(dns.Msg)
	m.SetReply(q)
	name := strings.ToLower(q.Question[0].Name)
	plain := strings.TrimSuffix(name, ".")
	w.mu.Lock()
	w.queries[plain]++
	gateway := w.gateway
	w.mu.Unlock()
	text, ok := zone[plain]
	switch {
	case ok:
	case plain == "gateway.wild.example" && gateway.IsValid():
		text = "A " + gateway.String()
		if q.Question[0].Qtype == dns.TypeAAAA {
			text = "AAAA " + w.gateway6.String()
		}
	case strings.HasSuffix(plain, ".wild.example"):
		text = "A 203.0.113.10"
	default:
		text = "A 203.0.113.66"
	}
	text += "\n"
	if q.Question[0].Qtype == dns.TypeAAAA && !strings.HasPrefix(text, "AAAA") {
		text = inIPv6.Replace(text)
	}
	z := dns.NewZoneParser(strings.NewReader(name+" 60 IN "+text), ".", "")
	for rr, ok := z.Next(); ok; rr, ok = z.Next() {
		m.Answer = append(m.Answer, rr)
	}
	rw.WriteMsg(m)
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"allowed.example"},
	}, &x509.Certificate{SerialNumber: big.NewInt(1)}, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
