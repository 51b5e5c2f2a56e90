package intercept

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// What is passed on is read in the same way by another parser, and holds nothing
// beyond itself.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		"GET /a?b HTTP/1.1\r\nHost: x.example.com\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET",
		"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nT: v\r\n\r\nGET",
		"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		from := bufio.NewReader(bytes.NewReader(b))
		r, err := readRequest(from)
		if err != nil {
			return
		}
		var out bytes.Buffer
		w := bufio.NewWriter(&out)
		r.write(w)
		src := newSource(from, r.length)
		to := &sink{w: w, chunks: r.length == chunked}
		if err := stream(to, src, nil, &side{wire: &wire{}}); err != nil {
			return
		}
		if to.end(src.trailer) != nil {
			t.Fatal("a buffer took not all")
		}
		text := out.String()
		if strings.Count(text, "\n") != strings.Count(text, "\r\n") && r.length == 0 {
			t.Fatalf("a bare LF in %q", text)
		}
		again := bufio.NewReader(&out)
		std, err := http.ReadRequest(again)
		if err != nil {
			return // it is stricter about some values
		}
		if _, err := io.Copy(io.Discard, std.Body); err != nil {
			t.Fatalf("the body of %q: %v", text, err)
		}
		if std.Method != r.method || std.RequestURI != r.target {
			t.Fatalf("%s %s, but %s %s in %q", r.method, r.target, std.Method, std.RequestURI, text)
		}
		if n := again.Buffered(); n > 0 {
			t.Fatalf("%d bytes behind the request %q", n, text)
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		from := bufio.NewReader(bytes.NewReader(b))
		a, err := readAnswer(from, "GET")
		if err != nil {
			return
		}
		if a.status < 100 || a.status > 999 || a.length < untilEnd {
			t.Fatalf("%+v", a)
		}
		_, _ = io.Copy(io.Discard, newSource(from, a.length))
	})
}

func TestSettingFields(t *testing.T) {
	h := &head{first: "GET / HTTP/1.1", fields: []field{{"A", "1"}, {"b", "2"}, {"a", "3"}, {"C", "4"}}}
	h.set("a", "x")
	h.set("D", "y")
	h.del("B")
	var out bytes.Buffer
	w := bufio.NewWriter(&out)
	h.write(w)
	w.Flush()
	if want := "GET / HTTP/1.1\r\na: x\r\nC: 4\r\nD: y\r\n\r\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

func TestAcceptedEncodings(t *testing.T) {
	for in, want := range map[string]string{
		"gzip": "gzip", "br, GZIP;q=0.5": "gzip", "*": "gzip", "gzip;q=0": "identity", "gzip; q=0.000": "identity",
		"br": "identity", "": "identity", "gzip;q=0.1": "gzip", "gzip;q=1": "gzip",
	} {
		if got := acceptedEncodings(in); got != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

func TestAuthorityOfAServer(t *testing.T) {
	dir := t.TempDir()
	a, err := OpenAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := OpenAuthority(dir)
	if err != nil || !bytes.Equal(a.PEM(), b.PEM()) {
		t.Fatalf("opened again it is another one: %v", err)
	}
	first, err := a.leaf("x.example.com")
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := a.leaf("x.example.com"); again != first {
		t.Error("a certificate is made twice")
	}
	for i := range maxLeaves {
		a.known("x.example.com") // stays, because it is used
		a.keep(&leaf{name: strconv.Itoa(i), renew: time.Now().Add(time.Hour)})
	}
	if len(a.leaves) != maxLeaves || a.recent.Len() != maxLeaves || a.leaves["0"] != nil || a.leaves["x.example.com"] == nil {
		t.Errorf("%d are kept, at most %d should be, and those that are used", len(a.leaves), maxLeaves)
	}
	a.keep(&leaf{name: "old", renew: time.Now().Add(-time.Second)})
	if a.known("old") != nil {
		t.Error("one that is to be renewed is used")
	}
	long := strings.Repeat("a.", 100) + "example.com"
	if c, err := b.leaf(long); err != nil || c.Leaf.VerifyHostname(long) != nil {
		t.Errorf("a long name: %v", err)
	}
}
