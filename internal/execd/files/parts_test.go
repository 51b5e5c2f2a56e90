package files

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

type field struct{ name, content string }

// all reads a whole body.
func all(r io.Reader, boundary string, size int) ([]field, error) {
	p, err := newParts(r, boundary, make([]byte, size))
	if err != nil {
		return nil, err
	}
	var out []field
	for {
		part, err := p.next()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		var b bytes.Buffer
		if _, err := part.WriteTo(&b); err != nil {
			return out, err
		}
		out = append(out, field{part.name, b.String()})
	}
}

// What Go's writer writes is read, however it arrives and whatever it looks
// like.
func TestPartsProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const boundary = "xyzzy"
		piece := rapid.SampledFrom([]string{"a", "\r", "\n", "\r\n", "-", "--", "\r\n--", "\r\n--xyzzy", "\r\n--xyzz", "--xyzzy--", "\r\n--xyzzy-", "\r\n--xyzzy x", "\r\n--xyzzy \t", "\x00", strings.Repeat("z", 300)})
		contents := rapid.SliceOfN(rapid.SliceOf(piece), 0, 4).Draw(t, "contents")
		var body bytes.Buffer
		body.WriteString(rapid.SampledFrom([]string{"", "preamble\r\n", "--xyz\r\n"}).Draw(t, "preamble"))
		w := multipart.NewWriter(&body)
		if err := w.SetBoundary(boundary); err != nil {
			t.Fatal(err)
		}
		var want []field
		for i, pieces := range contents {
			content := strings.Join(pieces, "")
			if hasDelimiter(content, boundary) {
				t.Skip("the content has a delimiter")
			}
			name := fmt.Sprint("n", i)
			pw, err := w.CreateFormFile(name, "f")
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(pw, content)
			want = append(want, field{name, content})
		}
		w.Close()
		body.WriteString(rapid.SampledFrom([]string{"", "epilogue", "\r\n--xyzzy\r\n"}).Draw(t, "epilogue"))
		text := body.Bytes()
		for how, r := range map[string]io.Reader{
			"whole":   bytes.NewReader(text),
			"bytes":   iotest.OneByteReader(bytes.NewReader(text)),
			"halves":  iotest.HalfReader(bytes.NewReader(text)),
			"dataErr": iotest.DataErrReader(bytes.NewReader(text)),
		} {
			got, err := all(r, boundary, 512)
			if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("%s: got %q, %v; want %q\n%q", how, got, err, want, text)
			}
		}
	})
}

// hasDelimiter reports whether content can't be carried with the boundary.
func hasDelimiter(content, boundary string) bool {
	for rest := "\r\n" + content + "\r\n"; ; {
		i := strings.Index(rest, "\r\n--"+boundary)
		if i < 0 {
			return false
		}
		rest = rest[i+4+len(boundary):]
		line, _, ended := strings.Cut(rest, "\n")
		if strings.HasPrefix(rest, "--") || ended && strings.Trim(line, " \t\r") == "" {
			return true
		}
	}
}

func TestPartsForms(t *testing.T) {
	const head = "Content-Disposition: form-data; name=\"a\"\r\n\r\n"
	for name, c := range map[string]struct {
		body string
		want string
		fail string
	}{
		"nothing":            {"", "[]", "EOF"},
		"no boundary":        {"text\r\nmore", "[]", "EOF"},
		"only the end":       {"--B--", "[]", ""},
		"line feeds":         {strings.ReplaceAll("--B\r\n"+head+"x\r\n--B--", "\r\n", "\n"), "[{a x}]", ""},
		"blanks":             {"--B \t\r\n" + head + "x\r\n--B  \r\n" + head + "y\r\n--B--", "[{a x} {a y}]", ""},
		"empty":              {"--B\r\n" + head + "\r\n--B--", "[{a }]", ""},
		"empty without line": {"--B\r\n" + head + "--B--", "[{a }]", ""},
		"no name":            {"--B\r\n\r\nx\r\n--B--", "[{ x}]", ""},
		"lower case":         {"--B\r\ncontent-disposition:form-data;name=a\r\nX: y\r\n\r\nx\r\n--B--", "[{a x}]", ""},
		"cut in the header":  {"--B\r\nContent-Disp", "[]", "colon"},
		"cut in the content": {"--B\r\n" + head + "x", "[]", "EOF"},
		"cut in the end":     {"--B\r\n" + head + "x\r\n--B-", "[]", "EOF"},
		"not a form":         {"--B\r\nContent-Disposition: attachment; name=a\r\n\r\nx\r\n--B--", "[]", "form-data"},
		"header of megabyte": {"--B\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\nx\r\n--B--", "[]", "larger"},
		"many header lines":  {"--B\r\n" + strings.Repeat("X: y\r\n", 10_000) + "\r\nx\r\n--B--", "[]", "larger"},
	} {
		got, err := all(strings.NewReader(c.body), "B", 64<<10)
		failed := err != nil && c.fail != "" && strings.Contains(err.Error(), c.fail)
		if fmt.Sprint(got) != c.want || (err != nil || c.fail != "") && !failed {
			t.Errorf("%s: got %v, %v; want %s, %q", name, got, err, c.want, c.fail)
		}
	}
	if _, err := newParts(nil, strings.Repeat("x", 71), nil); err == nil {
		t.Error("a long boundary was taken")
	}
}

// FuzzParts looks for panics, endless reading, and content that depends on how
// it arrives.
func FuzzParts(f *testing.F) {
	f.Add([]byte("--B\r\nContent-Disposition: form-data; name=a\r\n\r\nx\r\n--B--"), 3)
	f.Add([]byte("--B\n\n\n--B \n\nx\n--Bx\n--B--"), 1)
	f.Fuzz(func(t *testing.T, body []byte, size int) {
		// The limit of a header counts before the buffer's.
		const buffer = maxPartHeader + 4096
		whole, err1 := all(bytes.NewReader(body), "B", buffer)
		pieces, err2 := all(&slow{body, max(1, size&0xff)}, "B", buffer)
		if fmt.Sprint(whole) != fmt.Sprint(pieces) || (err1 == nil) != (err2 == nil) {
			t.Errorf("whole: %q, %v; in pieces: %q, %v", whole, err1, pieces, err2)
		}
	})
}

// slow gives a few bytes at a time.
type slow struct {
	rest []byte
	size int
}

func (s *slow) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), s.size)], s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

func BenchmarkParts(b *testing.B) {
	random := make([]byte, 16<<20)
	rand.NewChaCha8([32]byte{}).Read(random)
	for name, content := range map[string][]byte{
		"random": random,
		"text":   bytes.Repeat([]byte("0123456789\r\nabcdef"), 1<<20),
		"zeros":  make([]byte, 16<<20),
	} {
		b.Run(name, func(b *testing.B) {
			var body bytes.Buffer
			w := multipart.NewWriter(&body)
			p, _ := w.CreateFormFile("file", "f")
			p.Write(content)
			w.Close()
			buf := make([]byte, uploadBuffer)
			b.SetBytes(int64(body.Len()))
			for b.Loop() {
				parts, err := newParts(bytes.NewReader(body.Bytes()), w.Boundary(), buf)
				if err != nil {
					b.Fatal(err)
				}
				part, err := parts.next()
				if err != nil {
					b.Fatal(err)
				}
				if _, err := part.WriteTo(io.Discard); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
