package address

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const testID = "0b9ad1f2-3c4d-4e5f-8a9b-0c1d2e3f4a5b"

// A signature of each kind in form; nothing verifies them here.
var (
	shortForm = "32ec6d3ba"
	ownForm   = "p1" + strings.Repeat("a7", 26)
)

func TestParseLabel(t *testing.T) {
	for label, want := range map[string]Ref{
		testID + "-8080":                      {ID: testID, Port: 8080},
		testID + "-65535-x2qxvj-" + shortForm: {ID: testID, Port: 65535, Expires: "x2qxvj", Signature: shortForm},
		testID + "-1-0-" + ownForm:            {ID: testID, Port: 1, Expires: "0", Signature: ownForm},
		"sb-80":                               {ID: "sb", Port: 80},
		"a-b-80":                              {ID: "a-b", Port: 80},
		"sb-80-3w5e11264sgsf-" + shortForm:    {ID: "sb", Port: 80, Expires: "3w5e11264sgsf", Signature: shortForm},
		"sb-80-3w5e11264sgsg-" + shortForm[:8] + "-80": {ID: "sb-80-3w5e11264sgsg-" + shortForm[:8], Port: 80},
	} {
		if got, err := ParseLabel(label); err != nil || got != want {
			t.Errorf("%s = %+v, %v; want %+v", label, got, err, want)
		}
	}
	for label, want := range map[string]error{
		"": ErrLabel, "sb": ErrLabel, "sb-": ErrPort, "-80": ErrID, "sb-0": ErrPort, "sb-080": ErrPort, "sb-65536": ErrPort,
		"sb-+80": ErrPort, "sb-8_0": ErrPort, "sb-٨٠": ErrPort, "SB-80": ErrID, "s.b-80": ErrID, "s%62-80": ErrID, "sb--80": ErrID, "s b-80": ErrID,
		strings.Repeat("a", 64) + "-80": ErrID, "straße-80": ErrID,
		// Not a time, or not a signature: read as unsigned, which they are not.
		"sb-80-01-" + shortForm: ErrPort, "sb-80-3w5e11264sgsg-" + shortForm: ErrPort, "sb-80-x2-" + strings.ToUpper(shortForm): ErrPort,
		"sb-080-x2-" + shortForm: ErrPort, "sb-80-x2-" + shortForm + "0": ErrPort,
	} {
		if got, err := ParseLabel(label); !errors.Is(err, want) {
			t.Errorf("%q = %+v, %v; want %v", label, got, err, want)
		}
	}
}

func TestParsePath(t *testing.T) {
	sig := "/x2qxvj/" + shortForm
	for path, want := range map[string]Path{
		"/sb/80":                         {Ref{ID: "sb", Port: 80}, "/sb/80", ""},
		"/sb/80/":                        {Ref{ID: "sb", Port: 80}, "/sb/80", "/"},
		"/sb/80/a%2Fb//../%2e%2e/c":      {Ref{ID: "sb", Port: 80}, "/sb/80", "/a%2Fb//../%2e%2e/c"},
		"/sb/80//x":                      {Ref{ID: "sb", Port: 80}, "/sb/80", "//x"},
		"/sb/80" + sig:                   {Ref{"sb", 80, "x2qxvj", shortForm}, "/sb/80" + sig, ""},
		"/sb/80" + sig + "/x/":           {Ref{"sb", 80, "x2qxvj", shortForm}, "/sb/80" + sig, "/x/"},
		"/sb/80/x2qxvj/" + ownForm + "/": {Ref{"sb", 80, "x2qxvj", ownForm}, "/sb/80/x2qxvj/" + ownForm, "/"},
		"/sb/80/" + sig + "/x":           {Ref{ID: "sb", Port: 80}, "/sb/80", "/" + sig + "/x"},
		"/sb/80" + sig + "%2Fx":          {Ref{ID: "sb", Port: 80}, "/sb/80", sig + "%2Fx"},
	} {
		got, err := ParsePath(path)
		if err != nil || got != want {
			t.Errorf("%s = %+v, %v; want %+v", path, got, err, want)
		}
		if u := got.Unsigned(); u.Prefix != "/sb/80" || u.Prefix+u.Rest != path || u.Signed() {
			t.Errorf("%s, unsigned, = %+v", path, u)
		}
	}
	for path, want := range map[string]error{
		"": ErrPath, "/": ErrPath, "/sb": ErrPath, "sb/80/": ErrPath, "//80/": ErrID, "/sb/": ErrPort, "/sb/x": ErrPort, "/sb/080/": ErrPort,
		"/../80/": ErrID, "/%2e%2e/80": ErrID, "/s%62/80": ErrID, "/SB/80": ErrID, "/sb/%38%30/": ErrPort, "/sb//80": ErrPort,
	} {
		if got, err := ParsePath(path); !errors.Is(err, want) {
			t.Errorf("%q = %+v, %v; want %v", path, got, err, want)
		}
	}
}

