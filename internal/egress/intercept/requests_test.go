package intercept

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"time"
)

// Every request must be for the host of its connection.
func TestHostsMustAgree(t *testing.T) {
	versions(t, func(t *testing.T, http2 bool) {
		h, _ := listening(nil)
		r := newRig(t, rigOptions{http2: http2}, h)
		r.bind("", bearer)
		rt := r.transport(http2)
		for host, want := range map[string]int{
			testHost: 200, strings.ToUpper(testHost): 200, testHost + ".": 200, fmt.Sprintf("%s:%d", testHost, r.port): 200,
			"other.example.com": 421, testHost + ":1": 421, "10.0.0.1": 421, testHost + "@evil": 421,
		} {
			if http2 && strings.Contains(host, "@") {
				continue // this client doesn't send it
			}
			req := r.request("GET", "/", "")
			req.Host = host
			resp, body := r.do(rt, req)
			if resp.StatusCode != want {
				t.Errorf("%q: %d %s", host, resp.StatusCode, body)
			}
			if want == 421 && (!strings.Contains(body, codeMisdirected) || resp.Header.Get("Via") != via) {
				t.Errorf("%q: not explained: %s", host, body)
			}
		}
		if r.denied == nil || r.denied[0].Sandbox != "sb1" {
			t.Errorf("nobody was told: %+v", r.denied)
		}
	})
}

func TestConditionsOfThePolicy(t *testing.T) {
	versions(t, func(t *testing.T, http2 bool) {
		h, ch := listening(nil)
		r := newRig(t, rigOptions{http2: http2, rule: 3, request: func(method, target string) string {
			if method != "GET" || !strings.HasPrefix(target, "/ok") {
				return "rule 3 does not allow " + method
			}
			return ""
		}}, h)
		rt := r.transport(http2)
		if resp, body := r.do(rt, r.request("GET", "/ok?x", "")); resp.StatusCode != 200 {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
		<-ch
		resp, body := r.do(rt, r.request("POST", "/ok", strings.Repeat("x", 1000)))
		var got map[string]any
		if err := json.Unmarshal([]byte(body), &got); resp.StatusCode != 403 || err != nil || got["code"] != codePolicy ||
			got["rule"] != 3.0 || got["host"] != testHost || !strings.Contains(fmt.Sprint(got["message"]), "rule 3 does not allow POST") {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
		if len(r.denied) != 1 || r.denied[0].Rule != 3 {
			t.Errorf("told: %+v", r.denied)
		}
		if len(ch) > 0 {
			t.Error("it arrived all the same")
		}
	})
}

func TestDestinationsThatFail(t *testing.T) {
	versions(t, func(t *testing.T, http2 bool) {
		h, _ := listening(nil)
		r := newRig(t, rigOptions{http2: http2, untrusted: true}, h)
		r.bind("", bearer)
		resp, body := r.do(r.transport(http2), r.request("GET", "/", ""))
		if resp.StatusCode != 502 || !strings.Contains(body, codeCertificate) || !strings.Contains(body, "unknown authority") {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	})
	t.Run("broken off", func(t *testing.T) {
		versions(t, func(t *testing.T, http2 bool) {
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Type", "text/plain")
				io.WriteString(w, "half")
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			})
			r := newRig(t, rigOptions{http2: http2}, h)
			r.bind("", bearer)
			resp, err := r.transport(http2).RoundTrip(r.request("GET", "/", ""))
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(resp.Body); err == nil {
				t.Errorf("half a body passes for a whole one: %q", b)
			}
		})
	})
}

// What a server sends before its answer, and what it sends while it still reads.
func TestInterimAnswersAndStreams(t *testing.T) {
	versions(t, func(t *testing.T, http2 bool) {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "</x?"+r.Header.Get("Authorization")+">")
			w.WriteHeader(103)
			w.Header().Del("Link")
			w.Header().Set("Content-Type", "text/plain")
			if !http2 {
				_ = http.NewResponseController(w).EnableFullDuplex()
			}
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			buf := make([]byte, 64)
			for {
				n, err := r.Body.Read(buf)
				w.Write(bytes.ToUpper(buf[:n]))
				w.(http.Flusher).Flush()
				if err != nil {
					return
				}
			}
		})
		r := newRig(t, rigOptions{http2: http2}, h)
		r.bind("", bearer)
		pr, pw := io.Pipe()
		req := r.request("POST", "/", "")
		req.Body = pr
		var early string
		req = req.WithContext(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				if code == 103 {
					early = h.Get("Link")
				}
				return nil
			}}))
		resp, err := r.transport(http2).RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if early != "</x?Bearer "+strings.Repeat("*", len(testValue))+">" {
			t.Errorf("early: %q", early)
		}
		buf := make([]byte, 8)
		for range 5 { // each waits for the one before
			io.WriteString(pw, "a piece.")
			if _, err := io.ReadFull(resp.Body, buf); err != nil || string(buf) != "A PIECE." {
				t.Fatalf("%q %v", buf, err)
			}
		}
		pw.Close()
		if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) != 0 {
			t.Errorf("%q %v", rest, err)
		}
	})
}

