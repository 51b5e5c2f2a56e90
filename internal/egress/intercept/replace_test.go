package intercept

import (
	"bytes"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

// reading is a stream in which changes are made.
func reading(from io.Reader, changes []change) io.Reader {
	return &replacing{from: from, r: newPatterns(changes).replacer(nil)}
}

// naiveReplace is what a replacer does, on what is there as a whole.
func naiveReplace(s string, changes []change) string {
	var out strings.Builder
next:
	for len(s) > 0 {
		for _, c := range changes {
			if rest, ok := strings.CutPrefix(s, string(c.from)); ok {
				out.Write(c.to)
				s = rest
				continue next
			}
		}
		out.WriteByte(s[0])
		s = s[1:]
	}
	return out.String()
}

// pieces reads a text in pieces of these sizes.
type pieces struct {
	text  string
	sizes []int
}

func (p *pieces) Read(b []byte) (int, error) {
	if p.text == "" {
		return 0, io.EOF
	}
	n := len(p.text)
	if len(p.sizes) > 0 {
		n, p.sizes = min(n, p.sizes[0]), p.sizes[1:]
	}
	n = copy(b, p.text[:n])
	p.text = p.text[n:]
	return n, nil
}

// However a text is cut, and however patterns overlap, what comes out is what
// replacing in the whole text gives.
func TestReplacerProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		letters := rapid.StringOfN(rapid.SampledFrom([]rune("ab")), 1, 5, -1)
		changes := rapid.Custom(func(t *rapid.T) []change {
			var list []change
			for _, f := range rapid.SliceOfNDistinct(letters, 1, 4, rapid.ID).Draw(t, "from") {
				list = append(list, change{[]byte(f), []byte(rapid.StringOfN(rapid.SampledFrom([]rune("xy")), 0, 3, -1).Draw(t, "to"))})
			}
			return list
		}).Draw(t, "changes")
		if rapid.Bool().Draw(t, "longest first") {
			slices.SortStableFunc(changes, func(a, b change) int { return len(b.from) - len(a.from) })
		}
		text := rapid.StringOfN(rapid.SampledFrom([]rune("abc")), 0, 40, -1).Draw(t, "text")
		sizes := rapid.SliceOfN(rapid.IntRange(1, 7), 0, 40).Draw(t, "sizes")
		got, err := io.ReadAll(reading(&pieces{text, sizes}, changes))
		if want := naiveReplace(text, changes); err != nil || string(got) != want {
			t.Fatalf("%q %v, want %q", got, err, want)
		}
	})
}

// What can't be the beginning of a pattern is not held back.
func TestReplacerHoldsLittle(t *testing.T) {
	pr, pw := io.Pipe()
	r := reading(pr, masking([]string{"secret-value"}))
	go pw.Write([]byte("event: data\n\n"))
	buf := make([]byte, 64)
	if n, err := r.Read(buf); err != nil || string(buf[:n]) != "event: data\n\n" {
		t.Errorf("%q %v", buf[:n], err)
	}
	go func() {
		pw.Write([]byte("x secret-"))
		pw.Write([]byte("value y"))
		pw.CloseWithError(io.ErrUnexpectedEOF)
	}()
	rest, err := io.ReadAll(r)
	if string(rest) != "x ************ y" || err != io.ErrUnexpectedEOF {
		t.Errorf("%q %v", rest, err)
	}
}

func FuzzReplacer(f *testing.F) {
	f.Add("a secret and a sec", "secret", "sec", uint8(3))
	f.Fuzz(func(t *testing.T, text, one, two string, size uint8) {
		if one == "" || two == "" {
			return
		}
		changes := masking([]string{one, two})
		sizes := slices.Repeat([]int{int(size)%9 + 1}, len(text))
		got, err := io.ReadAll(reading(&pieces{text, sizes}, changes))
		if want := naiveReplace(text, changes); err != nil || string(got) != want || len(got) != len(text) {
			t.Errorf("%q %v, want %q", got, err, want)
		}
	})
}

// A body that is made to be slow is not.
func TestReplacerIsLinear(t *testing.T) {
	text := strings.Repeat("aaaaaaab", 1<<17)
	got, err := io.ReadAll(reading(iotest.DataErrReader(bytes.NewReader([]byte(text))), masking([]string{"aaaaaaaa", "aaaaaaac", "baaaaaab"})))
	if err != nil || len(got) != len(text) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}
