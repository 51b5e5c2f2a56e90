package server

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/gateway/address"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func TestEndpointForms(t *testing.T) {
	const expires = 4102444800 // 2100-01-01
	until := address.FormatExpires(expires)
	for _, c := range []struct {
		name            string
		in              Ingress
		public          string
		short           bool
		plain, signed   string // endpoints; SIG stands for the signature, HOST for the request's
		header, header2 string // OpenSandbox-Ingress-To of both
	}{
		{"nothing configured", Ingress{}, "", false, "HOST/v1/sandboxes/sb/proxy/80", "HOST/ingress/sb/80/" + until + "/SIG", "", ""},
		{"public host", Ingress{}, "api.example:444", true, "api.example:444/v1/sandboxes/sb/proxy/80", "api.example:444/ingress/sb/80/" + until + "/SIG", "", ""},
		{"proxy and domain", Ingress{BaseDomain: "apps.example"}, "api.example:444", false,
			"api.example:444/v1/sandboxes/sb/proxy/80", "sb-80.apps.example:444/" + until + "/SIG", "", ""},
		{"path", Ingress{Mode: "path"}, "api.example", false, "api.example/ingress/sb/80", "api.example/ingress/sb/80/" + until + "/SIG", "", ""},
		{"path, own port", Ingress{Mode: "path", Port: 28888}, "api.example:444", false,
			"api.example:28888/sb/80", "api.example:28888/sb/80/" + until + "/SIG", "", ""},
		{"path, own host", Ingress{Mode: "path", Port: 28888, PublicHost: "gw.example"}, "api.example:444", true,
			"gw.example/sb/80", "gw.example/sb/80/" + until + "/SIG", "", ""},
		{"header", Ingress{Mode: "header", PublicHost: "gw.example"}, "", true, "gw.example", "gw.example", "sb-80", "sb-80-" + until + "-SIG"},
		{"header, long", Ingress{Mode: "header"}, "api.example", false, "api.example", "api.example", "sb-80", "sb-80-" + until + "-SIG"},
		{"host name, short", Ingress{Mode: "wildcard", BaseDomain: "Apps.Example:9"}, "api.example", true,
			"sb-80.apps.example:9", "sb-80-" + until + "-SIG.apps.example:9", "", ""},
		{"host name, long", Ingress{Mode: "wildcard", BaseDomain: "apps.example", Port: 28888}, "[::1]:8080", false,
			"sb-80.apps.example:28888", "sb-80.apps.example:28888/" + until + "/SIG", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := start(t, func(o *Options) {
				o.PublicHost, o.Ingress = c.public, c.in
				o.Ingress.Keys = testKeys(t, c.short)
			})
			f.m.put("sb", sandbox.Running)
			sig := f.s.opts.Ingress.Keys.Sign("sb", 80, expires)
			fill := strings.NewReplacer("SIG", sig, "HOST", strings.TrimPrefix(f.url, "http://"))
			check := func(path, endpoint, header string, token bool) {
				t.Helper()
				a := f.call("GET", path, "").is(200, "")
				if got, want := a.member("endpoint"), fill.Replace(endpoint); got != want {
					t.Errorf("%s = %v, want %s", path, got, want)
				}
				headers := fmt.Sprint(a.member("headers"))
				if strings.Contains(headers, "token-of-sb") != token || !strings.Contains(headers, fill.Replace(header)) ||
					(header == "") == strings.Contains(headers, "Ingress-To") {
					t.Errorf("%s has headers %s", path, headers)
				}
			}
			check("/v1/sandboxes/sb/endpoints/80", c.plain, c.header, true)
			check(fmt.Sprintf("/v1/sandboxes/sb/endpoints/80?expires=%d", expires), c.signed, c.header2, false)
			public := c.public
			if public == "" {
				public = "HOST"
			}
			check("/v1/sandboxes/sb/endpoints/80?use_server_proxy=true", public+"/v1/sandboxes/sb/proxy/80", "", true)
			a := f.call("GET", fmt.Sprintf("/v1/sandboxes/sb/endpoints/18080?expires=%d", expires), "").is(200, "")
			if h := fmt.Sprint(a.member("headers")); !strings.Contains(h, "egress-of-sb") || strings.Contains(h, "token-of-sb") {
				t.Errorf("the egress API's headers are %s", h)
			}
		})
	}
}

func TestEndpointExpires(t *testing.T) {
	f := withIngress(t)
	f.m.put("sb", sandbox.Running)
	now := time.Now().Unix()
	for query, says := range map[string]string{
		"expires=":                     `""`,
		"expires=-1":                   `"-1"`,
		"expires=%2B1":                 `"+1"`,
		"expires=1e9":                  `"1e9"`,
		"expires=18446744073709551616": "18446744073709551615",
		"expires=04000000000":          "leading zeros",
		"expires=0":                    "not in the future",
		fmt.Sprintf("expires=%d", now): "not in the future",
		fmt.Sprintf("expires=%d&use_server_proxy=true", now+100): "use_server_proxy",
		// Signed host names are short, and this needs more room than there is.
		"expires=18446744073709551615": "too far away",
	} {
		path := "/v1/sandboxes/sb/endpoints/80?" + query
		if strings.HasSuffix(query, "18446744073709551615") {
			// Only where it has to be a label, next to an id of ordinary length.
			id := "0b9ad1f2-3c4d-4e5f-8a9b-0c1d2e3f4a5b"
			f.m.put(id, sandbox.Running)
			path = "/v1/sandboxes/" + id + "/endpoints/44772?" + query
		}
		f.call("GET", path, "").is(400, sandbox.CodeInvalidParameter).says(says)
	}
	f.call("GET", "/v1/sandboxes/no/endpoints/80?expires=4102444800", "").is(404, sandbox.CodeNotFound)
	own := withIngress(t, withOwnKeys(t))
	own.m.put("sb", sandbox.Running)
	own.call("GET", "/v1/sandboxes/sb/endpoints/80?expires=18446744073709551615", "").is(200, "")
}
