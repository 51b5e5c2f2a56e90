package vault

import (
	"encoding/base64"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func activeOf(t *testing.T, body string) *Active {
	t.Helper()
	v := openTest(t, t.TempDir())
	if w := call(testAPI(v), "POST", Prefix, body); w.Code != 201 {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	return v.Active("sb1")
}

func TestMatch(t *testing.T) {
	a := activeOf(t, vaultOf(cred("c", testValue), strings.Join([]string{
		bind("exact", `"hosts":["api.example.com"],"paths":["/v1/*","/me"]`, bearerAuth),
		bind("wild", `"hosts":["*.example.com"],"methods":["GET"]`, bearerAuth),
		bind("deep", `"hosts":["*.eu.example.com"],"ports":[8443]`, bearerAuth),
		bind("plain", `"hosts":["example.org"],"schemes":["http"]`, bearerAuth),
	}, ",")))
	for _, x := range []struct {
		host, scheme string
		port         uint16
		method, path string
		want         string
	}{
		{"api.example.com", "https", 443, "POST", "/v1/x", "exact"},
		{"api.example.com", "https", 443, "POST", "/v1/", "exact"},
		{"api.example.com", "https", 443, "POST", "/v1", ""},
		{"api.example.com", "https", 443, "GET", "/v1", "wild"},
		{"api.example.com", "https", 443, "GET", "/me", "exact"},
		{"api.example.com", "https", 443, "GET", "/me/", "wild"},
		{"api.example.com", "https", 443, "HEAD", "/me", ""},
		{"api.example.com", "https", 443, "get", "/me", ""},
		{"api.example.com", "http", 443, "GET", "/me", ""},
		{"api.example.com", "https", 8443, "GET", "/me", ""},
		{"a.b.example.com", "https", 443, "GET", "/", "wild"},
		{"a.eu.example.com", "https", 8443, "PUT", "/", "deep"},
		{"a.eu.example.com", "https", 443, "GET", "/", "wild"},
		{"eu.example.com", "https", 8443, "PUT", "/", ""},
		{"example.com", "https", 443, "GET", "/", ""},
		{"notexample.com", "https", 443, "GET", "/", ""},
		{"example.org", "http", 80, "GET", "/", "plain"},
		{"example.org", "https", 443, "GET", "/", ""},
		{"", "https", 443, "GET", "/", ""},
	} {
		got := ""
		if in := a.Host(x.host).Match(x.scheme, x.port, x.method, x.path); in != nil {
			got = in.Binding
		}
		if got != x.want {
			t.Errorf("%+v: %q", x, got)
		}
	}
	if h := a.Host("api.example.com"); !h.PathSensitive() || !h.Uses(443) || h.Uses(80) {
		t.Error("the host's properties are wrong")
	}
	if a.Host("a.b.example.com").PathSensitive() {
		t.Error("every path of it is alike")
	}
	var none *Active
	if none.Host("api.example.com") != nil {
		t.Error("no vault has no hosts")
	}
}

func TestInjections(t *testing.T) {
	basic := base64.StdEncoding.EncodeToString([]byte("user:pass/word"))
	a := activeOf(t, vaultOf(cred("c", testValue)+","+cred("basic", basic)+","+cred("short", "abc"), strings.Join([]string{
		bind("bearer", `"hosts":["a.example.com"]`, bearerAuth),
		bind("basic", `"hosts":["b.example.com"]`, `"type":"basic","credential":"basic"`),
		bind("key", `"hosts":["c.example.com"]`, `"type":"apiKey","name":"X-Key","credential":"c"`),
		bind("custom", `"hosts":["d.example.com"]`, `"type":"customHeaders","headers":[{"name":"A","credential":"c"},{"name":"B","credential":"short"}]`),
		bind("pass", `"hosts":["e.example.com"]`, `"type":"passthrough","substitutions":[{"credential":"c","placeholder":"__C__","in":["header","body"]}]`),
	}, ",")))
	for host, want := range map[string][]InjectedHeader{
		"a.example.com": {{"Authorization", NewSecret("Bearer " + testValue)}},
		"b.example.com": {{"Authorization", NewSecret("Basic " + basic)}},
		"c.example.com": {{"X-Key", NewSecret(testValue)}},
		"d.example.com": {{"A", NewSecret(testValue)}, {"B", NewSecret("abc")}},
		"e.example.com": nil,
	} {
		in := a.Host(host).Match("https", 443, "GET", "/")
		if in == nil || !slices.Equal(in.Headers, want) {
			t.Errorf("%s: the headers are not those that were wanted", host)
		}
	}
	if s := a.Host("e.example.com").Match("https", 443, "GET", "/").Substitutions; len(s) != 1 || s[0].Value.Reveal() != testValue || !s[0].Header || !s[0].Body || s[0].Query || s[0].Path {
		t.Errorf("substitutions %v", s)
	}
	masked := a.Host("b.example.com").Masked()
	for _, want := range []string{basic, "user:pass/word", "pass/word", "pass%2Fword"} {
		if !slices.Contains(masked, want) {
			t.Errorf("%q would not be masked", want)
		}
	}
	if slices.Contains(a.Host("d.example.com").Masked(), "abc") {
		t.Error("a value of three characters is masked everywhere")
	}
}

// Ambiguity is what its definition says: some request matches both.
func TestAmbiguityProperty(t *testing.T) {
	paths := []string{"/", "/a", "/ab", "/a/", "/a/b", "/b"}
	match := rapid.Custom(func(t *rapid.T) Match {
		pick := func(of []string, label string) []string {
			return rapid.SliceOfNDistinct(rapid.SampledFrom(of), 1, 3, rapid.ID).Draw(t, label)
		}
		m := Match{Hosts: pick([]string{"a.x.y", "b.x.y", "*.x.y"}, "hosts"), Methods: pick([]string{"GET", "PUT", "POST"}, "methods"),
			Schemes: []string{"https"}, Ports: []int{443}}
		for _, p := range rapid.SliceOfN(rapid.SampledFrom(paths), 1, 2).Draw(t, "paths") {
			m.Paths = append(m.Paths, p+rapid.SampledFrom([]string{"", "*"}).Draw(t, "star"))
		}
		return m
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := match.Draw(t, "a"), match.Draw(t, "b")
		want := false
		for _, h := range a.Hosts {
			for _, method := range a.Methods {
				for _, p := range append(paths, "/a/b/c", "/abc", "/c") {
					fits := func(m *Match) bool {
						return slices.ContainsFunc(m.Paths, func(x string) bool { return pathMatches(x, p) })
					}
					want = want || slices.Contains(b.Hosts, h) && slices.Contains(b.Methods, method) && fits(&a) && fits(&b)
				}
			}
		}
		if _, got := ambiguous(&a, &b); got != want {
			t.Fatalf("%+v and %+v: %v, want %v", a, b, got, want)
		}
	})
}

// Patches in any order, with restarts between, leave what a plain map has.
func TestPatchProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir := t.TempDir()
		v := openTest(t, dir)
		ctx := t.Context()
		if _, err := v.Create(ctx, "sb", &CreateRequest{}, Ground{}); err != nil {
			rt.Fatal(err)
		}
		model, revision := map[string]string{}, int64(1)
		rt.Repeat(map[string]func(*rapid.T){
			"patch": func(rt *rapid.T) {
				name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "name")
				value := rapid.StringN(1, 20, 50).Draw(rt, "value")
				c := []Credential{{Name: name, Source: Source{Value: NewSecret(value)}}}
				_, has := model[name]
				var req PatchRequest
				ok := has
				op := rapid.SampledFrom([]string{"add", "replace", "delete"}).Draw(rt, "op")
				switch op {
				case "add":
					req.Credentials.Add, ok = c, !has
				case "replace":
					req.Credentials.Replace = c
				case "delete":
					req.Credentials.Delete = []string{name}
				}
				expected := revision + int64(rapid.IntRange(0, 1).Draw(rt, "off"))
				req.ExpectedRevision = &expected
				ok = ok && expected == revision
				s, err := v.Patch(ctx, "sb", &req, Ground{})
				if (err == nil) != ok {
					rt.Fatalf("%s %q: %v", op, name, err)
				}
				if !ok {
					return
				}
				if revision++; s.Revision != revision {
					rt.Fatalf("revision %d, want %d", s.Revision, revision)
				}
				if op == "delete" {
					delete(model, name)
				} else {
					model[name] = value
				}
			},
			"restart": func(*rapid.T) { v = openTest(t, dir) },
			"": func(rt *rapid.T) {
				c := v.Active("sb").content
				if len(c.credentials) != len(model) || c.revision != revision {
					rt.Fatalf("%d credentials at revision %d, want %d at %d", len(c.credentials), c.revision, len(model), revision)
				}
				for name, value := range model {
					if c.value(name).Reveal() != value {
						rt.Fatalf("the value of %q is another", name)
					}
				}
			},
		})
	})
}
