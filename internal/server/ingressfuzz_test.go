package server

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/gateway"
)

// Whatever a request looks like: what is read of it is a port that its form can
// name, no byte of the path is lost, and nobody is let in by it.
func FuzzIngressForm(f *testing.F) {
	for _, s := range [][3]string{
		{"sb-80.apps.test", "", "/x"}, {"SB-80.apps.test.:1", "sb-80", "/"}, {"api.test", "sb-80.x", "//"},
		{"api.test", "", "/ingress/sb/80/x2/32ec6d3ba/y"}, {"sb-80.apps.test", "", "/x2/32ec6d3ba"}, {"[::1]:80", "", "/ingress"},
	} {
		f.Add(s[0], s[1], s[2])
	}
	fix := withIngress(f)
	f.Fuzz(func(t *testing.T, host, header, path string) {
		r := &http.Request{Method: "GET", Host: host, Header: http.Header{}}
		if header != "" {
			r.Header[headerIngressTo] = []string{header}
		}
		in, err := fix.s.ingressForm(r, path, ingressPrefix)
		if in == nil || err != nil {
			return
		}
		_, named := fix.s.hostLabel(host)
		if in.ID == "" || strings.ContainsAny(in.ID, "./% ") || in.Port < 1 || in.Port > 65535 || named != (in.origin == gateway.OriginOwn) {
			t.Errorf("%q %q %q read as %+v", host, header, path, in)
		}
		fix.s.readSignature(in, time.Now())
		if in.prefix+in.path != path {
			t.Errorf("%q became %q and %q", path, in.prefix, in.path)
		}
		if in.bySignature || fix.s.mayEnter(r, in, "token", time.Now()) {
			t.Errorf("%q %q %q was let in", host, header, path)
		}
	})
}