// A client that waits to be told to go on, and large bodies both ways.
func TestLargeBodies(t *testing.T) {
	versions(t, func(t *testing.T, http2 bool) {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
			b, err := io.ReadAll(r.Body)
			if err != nil {
				panic(http.ErrAbortHandler)
			}
			w.Write(b)
		})
		r := newRig(t, rigOptions{http2: http2}, h)
		r.bind("", bearer)
		rt := r.transport(http2)
		rt.ExpectContinueTimeout = time.Minute
		body := strings.Repeat("0123456789abcdef", 1<<17) + testValue
		for kind, want := range map[string]string{
			"application/octet-stream": body, "text/plain": body[:len(body)-len(testValue)] + strings.Repeat("*", len(testValue))} {
			for _, known := range []bool{true, false} {
				req := r.request("PUT", "/", body)
				req.Header.Set("Content-Type", kind)
				req.Header.Set("Expect", "100-continue")
				if !known {
					req.ContentLength = -1
				}
				if resp, got := r.do(rt, req); resp.StatusCode != 200 || got != want {
					t.Errorf("%s, length known %v: %d, %d bytes", kind, known, resp.StatusCode, len(got))
				}
			}
		}
	})
}

func TestTrailersOfRequests(t *testing.T) {
	versions(t, func(t *testing.T, http2 bool) {
		h, ch := listening(nil)
		r := newRig(t, rigOptions{http2: http2}, h)
		r.bind("", bearer)
		req := r.request("POST", "/", "body")
		req.ContentLength = -1
		req.Trailer = http.Header{"X-Sum": {"42"}}
		r.do(r.transport(http2), req)
		if got := <-ch; got.Trailer.Get("X-Sum") != "42" || got.Body != "body" {
			t.Errorf("arrived: %+v", got)
		}
	})
}

func TestUpgrade(t *testing.T) {
	for _, overTLS := range []bool{true, false} {
		t.Run(fmt.Sprintf("tls=%v", overTLS), func(t *testing.T) {
			auth := make(chan string, 1)
			h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				auth <- r.Header.Get("Authorization")
				c, rw, err := w.(http.Hijacker).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst")
				io.Copy(c, rw)
			})
			r := newRig(t, rigOptions{plain: !overTLS}, h)
			r.bind(`,"schemes":["http","https"]`, bearer)
			c := r.raw(overTLS)
			fmt.Fprintf(c, "GET /ws HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nsent at once", testHost)
			br := bufio.NewReader(c)
			resp, err := http.ReadResponse(br, nil)
			if err != nil || resp.StatusCode != 101 {
				t.Fatal(resp, err)
			}
			if got := <-auth; got != "Bearer "+testValue {
				t.Errorf("arrived: %q", got)
			}
			io.WriteString(c, ", and later")
			want := "firstsent at once, and later"
			buf := make([]byte, len(want))
			if _, err := io.ReadFull(br, buf); err != nil || string(buf) != want {
				t.Fatalf("%q %v", buf, err)
			}
			if cw, ok := c.(interface{ CloseWrite() error }); ok {
				cw.CloseWrite()
			}
			if rest, err := io.ReadAll(br); err != nil || len(rest) > 0 {
				t.Errorf("%q %v", rest, err)
			}
		})
	}
}

