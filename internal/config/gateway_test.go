package config

import (
	"bytes"
	"strings"
	"testing"
)

func TestGateway(t *testing.T) {
	good := `[gateway]
mode = "wildcard"
listen = "127.0.0.1:28888"
base_domain = "Apps.example.com:8443"
public_host = "gw.example.com"
signing_keys = ["a=c2VjcmV0", "0=AA=="]
behind_tls = true
h2c = true
max_connections = 10
requests_per_second = 5
max_header_bytes = "32Ki"
`
	l, err := Load(LoadOptions{Path: write(t, good), Environ: []string{"PADDOCK_GATEWAY_MAX_CONNECTIONS=20"}})
	if err != nil {
		t.Fatal(err)
	}
	if g := l.Gateway; g.MaxConnections != 20 || g.MaxHeaderBytes != 32<<10 || len(g.SigningKeys) != 2 || !g.H2C || !g.BehindTLS {
		t.Errorf("%+v", g)
	}
	var b bytes.Buffer
	if err := l.WriteTOML(&b); err != nil || strings.Contains(b.String(), "c2VjcmV0") || !strings.Contains(b.String(), `signing_keys = ["`+mask+`"]`) {
		t.Errorf("%v\n%s", err, b.String())
	}
	if list, ok := l.Values()["gateway"]["signing_keys"].([]string); !ok || len(list) != 1 || list[0] != mask {
		t.Errorf("the keys are shown as %v", list)
	}
	for _, c := range []struct{ text, says string }{
		{`mode = "uri"`, "want one of proxy, path, header, wildcard"},
		{`mode = "wildcard"`, "gateway.base_domain"},
		{`listen = "28888"`, "address:port"},
		{`listen = "127.0.0.1:8080"`, "server.listen"},
		{`base_domain = "*.example.com"`, "without a scheme, a wildcard"},
		{`base_domain = "https://example.com"`, "gateway.base_domain"},
		{`base_domain = "example.com."`, "gateway.base_domain"},
		{`base_domain = "127.0.0.1"`, "gateway.base_domain"},
		{`base_domain = "exämple.com"`, "gateway.base_domain"},
		{`base_domain = "example.com:0"`, "gateway.base_domain"},
		{`base_domain = "` + strings.Repeat("a.", 100) + `com"`, "gateway.base_domain"},
		{`public_host = "http://x"`, "gateway.public_host"},
		{`signing_keys = ["very-secret"]`, "NAME=KEY"},
		{`signing_keys = ["a=very-secret"]`, "is not base64"},
		{`signing_keys = ["a=c2VjcmV0", "a=c2VjcmV0"]`, "twice"},
		{`max_connections = 0`, "from 1"},
		{`requests_per_second = -1`, "from 0"},
		{`max_header_bytes = "1Ki"`, "from 8Ki to 1Mi"},
		{"listen = \"0.0.0.0:1\"\n[server]\ninsecure_no_auth = true", "server.insecure_no_auth"},
	} {
		_, err := Load(LoadOptions{Path: write(t, "[gateway]\n"+c.text+"\n")})
		if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "very-secret") || strings.Contains(err.Error(), "c2VjcmV0") {
			t.Errorf("%s: %v", c.text, err)
		}
	}
}
