package vault

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/paddock-sandbox/paddock/internal/policy"
)

const testValue = "s3cr3t-Value-0123456789"

// covering allows every host that the tests bind.
var covering = []policy.Rule{allowed("api.example.com"), allowed("*.example.com"), allowed("example.org")}

func allowed(target string) policy.Rule { return policy.Rule{Action: policy.Allow, Target: target} }
func denied(target string) policy.Rule  { return policy.Rule{Action: policy.Deny, Target: target} }

func openTest(t testing.TB, dir string) *Vaults {
	t.Helper()
	v, err := Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// standing holds rules that never change.
func standing(rules []policy.Rule) func(context.Context, func(context.Context, Ground) error) error {
	return func(ctx context.Context, change func(context.Context, Ground) error) error {
		return change(ctx, Ground{Rules: rules})
	}
}

func testAPI(v *Vaults) *API {
	return &API{Vaults: v, Sandbox: "sb1", Hold: standing(covering)}
}

// call makes a request from this machine.
func call(h http.Handler, method, path, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.RemoteAddr = "127.0.0.1:4711"
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func cred(name, value string) string {
	return fmt.Sprintf(`{"name":%q,"source":{"type":"inline","value":%q}}`, name, value)
}

func bind(name, match, auth string) string {
	return fmt.Sprintf(`{"name":%q,"match":{%s},"auth":{%s}}`, name, match, auth)
}

func vaultOf(credentials, bindings string) string {
	return `{"credentials":[` + credentials + `],"bindings":[` + bindings + `]}`
}

const (
	hostMatch  = `"hosts":["api.example.com"]`
	bearerAuth = `"type":"bearer","credential":"c"`
)

func TestLifeOfAVault(t *testing.T) {
	dir := t.TempDir()
	api := testAPI(openTest(t, dir))
	step := func(method, path, body string, status int, want string) {
		t.Helper()
		w := call(api, method, path, body)
		if w.Code != status || (want != "" && strings.TrimSpace(w.Body.String()) != want) {
			t.Fatalf("%s %s: %d %s\nwant %d %s", method, path, w.Code, w.Body, status, want)
		}
		if strings.Contains(w.Body.String(), testValue) {
			t.Fatalf("%s %s gave a value away: %s", method, path, w.Body)
		}
	}
	step("GET", Prefix, "", 404, "")
	step("PATCH", Prefix, "{}", 404, "")
	step("DELETE", Prefix, "", 404, "")
	step("POST", Prefix, vaultOf(cred("c", testValue), bind("b", hostMatch, bearerAuth)), 201,
		`{"revision":1,"credentials":[{"name":"c","sourceType":"inline","revision":1}],`+
			`"bindings":[{"name":"b","revision":1,"match":{"schemes":["https"],"ports":[443],"hosts":["api.example.com"],`+
			`"methods":["GET","POST","PUT","PATCH","DELETE"],"paths":["/*"]},"auth":{"type":"bearer"}}]}`)
	step("POST", Prefix, vaultOf("", ""), 409, "")
	step("PATCH", Prefix, `{"expectedRevision":7}`, 409, "")
	step("PATCH", Prefix, `{"expectedRevision":1,"credentials":{"add":[`+cred("a", testValue)+`]}}`, 200, "")
	step("GET", Prefix+"/credentials", "", 200,
		`{"revision":2,"credentials":[{"name":"a","sourceType":"inline","revision":2},{"name":"c","sourceType":"inline","revision":1}]}`)
	step("GET", Prefix+"/credentials/c", "", 200, `{"name":"c","sourceType":"inline","revision":1}`)
	step("GET", Prefix+"/credentials/none", "", 404, "")
	step("GET", Prefix+"/bindings/b", "", 200, "")
	step("GET", Prefix+"/bindings/none", "", 404, "")
	step("GET", Prefix+"/_active", "", 403, "")
	step("POST", Prefix+"/_active", "", 403, "")
	step("GET", Prefix+"/other", "", 404, "")
	step("POST", Prefix+"/credentials", "", 405, "")
	step("PUT", Prefix, "", 405, "")
	// Nothing of a patch with one fault happens.
	step("PATCH", Prefix, `{"credentials":{"delete":["a","none"]}}`, 400, "")
	step("PATCH", Prefix, `{"credentials":{"delete":["c"]}}`, 400, "")
	step("GET", Prefix+"/credentials/a", "", 200, "")
	// Deleted and added anew in one patch.
	step("PATCH", Prefix, `{"credentials":{"delete":["a"],"add":[`+cred("a", testValue)+`]},"bindings":{"replace":[`+
		bind("b", `"hosts":["*.EXAMPLE.com."],"schemes":["HTTP"],"methods":["get"]`, `"type":"apiKey","name":"X-Key","credential":"a"`)+`]}}`, 200,
		`{"revision":3,"credentials":[{"name":"a","sourceType":"inline","revision":3},{"name":"c","sourceType":"inline","revision":1}],`+
			`"bindings":[{"name":"b","revision":3,"match":{"schemes":["http"],"ports":[80],"hosts":["*.example.com"],"methods":["GET"],"paths":["/*"]},`+
			`"auth":{"type":"apiKey","name":"X-Key"}}]}`)

	// Another server finds it as it was.
	before := call(api, "GET", Prefix, "").Body.String()
	api = testAPI(openTest(t, dir))
	step("GET", Prefix, "", 200, strings.TrimSpace(before))
	step("DELETE", Prefix, "", 204, "")
	step("GET", Prefix, "", 404, "")
	api = testAPI(openTest(t, dir))
	step("GET", Prefix, "", 404, "")
}

// Each fault is answered with its status and a text that names it, and without
// the value.
func TestFaults(t *testing.T) {
	c, b := cred("c", testValue), bind("b", hostMatch, bearerAuth)
	withMatch := func(m string) string { return vaultOf(c, bind("b", m, bearerAuth)) }
	withAuth := func(a string) string { return vaultOf(c, bind("b", hostMatch, a)) }
	sub := func(s string) string { return withAuth(`"type":"passthrough","substitutions":[` + s + `]`) }
	for name, f := range map[string]struct{ body, want string }{
		"not JSON":               {`{`, "one JSON object"},
		"a list":                 {`[]`, "one JSON object"},
		"null":                   {`null`, "one JSON object"},
		"two values":             {vaultOf(c, b) + `{}`, "one JSON object"},
		"no credentials":         {`{"bindings":[]}`, "credentials is missing"},
		"no bindings":            {`{"credentials":[]}`, "bindings is missing"},
		"unknown member":         {`{"credentials":[],"bindings":[],"x":1}`, `"x"`},
		"unknown member within":  {withMatch(hostMatch + `,"verb":1`), `"verb"`},
		"member twice":           {`{"credentials":[],"Credentials":[],"bindings":[]}`, "twice"},
		"wrong type":             {`{"credentials":[],"bindings":{}}`, "must be a list"},
		"value of another type":  {`{"credentials":[{"name":"c","source":{"type":"inline","value":["` + testValue + `"]}}],"bindings":[]}`, "wrong type"},
		"value null":             {`{"credentials":[{"name":"c","source":{"type":"inline","value":null}}],"bindings":[]}`, ""},
		"no value":               {`{"credentials":[{"name":"c","source":{"type":"inline"}}],"bindings":[]}`, "source.value is missing"},
		"empty value":            {vaultOf(cred("c", ""), ""), "source.value is missing"},
		"source type":            {`{"credentials":[{"name":"c","source":{"type":"env","value":"` + testValue + `"}}],"bindings":[]}`, `"env" is not supported`},
		"no name":                {vaultOf(cred("", testValue), ""), "the name is missing"},
		"name with slash":        {vaultOf(cred("a/b", testValue), ""), "slash"},
		"credential twice":       {vaultOf(c+","+c, ""), "already a credential"},
		"binding twice":          {vaultOf(c, b+","+b), "already a binding"},
		"unknown credential":     {withAuth(`"type":"bearer","credential":"z"`), `names the credential "z"`},
		"no hosts":               {withMatch(`"hosts":[]`), "hosts is missing"},
		"host without a dot":     {withMatch(`"hosts":["localhost"]`), "not a full host name"},
		"host is an address":     {withMatch(`"hosts":["10.0.0.1"]`), "is an address"},
		"host is IPv6":           {withMatch(`"hosts":["[::1]"]`), "is an address"},
		"host is an odd address": {withMatch(`"hosts":["0x7f.1"]`), "looks like an address"},
		"host is a URL":          {withMatch(`"hosts":["https://api.example.com/"]`), "is a URL"},
		"host has a port":        {withMatch(`"hosts":["api.example.com:443"]`), "has a port"},
		"star within":            {withMatch(`"hosts":["a.*.example.com"]`), "whole first label"},
		"star alone":             {withMatch(`"hosts":["*"]`), "whole first label"},
		"empty label":            {withMatch(`"hosts":["a..example.com"]`), "not a valid host name"},
		"host not covered":       {withMatch(`"hosts":["other.example.net"]`), "no domain rule"},
		"apex not covered":       {withMatch(`"hosts":["example.com"]`), "no domain rule"},
		"scheme":                 {withMatch(hostMatch + `,"schemes":["ftp"]`), `"ftp" is not supported`},
		"port":                   {withMatch(hostMatch + `,"ports":[0]`), "not a TCP port"},
		"port as text":           {withMatch(hostMatch + `,"ports":["443"]`), "must be a whole number"},
		"method":                 {withMatch(hostMatch + `,"methods":["G ET"]`), "not a method"},
		"path without slash":     {withMatch(hostMatch + `,"paths":["v1/*"]`), "begin with a slash"},
		"star within a path":     {withMatch(hostMatch + `,"paths":["/a/*/b"]`), "only be at the end"},
		"dots in a path":         {withMatch(hostMatch + `,"paths":["/a/../b"]`), `segment ".."`},
		"escape in a path":       {withMatch(hostMatch + `,"paths":["/%61"]`), "without query"},
		"auth type":              {withAuth(`"type":"digest","credential":"c"`), `"digest" is not supported`},
		"no auth type":           {withAuth(`"credential":"c"`), `"" is not supported`},
		"bearer without":         {withAuth(`"type":"bearer"`), "credential is missing"},
		"bearer with a name":     {withAuth(bearerAuth + `,"name":"X"`), "not part of type"},
		"apiKey without name":    {withAuth(`"type":"apiKey","credential":"c"`), "name is missing"},
		"apiKey bad name":        {withAuth(`"type":"apiKey","credential":"c","name":"a b"`), "not the name of a header"},
		"reserved":               {withAuth(`"type":"apiKey","credential":"c","name":"Content-Length"`), "framing"},
		"reserved proxy":         {withAuth(`"type":"apiKey","credential":"c","name":"Proxy-Authorization"`), "framing"},
		"no custom headers":      {withAuth(`"type":"customHeaders","headers":[]`), "headers is missing"},
		"custom header twice":    {withAuth(`"type":"customHeaders","headers":[{"name":"A","credential":"c"},{"name":"a","credential":"c"}]`), "twice"},
		"passthrough credential": {withAuth(`"type":"passthrough","credential":"c"`), "not part of type"},
		"short placeholder":      {sub(`{"credential":"c","placeholder":"abc","in":["header"]}`), "4 to 256"},
		"placeholder with space": {sub(`{"credential":"c","placeholder":"a b c","in":["header"]}`), "visible ASCII"},
		"no place":               {sub(`{"credential":"c","placeholder":"__C__","in":[]}`), "in is missing"},
		"other place":            {sub(`{"credential":"c","placeholder":"__C__","in":["cookie"]}`), `"cookie" is not supported`},
		"placeholders overlap": {sub(`{"credential":"c","placeholder":"__C__","in":["body"]},{"credential":"c","placeholder":"x__C__","in":["body"]}`),
			"contains the other"},
		"line break for a header": {vaultOf(cred("c", testValue+"\nX: y"), b), "can't be in a header"},
		"too long for a header":   {vaultOf(cred("c", strings.Repeat("x", maxHeaderBytes+1)), b), "at most 16384"},
		"too long for a placeholder": {vaultOf(cred("c", strings.Repeat("x", MaxSubstituted+1)),
			bind("b", hostMatch, `"type":"passthrough","substitutions":[{"credential":"c","placeholder":"__C__","in":["body"]}]`)),
			`auth.substitutions[0] of the binding "b": the value of the credential "c" has 8193 bytes`},
		"ambiguous": {vaultOf(c, b+","+bind("b2", `"hosts":["example.org","api.example.com"],"paths":["/v1/*"]`, bearerAuth)), "could both match"},
	} {
		t.Run(name, func(t *testing.T) {
			api := testAPI(openTest(t, t.TempDir()))
			w := call(api, "POST", Prefix, f.body)
			if w.Code != 400 || !strings.Contains(w.Body.String(), f.want) {
				t.Errorf("%d %s, want 400 with %q", w.Code, w.Body, f.want)
			}
			if strings.Contains(w.Body.String(), testValue) {
				t.Errorf("the answer has the value: %s", w.Body)
			}
			if got := w.Header().Get("Content-Type"); !strings.HasPrefix(got, "text/plain") {
				t.Errorf("content type %q", got)
			}
			if w := call(api, "GET", Prefix, ""); w.Code != 404 {
				t.Errorf("a refused create left a vault: %d", w.Code)
			}
		})
	}
}

func TestNotAmbiguous(t *testing.T) {
	for name, second := range map[string]string{
		"another host":    `"hosts":["example.org"]`,
		"a wildcard":      `"hosts":["*.example.com"]`,
		"another port":    `"hosts":["api.example.com"],"ports":[8443]`,
		"another scheme":  `"hosts":["api.example.com"],"schemes":["http"],"ports":[443]`,
		"another method":  `"hosts":["api.example.com"],"methods":["HEAD"]`,
		"apart from path": `"hosts":["api.example.com"],"methods":["OPTIONS"],"paths":["/a"]`,
	} {
		t.Run(name, func(t *testing.T) {
			w := call(testAPI(openTest(t, t.TempDir())), "POST", Prefix,
				vaultOf(cred("c", testValue), bind("b", hostMatch, bearerAuth)+","+bind("b2", second, bearerAuth)))
			if w.Code != 201 {
				t.Errorf("%d %s", w.Code, w.Body)
			}
		})
	}
}

func TestWhoMayWrite(t *testing.T) {
	api := testAPI(openTest(t, t.TempDir()))
	send := func(remote string) int {
		r := httptest.NewRequest("DELETE", Prefix, nil)
		r.RemoteAddr = remote
		w := httptest.NewRecorder()
		api.ServeHTTP(w, r)
		return w.Code
	}
	for remote, want := range map[string]int{"127.0.0.1:1": 404, "[::1]:1": 404, "[::ffff:127.0.0.1]:1": 404, "@": 404, "10.0.0.1:1": 426, "garbage": 426} {
		if got := send(remote); got != want {
			t.Errorf("a write from %s: %d, want %d", remote, got, want)
		}
	}
	srv := httptest.NewTLSServer(api)
	defer srv.Close()
	if resp, err := srv.Client().Post(srv.URL+Prefix, "application/json", strings.NewReader(vaultOf("", ""))); err != nil || resp.StatusCode != 201 {
		t.Errorf("a write over TLS: %v %v", resp, err)
	}
	api.AllowInsecure = true
	if got := send("10.0.0.1:1"); got != 204 {
		t.Errorf("a write where plain HTTP is allowed: %d", got)
	}
	api.Refused = "no interception here"
	if w := call(api, "POST", Prefix, "{}"); w.Code != 412 || !strings.Contains(w.Body.String(), "no interception") {
		t.Errorf("a write to a sandbox without interception: %d %s", w.Code, w.Body)
	}
	if w := call(api, "GET", Prefix, ""); w.Code != 404 {
		t.Errorf("a read of it: %d", w.Code)
	}
}

func TestBodyIsBounded(t *testing.T) {
	w := call(testAPI(openTest(t, t.TempDir())), "POST", Prefix, `{"credentials":[`+strings.Repeat(" ", maxBody)+`]`)
	if w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestPolicyMustKeepCovering(t *testing.T) {
	v := openTest(t, t.TempDir())
	call(testAPI(v), "POST", Prefix, vaultOf(cred("c", testValue),
		bind("b", `"hosts":["api.example.com","*.sub.example.com"]`, bearerAuth)))
	for name, x := range map[string]struct {
		rules []policy.Rule
		ok    bool
	}{
		"both":             {[]policy.Rule{allowed("api.example.com"), allowed("*.sub.example.com")}, true},
		"a wider wildcard": {[]policy.Rule{allowed("*.example.com")}, true},
		"one denied part":  {[]policy.Rule{denied("bad.sub.example.com"), allowed("*.example.com")}, true},
		"denied before":    {[]policy.Rule{denied("*.sub.example.com"), allowed("*.example.com")}, false},
		"one only":         {[]policy.Rule{allowed("api.example.com")}, false},
		"none":             {nil, false},
		"another domain":   {[]policy.Rule{allowed("*.notexample.com")}, false},
	} {
		if err := v.CheckPolicy("sb1", x.rules); (err == nil) != x.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := v.CheckPolicy("another", nil); err != nil {
		t.Errorf("a sandbox without a vault: %v", err)
	}
}

func TestSealedFiles(t *testing.T) {
	dir := t.TempDir()
	var logged strings.Builder
	v, err := Open(dir, slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	api := testAPI(v)
	other := &API{Vaults: v, Sandbox: "sb2", Hold: api.Hold}
	body := vaultOf(cred("c", testValue), bind("b", hostMatch, bearerAuth))
	for _, a := range []*API{api, other} {
		if w := call(a, "POST", Prefix, body); w.Code != 201 {
			t.Fatal(w.Body)
		}
	}
	key := filepath.Join(dir, keyFile)
	for path, mode := range map[string]os.FileMode{key: 0o600, v.path("sb1"): 0o600, filepath.Join(dir, vaultsDir): 0o700} {
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != mode {
			t.Errorf("%s: %v %v, want mode %o", path, fi.Mode(), err, mode)
		}
	}
	sealed, _ := os.ReadFile(v.path("sb1"))
	if strings.Contains(string(sealed), testValue) || strings.Contains(string(sealed), "example") {
		t.Error("the file has clear text")
	}
	if strings.Contains(logged.String(), testValue) {
		t.Error("the log has the value")
	}
	broken := func(why string) {
		t.Helper()
		v := openTest(t, dir)
		a := testAPI(v)
		if w := call(a, "GET", Prefix, ""); w.Code != 500 || !strings.Contains(w.Body.String(), "can't be opened") {
			t.Errorf("%s: %d %s", why, w.Code, w.Body)
		}
		if v.Active("sb1") != nil {
			t.Errorf("%s: it is active", why)
		}
		if w := call(a, "POST", Prefix, body); w.Code != 409 {
			t.Errorf("%s: a create in its place: %d", why, w.Code)
		}
	}
	// One file does not open in place of another, nor one that was changed.
	second, _ := os.ReadFile(v.path("sb2"))
	os.WriteFile(v.path("sb1"), second, 0o600)
	broken("another sandbox's file")
	for _, at := range []int{0, len(magic) + 7, len(magic) + 9, len(sealed) - 1} {
		changed := append([]byte{}, sealed...)
		changed[at] ^= 1
		os.WriteFile(v.path("sb1"), changed, 0o600)
		broken(fmt.Sprintf("byte %d changed", at))
	}
	os.WriteFile(v.path("sb1"), sealed[:20], 0o600)
	broken("cut off")
	os.WriteFile(v.path("sb1"), sealed, 0o600)

	// Without the key nothing opens, and no other key is made while it may come
	// back.
	if err := os.Rename(key, key+".away"); err != nil {
		t.Fatal(err)
	}
	broken("a lost key")
	v = openTest(t, dir)
	third := &API{Vaults: v, Sandbox: "sb3", Hold: api.Hold}
	if w := call(third, "POST", Prefix, body); w.Code != 500 {
		t.Errorf("a vault with the key lost: %d %s", w.Code, w.Body)
	}
	if _, err := os.Stat(key); err == nil {
		t.Error("another key was made")
	}
	os.Rename(key+".away", key)
	if w := call(testAPI(openTest(t, dir)), "GET", Prefix, ""); w.Code != 200 {
		t.Errorf("with the key back: %d %s", w.Code, w.Body)
	}
	os.Chmod(key, 0o644)
	broken("a key that others may read")
	os.Rename(key, key+".away")
	// After the broken ones are deleted a new key may come.
	v = openTest(t, dir)
	if err := v.Retain(func(id string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if w := call(testAPI(v), "POST", Prefix, body); w.Code != 201 {
		t.Errorf("after all were deleted: %d %s", w.Code, w.Body)
	}
}

func TestRemovedWithItsSandbox(t *testing.T) {
	dir := t.TempDir()
	v := openTest(t, dir)
	call(testAPI(v), "POST", Prefix, vaultOf(cred("c", testValue), bind("b", hostMatch, bearerAuth)))
	if err := v.Retain(func(id string) bool { return id == "sb1" }); err != nil || v.Active("sb1") == nil {
		t.Fatalf("a vault of a living sandbox went: %v", err)
	}
	for range 2 {
		if err := v.Remove("sb1"); err != nil {
			t.Fatal(err)
		}
	}
	files, err := os.ReadDir(filepath.Join(dir, vaultsDir))
	if err != nil || len(files) != 0 || v.Active("sb1") != nil {
		t.Errorf("left behind: %v %v", files, err)
	}
}

func TestSecretSaysNothing(t *testing.T) {
	s := NewSecret(testValue)
	c := Credential{Name: "c", Source: Source{Type: SourceInline, Value: s}}
	in := Injection{Headers: []InjectedHeader{{"Authorization", s}}, Substitutions: []Replacement{{Value: s}}}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", s, "credential", c, "pointer", &c, "injection", in)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "secret", s, "credential", c, "pointer", &c, "injection", &in)
	for _, v := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x", "%X", "%T"} {
		fmt.Fprintf(&log, v+v+v+v, s, &s, c, in)
	}
	for _, v := range []any{s, &s, c, &c, in, map[string]any{"k": s}} {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		log.Write(b)
	}
	io.WriteString(&log, s.String()+s.GoString())
	hex := fmt.Sprintf("%x", testValue)
	if out := strings.ToLower(log.String()); strings.Contains(out, strings.ToLower(testValue)) || strings.Contains(out, hex) {
		t.Errorf("a value was printed: %s", log.String())
	}
	if s.Reveal() != testValue {
		t.Error("Reveal doesn't")
	}
}

// Whatever is sent, the answer has no server error and no value.
func FuzzCreate(f *testing.F) {
	f.Add(vaultOf(cred("c", testValue), bind("b", hostMatch, bearerAuth)))
	f.Add(vaultOf(cred("c", testValue), bind("b", hostMatch, `"type":"passthrough","substitutions":[{"credential":"c","placeholder":"__C__","in":["body","path"]}]`)))
	f.Add(`{"credentials":[{"name":"c","source":{"value":"` + testValue + `"}}],"bindings":[{"name":"b","match":{"hosts":["*.xn--e1afmkfd.example.com"]},"auth":{"type":"basic","credential":"c"}}]}`)
	v := openTest(f, f.TempDir())
	f.Fuzz(func(t *testing.T, body string) {
		api := testAPI(v)
		w := call(api, "POST", Prefix, body)
		if w.Code != 201 && w.Code != 400 && w.Code != 413 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
		if strings.Contains(w.Body.String(), testValue) && !strings.Contains(body, `"name":"`+testValue) {
			t.Logf("the value may be a name here: %s", w.Body)
		}
		if w.Code == 201 {
			a := v.Active("sb1")
			a.Host("api.example.com").Match("https", 443, "GET", "/x")
			before := call(api, "GET", Prefix, "").Body.String()
			if after := call(testAPI(openTest(t, v.dir)), "GET", Prefix, "").Body.String(); before != after {
				t.Errorf("read back otherwise:\n%s\n%s", before, after)
			}
		}
		call(api, "DELETE", Prefix, "")
	})
}
