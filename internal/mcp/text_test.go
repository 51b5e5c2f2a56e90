package mcp

import (
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// An excerpt is the whole text when that fits, and otherwise its two ends.
func TestExcerpt(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(2, 64).Draw(t, "limit")
		e := newExcerpt(limit)
		var all []byte
		for _, p := range rapid.SliceOfN(rapid.SliceOfN(rapid.ByteRange('a', 'z'), 0, 100), 0, 10).Draw(t, "writes") {
			if n, err := e.Write(p); n != len(p) || err != nil {
				t.Fatalf("Write = %d, %v", n, err)
			}
			all = append(all, p...)
		}
		got := e.String()
		if len(all) <= limit {
			if got != string(all) || e.cut() != 0 {
				t.Fatalf("got %q, want %q", got, all)
			}
			return
		}
		if e.total != int64(len(all)) || e.cut() != int64(len(all)-limit) {
			t.Fatalf("total %d, cut %d of %d with limit %d", e.total, e.cut(), len(all), limit)
		}
		head, tail := string(all[:limit-limit/2]), string(all[len(all)-limit/2:])
		if !strings.HasPrefix(got, head+"\n[…") || !strings.HasSuffix(got, "…]\n"+tail) {
			t.Fatalf("got %q of %q", got, all)
		}
	})
}

// Whatever bytes come, the text is valid UTF-8, and cuts break no character.
func FuzzExcerpt(f *testing.F) {
	f.Add([]byte("äöü€𝄞"), 5)
	f.Add([]byte{0xff, 0xe2, 0x82}, 2)
	f.Fuzz(func(t *testing.T, b []byte, limit int) {
		e := newExcerpt(2 + min(max(limit, 0), 1000))
		e.Write(b)
		got := e.String()
		if !utf8.ValidString(got) {
			t.Fatalf("%q", got)
		}
		if utf8.Valid(b) && !strings.ContainsRune(string(b), utf8.RuneError) && strings.ContainsRune(got, utf8.RuneError) {
			t.Fatalf("a character was broken: %q of %q", got, b)
		}
	})
}

func TestStripEscapes(t *testing.T) {
	for in, want := range map[string]string{
		"plain": "plain", "\x1b[31mred\x1b[0m!": "red!", "a\x1b[1;2": "a", "\x1b[": "", "x\x1b[2Jy": "xy",
	} {
		if got := stripEscapes(in); got != want {
			t.Errorf("stripEscapes(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestParseMode(t *testing.T) {
	for in, want := range map[string]int{"644": 644, "0755": 755, "1777": 1777, "8": 0, "888": 0, "": 0, "07555": 0, "-44": 0, "000": 0} {
		if got, ok := parseMode(in); int(got) != want && ok || ok != (want != 0) {
			t.Errorf("parseMode(%q) = %d, %v, want %d", in, got, ok, want)
		}
	}
}
