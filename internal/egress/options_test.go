package egress

import (
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestOptions(t *testing.T) {
	listen := []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	sources := []netip.Prefix{loopback}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	self := netip.MustParseAddrPort(taken.Addr().String())
	for _, tt := range []struct {
		opts Options
		want string
	}{
		{Options{Sources: sources}, "no address to listen on"},
		{Options{Listen: []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:53")}, Sources: sources}, "particular address"},
		{Options{Listen: listen}, "no source network"},
		{Options{Listen: listen, Sources: []netip.Prefix{{}}}, "not valid"},
		{Options{Listen: listen, Sources: sources, Upstreams: []string{"dns.example"}}, `"dns.example"`},
		{Options{Listen: listen, Sources: sources, MaxInflight: -1}, "MaxInflight is -1"},
		{Options{Listen: listen, Sources: sources, Timeout: -1}, "Timeout"},
		{Options{Listen: []netip.AddrPort{self}, Sources: sources}, self.String()},
	} {
		r, err := NewResolver(tt.opts)
		if err == nil {
			r.Close()
			t.Errorf("%+v: no error", tt.opts)
			continue
		}
		if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q lacks %q", err, tt.want)
		}
	}
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1:53", "192.0.2.1:5353": "192.0.2.1:5353", "2001:db8::1": "[2001:db8::1]:53",
		"[2001:db8::1]:54": "[2001:db8::1]:54", "::ffff:192.0.2.1": "192.0.2.1:53",
	} {
		list, err := parseUpstreams([]string{in})
		if err != nil || list[0].addr.String() != want {
			t.Errorf("%s: %v, %v", in, list, err)
		}
	}
}

// The resolver must not ask itself.
func TestNoLoop(t *testing.T) {
	own, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := own.LocalAddr().String()
	own.Close()
	r, err := NewResolver(Options{
		Listen:    []netip.AddrPort{netip.MustParseAddrPort(addr)},
		Sources:   []netip.Prefix{loopback},
		Upstreams: []string{addr},
	})
	if err == nil {
		r.Close()
		t.Fatal("no error")
	}
	if !strings.Contains(err.Error(), "itself") {
		t.Error(err)
	}
}
