package config

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/paddock-sandbox/paddock/internal/gateway/address"
)

func (l *loader) checkGateway(g *Gateway) {
	l.oneOf("gateway.mode", g.Mode, "proxy", "path", "header", "wildcard")
	if g.Listen != "" {
		host, port, err := net.SplitHostPort(g.Listen)
		n, perr := strconv.Atoi(port)
		server := &l.out.Server
		switch {
		case err != nil || perr != nil || n < 0 || n > 65535:
			l.wrong("gateway.listen", g.Listen, `want "address:port" such as "127.0.0.1:28888"`)
		case g.Listen == server.Listen && n != 0:
			l.wrong("gateway.listen", g.Listen, "is the same as server.listen ("+l.out.Source("server.listen")+"); leave it out to serve both there")
		case server.InsecureNoAuth && !isLoopback(host):
			l.wrong("gateway.listen", g.Listen, "is reachable from other machines, which server.insecure_no_auth ("+
				l.out.Source("server.insecure_no_auth")+") does not allow. Listen on 127.0.0.1, or keep the API key")
		}
	}
	if g.BaseDomain != "" && !isDomain(g.BaseDomain) {
		l.wrong("gateway.base_domain", g.BaseDomain, `want a domain, or domain and port, such as "sandboxes.example.com", without a scheme, a wildcard or a dot at its end`)
	}
	if g.Mode == "wildcard" && g.BaseDomain == "" {
		l.wrong("gateway.mode", g.Mode, "needs gateway.base_domain, the domain below which ports have host names")
	}
	l.publicHost("gateway.public_host", g.PublicHost)
	names := map[string]bool{}
	for _, k := range g.SigningKeys {
		name, _, err := address.ParseKey(k)
		if err == nil && names[name] {
			err = fmt.Errorf("the name %q is there twice", name)
		}
		if err != nil {
			l.wrong("gateway.signing_keys", "", err.Error())
		}
		names[name] = true
	}
	l.between("gateway.max_connections", g.MaxConnections, 1, 1_000_000)
	l.between("gateway.requests_per_second", g.RequestsPerSecond, 0, 1_000_000)
	if g.MaxHeaderBytes < 8<<10 || g.MaxHeaderBytes > 1<<20 {
		l.wrong("gateway.max_header_bytes", g.MaxHeaderBytes.String(), "want a size from 8Ki to 1Mi")
	}
}

// maxBase leaves room for a label of 63 characters in a name of 253 (RFC 1035,
// section 2.3.4).
const maxBase = 253 - 64

// isDomain is whether s is a domain name in its ASCII form, in lower case or
// not, with a port or without.
func isDomain(s string) bool {
	if h, p, err := net.SplitHostPort(s); err == nil {
		if n, perr := strconv.Atoi(p); perr != nil || n < 1 || n > 65535 {
			return false
		}
		s = h
	}
	if s == "" || len(s) > maxBase || net.ParseIP(s) != nil {
		return false
	}
	for label := range strings.SplitSeq(strings.ToLower(s), ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return true
}
