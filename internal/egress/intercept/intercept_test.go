package intercept

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// echo tells what arrived.
type seen struct {
	Proto, Method, URI, Host, Body string
	Header, Trailer                http.Header
	Length                         int64
}

// listening is a destination that hands over what arrives, and answers with
// what it is told to.
func listening(answer http.HandlerFunc) (http.Handler, chan seen) {
	ch := make(chan seen, 64)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		ch <- seen{r.Proto, r.Method, r.RequestURI, r.Host, string(body), r.Header, r.Trailer, r.ContentLength}
		if answer != nil {
			answer(w, r)
		}
	}), ch
}

const bearer = `"type":"bearer","credential":"c"`

func TestCredentialsGoIn(t *testing.T) {
	for name, x := range map[string]struct {
		auth string
		want http.Header
	}{
		"bearer": {bearer, http.Header{"Authorization": {"Bearer " + testValue}}},
		"basic":  {`"type":"basic","credential":"basic"`, http.Header{"Authorization": {"Basic dXNlcjpwYXNzd29yZA=="}}},
		"apiKey": {`"type":"apiKey","name":"x-api-key","credential":"c"`, http.Header{"X-Api-Key": {testValue}, "Authorization": {"own"}}},
		"custom": {`"type":"customHeaders","headers":[{"name":"A","credential":"c"},{"name":"B","credential":"basic"}]`,
			http.Header{"A": {testValue}, "B": {"dXNlcjpwYXNzd29yZA=="}}},
		"passthrough": {`"type":"passthrough"`, http.Header{"Authorization": {"own"}, "X-Api-Key": {"mine", "too"}}},
	} {
		t.Run(name, func(t *testing.T) {
			versions(t, func(t *testing.T, http2 bool) {
				h, ch := listening(nil)
				r := newRig(t, rigOptions{http2: http2}, h)
				r.bind("", x.auth)
				req := r.request("POST", "/a%20b/c?q=1&r", "hello")
				// The sandbox's own values are replaced, however many.
				req.Header = http.Header{"Authorization": {"own"}, "X-Api-Key": {"mine", "too"}, "A": {"1", "2"}}
				if resp, body := r.do(r.transport(http2), req); resp.StatusCode != 200 || resp.ProtoMajor != map[bool]int{true: 2, false: 1}[http2] {
					t.Fatalf("%d %s over %s", resp.StatusCode, body, resp.Proto)
				}
				got := <-ch
				for k, v := range x.want {
					if fmt.Sprint(got.Header[k]) != fmt.Sprint(v) {
						t.Errorf("%s: %q, want %q", k, got.Header[k], v)
					}
				}
				if got.URI != "/a%20b/c?q=1&r" || got.Body != "hello" || got.Host != fmt.Sprintf("%s:%d", testHost, r.port) || got.Length != 5 {
					t.Errorf("arrived: %+v", got)
				}
				if s := r.i.Stats(); s.Requests != 1 || s.Conns != 1 || s.Refused != 0 || (s.Injected != 1) {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

// Where one part of a match does not fit, no credential goes.
func TestOnlyWhereItIsBound(t *testing.T) {
	versions(t, func(t *testing.T, http2 bool) {
		h, ch := listening(nil)
		r := newRig(t, rigOptions{http2: http2}, h)
		r.bind(`,"methods":["GET"],"paths":["/v1/*"]`, bearer)
		rt := r.transport(http2)
		for _, x := range []struct {
			method, path string
			want         bool
		}{
			{"GET", "/v1/x", true}, {"GET", "/v1/%78?y", true}, {"POST", "/v1/x", false}, {"GET", "/v2/x", false},
			{"GET", "/v1", false}, {"GET", "/V1/x", false}, {"GET", "/v2?/v1/x", false},
		} {
			r.do(rt, r.request(x.method, x.path, ""))
			if got := (<-ch).Header.Get("Authorization") != ""; got != x.want {
				t.Errorf("%s %s: a credential went: %v", x.method, x.path, got)
			}
		}
		// A path that could be another one to the destination is refused.
		for _, path := range []string{"/v1/../admin", "/v1/%2e%2e/admin", "/v1%2f..%2fadmin", "/v1//x", "/v1/%5c", "/v1/..;/x"} {
			req := r.request("GET", "/", "")
			req.URL.Opaque = "//" + req.URL.Host + path
			if http2 {
				req.URL.Opaque = path
			} else {
				req.URL = &url.URL{Scheme: "https", Host: req.URL.Host, Opaque: path}
			}
			resp, body := r.do(rt, req)
			if resp.StatusCode != 400 || !strings.Contains(body, codePath) {
				t.Errorf("%s: %d %s", path, resp.StatusCode, body)
			}
		}
	})
	t.Run("no rule names the host", func(t *testing.T) {
		h, ch := listening(nil)
		r := newRig(t, rigOptions{rule: -1}, h)
		r.bind("", bearer)
		r.do(r.transport(false), r.request("GET", "/", ""))
		if (<-ch).Header.Get("Authorization") != "" {
			t.Error("a credential went where no rule says that the sandbox may go")
		}
	})
	t.Run("another vault from now on", func(t *testing.T) {
		h, ch := listening(nil)
		r := newRig(t, rigOptions{}, h)
		r.bind("", bearer)
		rt := r.transport(false)
		r.do(rt, r.request("GET", "/", ""))
		<-ch
		r.bind(`,"methods":["PUT"]`, bearer)
		r.do(rt, r.request("GET", "/", "")) // the same connection
		if (<-ch).Header.Get("Authorization") != "" || r.i.Stats().Conns != 1 {
			t.Error("a connection went on with the bindings of before")
		}
	})
}

func TestPlainHTTP(t *testing.T) {
	h, ch := listening(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "you sent "+r.Header.Get("Authorization"))
	})
	r := newRig(t, rigOptions{plain: true}, h)
	r.bind(`,"schemes":["http"]`, bearer)
	req := r.request("GET", "/x", "")
	req.URL.Scheme = "http"
	_, body := r.do(r.transport(false), req)
	if got := <-ch; got.Header.Get("Authorization") != "Bearer "+testValue {
		t.Errorf("arrived: %+v", got)
	}
	if strings.Contains(body, testValue) || !strings.HasPrefix(body, "you sent Bearer ***") {
		t.Errorf("came back: %q", body)
	}
}

func TestSubstitutions(t *testing.T) {
	auth := `"type":"passthrough","substitutions":[{"credential":"c","placeholder":"{{KEY}}","in":["header","query","path","body"]}]`
	escaped := url.QueryEscape(testValue)
	versions(t, func(t *testing.T, http2 bool) {
		h, ch := listening(nil)
		r := newRig(t, rigOptions{http2: http2}, h)
		r.bind("", auth)
		rt := r.transport(http2)
		long := strings.Repeat("x", maxBuffered) + "{{KEY}}"
		for _, x := range []struct{ name, kind, body, want string }{
			{"text", "text/plain", "a {{KEY}} b {{KEY}", "a " + testValue + " b {{KEY}"},
			{"json", "application/json; charset=utf-8", `{"k":"{{KEY}}"}`, `{"k":"` + testValue + `"}`},
			{"form", "application/x-www-form-urlencoded", "k={{KEY}}&z", "k=" + escaped + "&z"},
			{"long", "text/plain", long, strings.Repeat("x", maxBuffered) + testValue},
			{"none", "text/plain", "nothing", "nothing"},
		} {
			req := r.request("POST", "/p/{{KEY}}/{{KEY}}?k={{KEY}}&e=%7B%7BKEY%7D%7D", x.body)
			req.Header.Set("Content-Type", x.kind)
			req.Header.Set("X-Key", "pre-{{KEY}}")
			if resp, body := r.do(rt, req); resp.StatusCode != 200 {
				t.Fatalf("%s: %d %s", x.name, resp.StatusCode, body)
			}
			got := <-ch
			p := url.PathEscape(testValue)
			if got.URI != "/p/"+p+"/"+p+"?k="+escaped+"&e="+escaped {
				t.Errorf("%s: target %q", x.name, got.URI)
			}
			if got.Header.Get("X-Key") != "pre-"+testValue {
				t.Errorf("%s: header %q", x.name, got.Header.Get("X-Key"))
			}
			if got.Body != x.want || (x.name != "long" && got.Length != int64(len(x.want))) || (x.name == "long" && got.Length != -1) {
				t.Errorf("%s: body of length %d: %.80q", x.name, got.Length, got.Body)
			}
		}
		// In pieces, and without a length.
		pr, pw := io.Pipe()
		req := r.request("POST", "/", "")
		req.Body = pr
		go func() {
			for _, c := range []byte("a{{KEY}}b") {
				pw.Write([]byte{c})
			}
			pw.Close()
		}()
		r.do(rt, req)
		if got := <-ch; got.Body != "a"+testValue+"b" {
			t.Errorf("in pieces: %q", got.Body)
		}
		// Only what is not compressed can be written into.
		req = r.request("POST", "/", "{{KEY}}")
		req.Header.Set("Content-Encoding", "gzip")
		if resp, body := r.do(rt, req); resp.StatusCode != 415 || !strings.Contains(body, "Content-Encoding") {
			t.Errorf("a compressed body: %d %s", resp.StatusCode, body)
		}
	})
	t.Run("escapes of JSON", func(t *testing.T) {
		h, ch := listening(nil)
		r := newRig(t, rigOptions{}, h)
		value := "a\"b\\c\n<&>"
		quoted, _ := json.Marshal(value)
		r.vaultOf(fmt.Sprintf(`{"credentials":[{"name":"c","source":{"value":%s}}],"bindings":[{"name":"b","match":{"hosts":[%q],"ports":[%d]},`+
			`"auth":{"type":"passthrough","substitutions":[{"credential":"c","placeholder":"{{KEY}}","in":["body"]}]}}]}`, quoted, testHost, r.port))
		req := r.request("POST", "/", `{"k":"{{KEY}}"}`)
		req.Header.Set("Content-Type", "application/json")
		r.do(r.transport(false), req)
		var got struct{ K string }
		if s := <-ch; json.Unmarshal([]byte(s.Body), &got) != nil || got.K != value {
			t.Errorf("arrived: %q", s.Body)
		}
	})
	t.Run("expect 100-continue", func(t *testing.T) {
		h, ch := listening(nil)
		r := newRig(t, rigOptions{}, h)
		r.bind("", auth)
		c := r.raw(true)
		fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: %s\r\nExpect: 100-continue\r\nContent-Length: 7\r\n\r\n", testHost)
		br := bufio.NewReader(c)
		if line, err := br.ReadString('\n'); err != nil || line != "HTTP/1.1 100 Continue\r\n" {
			t.Fatalf("%q %v", line, err)
		}
		io.WriteString(c, "{{KEY}}")
		if got := <-ch; got.Body != testValue {
			t.Errorf("arrived: %+v", got)
		}
	})
}

func zipped(s string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	io.WriteString(w, s)
	w.Close()
	return b.String()
}

func TestWhatComesBackIsMasked(t *testing.T) {
	basic64 := base64.StdEncoding.EncodeToString([]byte("user:password"))
	echo := "head " + testValue + " json " + `"` + testValue + `"` + " url " + url.QueryEscape(testValue) + " basic " + basic64 + " plain user:password " + "end"
	stars := func(n int) string { return strings.Repeat("*", n) }
	want := "head " + stars(len(testValue)) + " json \"" + stars(len(testValue)) + "\" url " + stars(len(url.QueryEscape(testValue))) +
		" basic " + stars(len(basic64)) + " plain " + stars(len("user:password")) + " end"
	auth := []string{`"type":"customHeaders","headers":[{"name":"A","credential":"c"}]`}
	versions(t, func(t *testing.T, http2 bool) {
		var accept string
		h, ch := listening(func(w http.ResponseWriter, r *http.Request) {
			accept = r.Header.Get("Accept-Encoding")
			w.Header().Set("X-Echo", r.Header.Get("A"))
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Trailer", "X-End")
			switch r.URL.Path {
			case "/length":
				w.Header().Del("Trailer")
				w.Header().Set("Content-Length", fmt.Sprint(len(echo)))
				io.WriteString(w, echo)
			case "/pieces":
				for _, c := range []byte(echo) {
					w.Write([]byte{c})
					w.(http.Flusher).Flush()
				}
				w.Header().Set("X-End", testValue)
			case "/gzip":
				w.Header().Set("Content-Encoding", "gzip")
				io.WriteString(w, zipped(echo))
				w.Header().Set("X-End", testValue)
			case "/empty":
				w.Header().Set("Content-Encoding", "gzip")
				w.(http.Flusher).Flush()
			case "/binary":
				w.Header().Set("Content-Type", "application/octet-stream")
				io.WriteString(w, echo)
			case "/redirect":
				w.Header().Set("Location", "/?k="+url.QueryEscape(testValue))
				w.WriteHeader(302)
			}
		})
		r := newRig(t, rigOptions{http2: http2}, h)
		r.vaultOf(fmt.Sprintf(`{"credentials":[{"name":"c","source":{"value":%q}},{"name":"basic","source":{"value":%q}}],"bindings":[`+
			`{"name":"a","match":{"hosts":[%q],"ports":[%d],"methods":["GET"]},"auth":{%s}},`+
			`{"name":"b","match":{"hosts":[%[3]q],"ports":[%[4]d],"methods":["PUT"]},"auth":{"type":"basic","credential":"basic"}}]}`,
			testValue, basic64, testHost, r.port, auth[0]))
		rt := r.transport(http2)
		for path, x := range map[string]struct{ body, end string }{
			"/length": {want, ""}, "/pieces": {want, stars(len(testValue))}, "/gzip": {want, stars(len(testValue))},
			"/empty": {"", ""}, "/binary": {echo, ""}, "/redirect": {"", ""},
		} {
			req := r.request("GET", path, "")
			req.Header.Set("Accept-Encoding", "br, gzip;q=0.8, zstd")
			resp, body := r.do(rt, req)
			<-ch
			if body != x.body {
				t.Errorf("%s: came back: %q\nwant %q", path, body, x.body)
			}
			if resp.Header.Get("X-Echo") != stars(len(testValue)) {
				t.Errorf("%s: header %q", path, resp.Header.Get("X-Echo"))
			}
			if resp.Trailer.Get("X-End") != x.end {
				t.Errorf("%s: trailer %q", path, resp.Trailer)
			}
			if path == "/length" && resp.ContentLength != int64(len(echo)) {
				t.Errorf("the length changed to %d", resp.ContentLength)
			}
			if resp.Header.Get("Content-Encoding") != "" {
				t.Errorf("%s: still said to be compressed", path)
			}
			if strings.Contains(resp.Header.Get("Location"), url.QueryEscape(testValue)) {
				t.Errorf("the location has the value: %q", resp.Header.Get("Location"))
			}
			if accept != "gzip" {
				t.Errorf("asked for %q", accept)
			}
		}
		// An answer to HEAD says what that to GET would.
		if resp, _ := r.do(rt, r.request("HEAD", "/gzip", "")); resp.StatusCode != 200 {
			t.Errorf("HEAD: %d", resp.StatusCode)
		}
	})
}