// A label for a host name has at most 63 characters, whatever the port, for a
// hundred thousand years to come.
func TestSignedLabelFits(t *testing.T) {
	k := testKeys(t, "a")
	const far = 3_155_760_000_000
	if l := len(Label(testID, 65535) + "-" + FormatExpires(far) + "-" + k.Sign(testID, 65535, far)); l > MaxLabel {
		t.Errorf("%d characters", l)
	}
}

// What is written is read back, and nothing else verifies.
func TestSignaturesHoldForOnePortOnly(t *testing.T) {
	for _, active := range []string{"a", ""} {
		k := testKeys(t, active)
		rapid.Check(t, func(t *rapid.T) {
			id := rapid.StringMatching(`[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?`).Draw(t, "id")
			port := rapid.IntRange(1, 65535).Draw(t, "port")
			expires := rapid.Uint64().Draw(t, "expires")
			now := time.Unix(int64(expires>>1), 0)
			sig := k.Sign(id, port, expires)
			ref, err := ParseLabel(Label(id, port) + "-" + FormatExpires(expires) + "-" + sig)
			if err != nil || ref.ID != id || ref.Port != port || !k.Verify(ref, now) {
				t.Fatalf("label read as %+v, %v", ref, err)
			}
			p, err := ParsePath("/" + id + "/" + Label("", port)[1:] + "/" + FormatExpires(expires) + "/" + sig + "/x")
			if err != nil || p.Ref != ref || p.Rest != "/x" {
				t.Fatalf("path read as %+v, %v", p, err)
			}
			cookie := k.Cookie(id, port, FormatExpires(expires))
			if !k.VerifyCookie(id, port, cookie, now) {
				t.Fatal("the cookie does not verify")
			}
			other := ref
			switch rapid.SampledFrom([]string{"id", "port", "expires", "signature", "cookie"}).Draw(t, "changed") {
			case "id":
				other.ID += "0"
			case "port":
				other.Port = other.Port%65535 + 1
			case "expires":
				other.Expires = FormatExpires(expires ^ 1<<63)
			case "signature":
				i := rapid.IntRange(0, len(sig)-1).Draw(t, "at")
				b := []byte(sig)
				b[i] ^= 1
				other.Signature = string(b)
			case "cookie":
				_, other.Signature, _ = strings.Cut(cookie, ".")
			}
			if k.Verify(other, time.Unix(0, 0)) {
				t.Fatalf("%+v verifies for %+v", ref, other)
			}
			if k.VerifyCookie(other.ID, other.Port, FormatExpires(expires)+"."+sig, now) {
				t.Fatal("an address's signature serves as cookie")
			}
		})
	}
}

