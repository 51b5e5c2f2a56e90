package intercept

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/paddock-sandbox/paddock/internal/vault"
)

// allocated is how many bytes f takes, also those that it gives back.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// growing is the worst that a binding can ask for: the shortest placeholder, and
// the longest value where each byte is written as six.
func growing() []change {
	return []change{{[]byte("KEYS"), bytes.Repeat([]byte(`\u0001`), vault.MaxSubstituted)}}
}

// What comes out of a body is made in pieces, however much it is.
func TestReplacingInPieces(t *testing.T) {
	const times = 4096
	changes := growing()
	r := &replacing{from: strings.NewReader(strings.Repeat("KEYS", times)), r: newPatterns(changes).replacer(nil)}
	total, largest := 0, 0
	for buf := make([]byte, 32<<10); ; {
		n, err := r.Read(buf)
		total += n
		largest = max(largest, len(r.out))
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if want := times * len(changes[0].to); total != want {
		t.Errorf("%d bytes came out, want %d", total, want)
	}
	if largest > 512<<10 {
		t.Errorf("%d bytes waited to be taken", largest)
	}
	if cap(r.r.out) > maxKept {
		t.Errorf("%d bytes are kept", cap(r.r.out))
	}
}

// A part that would become too long is not made, and what fits is.
func TestReplacerRefusesWhatGrows(t *testing.T) {
	changes := growing()
	part := []byte(strings.Repeat("KEYS", 4096))
	r := newPatterns(changes).replacer(nil)
	r.most = maxGrown
	var out []byte
	if got := allocated(func() { out = r.replace(part, false) }); got > 8*maxGrown {
		t.Errorf("it took %d MiB", got>>20)
	}
	if !r.over || out != nil || r.replace([]byte("more"), true) != nil {
		t.Errorf("%d bytes came out", len(out))
	}
	r = newPatterns(changes).replacer(nil)
	r.most = maxGrown
	for range 3 {
		if n := len(r.replace([]byte(strings.Repeat("KEYS", 20)), false)); n != 20*len(changes[0].to) || r.over {
			t.Fatalf("%d bytes came out", n)
		}
		if cap(r.out) > maxKept {
			t.Errorf("%d bytes are kept", cap(r.out))
		}
	}
}

// How long a head becomes is known before it is made.
func TestHeadsThatGrow(t *testing.T) {
	in := func(size int) *vault.Injection {
		return &vault.Injection{Substitutions: []vault.Replacement{{Placeholder: "KEYS", Value: vault.NewSecret(strings.Repeat("v", size)),
			Header: true, Path: true, Query: true}}}
	}
	many := strings.Repeat("KEYS", 12<<10)
	headers := make([]vault.InjectedHeader, 16)
	for i := range headers {
		headers[i] = vault.InjectedHeader{Name: fmt.Sprint("x-", i), Value: vault.NewSecret(strings.Repeat("v", 16<<10))}
	}
	for name, x := range map[string]struct {
		target string
		fields []field
		in     *vault.Injection
		want   int
	}{
		"path":           {"/" + many, nil, in(vault.MaxSubstituted), 414},
		"query":          {"/?" + many, nil, in(vault.MaxSubstituted), 414},
		"path and query": {"/KEYSKEYSKEYSKEYSKEYS?KEYSKEYSKEYSKEYS", nil, in(vault.MaxSubstituted), 414},
		"header":         {"/", []field{{"x-a", many}}, in(vault.MaxSubstituted), 431},
		"many headers":   {"/", []field{{"x-a", "KEYSKEYSKEYS"}, {"x-b", "KEYSKEYSKEYS"}, {"x-c", "KEYSKEYSKEYS"}, {"x-d", "KEYSKEYSKEYS"}, {"x-e", "KEYSKEYSKEYSKEYS"}}, in(vault.MaxSubstituted), 431},
		"set headers":    {"/", nil, &vault.Injection{Headers: headers}, 431},
		"stored before":  {"/KEYS", nil, in(vault.MaxSubstituted + 1), 413},
		"it fits":        {"/KEYSKEYS?KEYS", []field{{"x-a", "KEYSKEYS"}}, in(vault.MaxSubstituted), 0},
	} {
		t.Run(name, func(t *testing.T) {
			var refused *refusal
			if got := allocated(func() { _, refused = inject(&head{fields: x.fields}, x.target, x.in) }); got > 1<<20 {
				t.Errorf("it took %d KiB", got>>10)
			}
			status := 0
			if refused != nil {
				status = refused.status
			}
			if status != x.want {
				t.Errorf("%d, want %d", status, x.want)
			}
		})
	}
}

// A sandbox that writes many placeholders is told why its request does not pass,
// and what has arrived of it is not taken for the whole.
func TestSubstitutionsThatGrow(t *testing.T) {
	const placeholders = 4096
	value := strings.Repeat("v", vault.MaxSubstituted)
	versions(t, func(t *testing.T, http2 bool) {
		var whole, bytes atomic.Int64
		r := newRig(t, rigOptions{http2: http2}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			n, err := io.Copy(io.Discard, r.Body)
			if err == nil {
				whole.Add(1)
				bytes.Store(n)
			}
		}))
		r.vaultOf(fmt.Sprintf(`{"credentials":[{"name":"c","source":{"value":%q}}],"bindings":[{"name":"b","match":{"hosts":[%q],"ports":[%d]},`+
			`"auth":{"type":"passthrough","substitutions":[{"credential":"c","placeholder":"KEYS","in":["header","query","path","body"]}]}}]}`, value, testHost, r.port))
		rt := r.transport(http2)
		many := strings.Repeat("KEYS", placeholders)
		for name, x := range map[string]struct {
			path, header, body string
			stream             bool
			want               int
		}{
			"path":   {path: "/" + many, want: 414},
			"query":  {path: "/?" + many, want: 414},
			"header": {path: "/", header: many, want: 431},
			"body":   {path: "/", body: many, want: 413},
			"stream": {path: "/", body: many, stream: true, want: map[bool]int{false: 200, true: 413}[http2]},
			"fits":   {path: "/KEYS?KEYS", header: "KEYS", body: "KEYS", want: 200},
		} {
			before := whole.Load()
			req := r.request("POST", x.path, x.body)
			if x.header != "" {
				req.Header.Set("X-Key", x.header)
			}
			if x.stream {
				req.ContentLength = -1
			}
			resp, body := r.do(rt, req)
			if resp.StatusCode != x.want {
				t.Errorf("%s: %d %.200s", name, resp.StatusCode, body)
				continue
			}
			if x.want == 200 {
				if x.stream && bytes.Load() != placeholders*vault.MaxSubstituted {
					t.Errorf("%s: %d bytes arrived", name, bytes.Load())
				}
				continue
			}
			var told struct{ Code, Message, Host string }
			if json.Unmarshal([]byte(body), &told) != nil || told.Code != codeSubstitute || told.Host != testHost || told.Message == "" {
				t.Errorf("%s: %s", name, body)
			}
			if whole.Load() != before {
				t.Errorf("%s: the destination took it", name)
			}
		}
	})
}