// What two readers could take for different requests is not passed on, and
// ends the connection.
func TestMalformedRequests(t *testing.T) {
	h, ch := listening(nil)
	r := newRig(t, rigOptions{}, h)
	r.bind("", bearer)
	host := "Host: " + testHost + "\r\n"
	for name, x := range map[string]struct {
		text string
		want int
	}{
		"no host":             {"GET / HTTP/1.1\r\n\r\n", 400},
		"two hosts":           {"GET / HTTP/1.1\r\n" + host + host + "\r\n", 400},
		"both lengths":        {"POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		"two lengths":         {"POST / HTTP/1.1\r\n" + host + "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400},
		"odd length":          {"POST / HTTP/1.1\r\n" + host + "Content-Length: +3\r\n\r\nabc", 400},
		"negative length":     {"POST / HTTP/1.1\r\n" + host + "Content-Length: -3\r\n\r\nabc", 400},
		"empty length":        {"POST / HTTP/1.1\r\n" + host + "Content-Length:\r\n\r\nabc", 400},
		"other encoding":      {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400},
		"encoding in 1.0":     {"POST / HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
		"bare LF":             {"GET / HTTP/1.1\nHost: " + testHost + "\n\n", 400},
		"continued line":      {"GET / HTTP/1.1\r\n" + host + "X: a\r\n b\r\n\r\n", 400},
		"space before colon":  {"GET / HTTP/1.1\r\nHost : " + testHost + "\r\n\r\n", 400},
		"control character":   {"GET / HTTP/1.1\r\n" + host + "X: a\x01b\r\n\r\n", 400},
		"bare CR":             {"GET / HTTP/1.1\r\n" + host + "X: a\rb\r\n\r\n", 400},
		"version":             {"GET / HTTP/1.2\r\n" + host + "\r\n", 400},
		"no version":          {"GET /\r\n" + host + "\r\n", 400},
		"spaces":              {"GET  / HTTP/1.1\r\n" + host + "\r\n", 400},
		"empty first line":    {"\r\nGET / HTTP/1.1\r\n" + host + "\r\n", 400},
		"connect":             {"CONNECT " + testHost + ":443 HTTP/1.1\r\n" + host + "\r\n", 400},
		"asterisk":            {"GET * HTTP/1.1\r\n" + host + "\r\n", 400},
		"absolute, elsewhere": {"GET https://evil.example.com/ HTTP/1.1\r\n" + host + "\r\n", 421},
		"absolute, http":      {"GET http://" + testHost + "/ HTTP/1.1\r\n" + host + "\r\n", 400},
		"too long":            {"GET / HTTP/1.1\r\n" + host + "X: " + strings.Repeat("x", maxHead) + "\r\n\r\n", 400},
		"absolute":            {"GET https://" + testHost + "/abs?x HTTP/1.1\r\n" + host + "\r\n", 200},
		"old":                 {"GET /old HTTP/1.0\r\n" + host + "\r\n", 200},
		"options":             {"OPTIONS * HTTP/1.1\r\n" + host + "\r\n", 200},
		"h2c offered":         {"GET /h2c HTTP/1.1\r\n" + host + "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", 200},
	} {
		t.Run(name, func(t *testing.T) {
			c := r.raw(true)
			io.WriteString(c, x.text)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != x.want {
				t.Errorf("%d %s", resp.StatusCode, body)
			}
			if name == "options" {
				return // the destination's server answers it by itself
			}
			if x.want == 200 {
				if got := <-ch; strings.HasPrefix(got.URI, "https:") || got.Header.Get("Upgrade") != "" {
					t.Errorf("arrived: %+v", got)
				}
			} else if !resp.Close || len(ch) > 0 {
				t.Error("the connection goes on, or something arrived")
			}
		})
	}
	// A destination may answer before it has all of a body. This one doesn't.
	r = newRig(t, rigOptions{}, http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
	}))
	r.bind("", bearer)
	for name, body := range map[string]string{
		"nothing wrong":     "3\r\nabc\r\n0\r\n\r\n",
		"bad chunk":         "3\r\nabcX\r\n0\r\n\r\n",
		"bad size":          "0x3\r\nabc\r\n0\r\n\r\n",
		"large size":        "fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
		"length at end":     "3\r\nabc\r\n0\r\nContent-Length: 5\r\n\r\n",
		"trailer continues": "3\r\nabc\r\n0\r\nA: b\r\n c\r\n\r\n",
		"bare LF":           "3\nabc\n0\n\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := r.raw(true)
			io.WriteString(c, "POST / HTTP/1.1\r\n"+host+"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"+body)
			b, err := io.ReadAll(c)
			if passed := err == nil && bytes.Contains(b, []byte("200 OK")); passed != (name == "nothing wrong") {
				t.Errorf("passed on: %v: %q, %v", passed, b, err)
			}
		})
	}
}

// Requests sent ahead are each served, and each checked.
func TestPipelining(t *testing.T) {
	h, ch := listening(nil)
	r := newRig(t, rigOptions{}, h)
	r.bind("", bearer)
	c := r.raw(true)
	one := "POST /1 HTTP/1.1\r\nHost: " + testHost + "\r\nContent-Length: 3\r\n\r\nabc"
	io.WriteString(c, one+one+"GET / HTTP/1.1\r\nHost: evil.example.com\r\n\r\n"+one)
	br := bufio.NewReader(c)
	for i, want := range []int{200, 200, 421} {
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != want {
			t.Fatalf("answer %d: %v %v", i, resp, err)
		}
		io.Copy(io.Discard, resp.Body)
	}
	if b, err := io.ReadAll(br); err != nil || len(b) > 0 || len(ch) != 2 {
		t.Errorf("after a refusal: %q %v, %d arrived", b, err, len(ch))
	}
}

func TestAnotherServerName(t *testing.T) {
	h, _ := listening(nil)
	r := newRig(t, rigOptions{}, h)
	r.bind("", bearer)
	c, err := tls.Dial("tcp4", r.listener.Addr().String(), &tls.Config{RootCAs: r.roots, ServerName: "other.example.com"})
	if err == nil {
		c.Close()
		t.Fatal("a handshake for another name went through")
	}
	var alert tls.AlertError
	if !errors.As(err, &alert) {
		t.Logf("it ended with %v", err)
	}
}