func testKeys(t testing.TB, active string) *Keys {
	t.Helper()
	secret := make([]byte, MinSecret)
	for i := range secret {
		secret[i] = byte(i)
	}
	short := map[string][]byte{"a": []byte("secret-key-for-tests"), "0": {0x00, 0xff}, "z": []byte("k")}
	if active == "" {
		short = nil
	}
	k, err := New(secret, short, active)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// The signatures were computed by another program, written in Python after
// OpenSandbox ingress and RFC 2104 with hashlib, hmac, struct and base64.
func TestSignatureVectors(t *testing.T) {
	for _, v := range []struct {
		active  string
		id      string
		port    int
		expires uint64
		b36     string
		sig     string
	}{
		{"a", testID, 8080, 1999999999, "x2qxvj", "32ec6d3ba"},
		{"0", testID, 44772, math.MaxUint64, "3w5e11264sgsf", "d589fd7f0"},
		{"z", "sb", 1, 0, "0", "5207c2d7z"},
		{"", testID, 8000, 1999999999, "x2qxvj", "p13hixxoechfsjymmpdqmkz5mizvse5enzkzjmnrduzjlsjwicu7va"},
		{"", testID, 65535, math.MaxUint64, "3w5e11264sgsf", "p1lhzthm4xxejousuyzsilthnrfxpxsjeipuigzrdgpougsp6l6xqq"},
	} {
		k := testKeys(t, v.active)
		if got := k.Sign(v.id, v.port, v.expires); got != v.sig || FormatExpires(v.expires) != v.b36 {
			t.Errorf("%s %d %d: %s %s, want %s %s", v.id, v.port, v.expires, FormatExpires(v.expires), got, v.b36, v.sig)
		}
		ref := Ref{v.id, v.port, v.b36, v.sig}
		at := time.Unix(int64(min(v.expires, math.MaxInt64)), 0)
		if !k.Verify(ref, at) || v.expires < math.MaxInt64 && k.Verify(ref, at.Add(time.Second)) {
			t.Errorf("%+v is valid at the wrong time", ref)
		}
	}
	want := "x2qxvj.p1zzjfd5h7un7ljrt2yq7d3hgdb4j4c3efj3qj5c33wanaqsfpm4mq"
	if got := testKeys(t, "").Cookie(testID, 8000, "x2qxvj"); got != want {
		t.Errorf("cookie %s, want %s", got, want)
	}
}

// Paddock's own signatures verify whether or not there are other keys; the
// protocol's only with its key.
func TestKeys(t *testing.T) {
	with, without := testKeys(t, "a"), testKeys(t, "")
	now := time.Unix(1, 0)
	own := Ref{testID, 80, "x2qxvj", without.Sign(testID, 80, 1999999999)}
	short := Ref{testID, 80, "x2qxvj", with.Sign(testID, 80, 1999999999)}
	if !with.Verify(own, now) || without.Verify(short, now) || !with.Short() || without.Short() {
		t.Error("the kinds of signatures depend on the wrong keys")
	}
	for _, bad := range []struct {
		short  map[string][]byte
		active string
	}{
		{map[string][]byte{"ab": {1}}, "ab"}, {map[string][]byte{"A": {1}}, "A"}, {map[string][]byte{"a": {}}, "a"},
		{map[string][]byte{"a": {1}}, "b"}, {map[string][]byte{"a": {1}}, ""},
	} {
		if _, err := New(make([]byte, MinSecret), bad.short, bad.active); err == nil {
			t.Errorf("%v with %q was taken", bad.short, bad.active)
		}
	}
	if _, err := New(make([]byte, MinSecret-1), nil, ""); err == nil {
		t.Error("a short secret was taken")
	}
	if name, key, err := ParseKey("a=c2VjcmV0"); name != "a" || string(key) != "secret" || err != nil {
		t.Errorf("ParseKey = %q %q %v", name, key, err)
	}
	for _, text := range []string{"", "a", "a=", "=c2VjcmV0", "ab=c2VjcmV0", "A=c2VjcmV0", "a=c2VjcmV"} {
		if _, _, err := ParseKey(text); err == nil || len(text) > 5 && strings.Contains(err.Error(), text[4:]) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{testID + "-80", "sb-80-x2-" + shortForm, "/sb/80/x2/" + ownForm + "/a", "//", "-", "/a/1/0/000000000"} {
		f.Add(s)
	}
	k := testKeys(f, "a")
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := ParseLabel(s); err == nil {
			back := Label(r.ID, r.Port)
			if r.Signed() {
				back += "-" + r.Expires + "-" + r.Signature
			}
			if back != s {
				t.Errorf("%q read as %+v", s, r)
			}
			k.Verify(r, time.Unix(0, 0))
		}
		if p, err := ParsePath(s); err == nil {
			if p.Prefix+p.Rest != s || p.Rest != "" && p.Rest[0] != '/' {
				t.Errorf("%q read as %+v", s, p)
			}
			if u := p.Unsigned(); u.Prefix+u.Rest != s || u.Rest != "" && u.Rest[0] != '/' {
				t.Errorf("%q, unsigned, read as %+v", s, u)
			}
		}
		k.VerifyCookie("sb", 80, s, time.Unix(0, 0))
	})
}

func BenchmarkVerify(b *testing.B) {
	for _, active := range []string{"", "a"} {
		k := testKeys(b, active)
		ref := Ref{testID, 80, "x2qxvj", k.Sign(testID, 80, 1999999999)}
		now := time.Unix(1, 0)
		b.Run("short="+strconv.FormatBool(active != ""), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if !k.Verify(ref, now) {
					b.Fatal("does not verify")
				}
			}
		})
	}
}

// What has expired can be told from what never was, but not of the signatures
// that somebody could guess.
func TestExpired(t *testing.T) {
	own, short := testKeys(t, ""), testKeys(t, "a")
	now := time.Unix(2_000_000_000, 0)
	ref := func(k *Keys, at int64) Ref {
		return Ref{ID: "sb", Port: 80, Expires: FormatExpires(uint64(at)), Signature: k.Sign("sb", 80, uint64(at))}
	}
	if got := own.Expired(ref(own, now.Unix()-1), now); !got.Equal(now.Add(-time.Second)) {
		t.Errorf("expired at %s", got)
	}
	forged := ref(own, now.Unix()-1)
	forged.Port = 81
	for name, r := range map[string]Ref{"valid": ref(own, now.Unix()), "of another port": forged, "unsigned": {ID: "sb", Port: 80}, "short": ref(short, now.Unix()-1)} {
		if got := own.Expired(r, now); !got.IsZero() {
			t.Errorf("%s: expired at %s", name, got)
		}
	}
	if short.Expired(ref(short, now.Unix()-1), now) != (time.Time{}) {
		t.Error("a short signature tells of its time")
	}
	var none *Keys
	for _, c := range []struct {
		k    *Keys
		r    Ref
		want bool
	}{
		{own, ref(own, 1), true}, {own, ref(short, 1), false}, {short, ref(short, 1), true}, {short, ref(own, 1), true}, {none, ref(own, 1), false}, {none, ref(short, 1), false},
	} {
		if got := c.k.Has(c.r); got != c.want {
			t.Errorf("a key for %q: %t", c.r.Signature, got)
		}
	}
}
