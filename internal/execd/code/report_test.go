package code

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestReports(t *testing.T) {
	long := strings.Repeat("x", maxReport)
	for _, c := range []struct {
		name, in string
		// kinds are the reports, "long" stands for one that was too long.
		kinds string
	}{
		{"one", `{"t":"busy","n":1}` + "\n", "busy"},
		{"no end", `{"t":"busy","n":1}`, ""},
		{"two", `{"t":"busy"}` + "\n" + `{"t":"done"}` + "\n", "busy done"},
		{"unknown", `{"t":"other"}` + "\n\n[]\nnull\n5\n", ""},
		{"no data", `{"t":"result","data":{}}` + "\n" + `{"t":"display"}` + "\n", ""},
		{"wrong types", `{"t":"done","n":-1}` + "\n" + `{"t":"error","traceback":"x"}` + "\n", ""},
		{"long", long + long + "\n" + `{"t":"done"}` + "\n", "long done"},
		{"error", `{"t":"error","ename":"E"}` + "\n", "error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, size := range []int{1, 7, 1 << 16} {
				if len(c.in) > 1000 && size < 1000 {
					continue
				}
				var kinds []string
				r := reportReader{
					take:    func(rep report) { kinds = append(kinds, rep.Kind) },
					tooLong: func() { kinds = append(kinds, "long") },
				}
				for rest := []byte(c.in); len(rest) > 0; {
					n := min(size, len(rest))
					r.feed(rest[:n])
					rest = rest[n:]
				}
				if got := strings.Join(kinds, " "); got != c.kinds {
					t.Errorf("in pieces of %d: %q; want %q", size, got, c.kinds)
				}
			}
		})
	}
}

// TestReportPieces: how the bytes arrive makes no difference.
func TestReportPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lines := rapid.SliceOf(rapid.SampledFrom([]string{
			`{"t":"busy","n":3}`, `{"t":"done","n":3,"count":7}`, "", "junk", `{"t":"error","ename":"é"}`,
			`{"t":"display","data":{"text/plain":"` + strings.Repeat("y", 300) + `"}}`,
		})).Draw(t, "lines")
		text := []byte(strings.Join(lines, "\n") + "\n")
		read := func(cuts []int) string {
			var out strings.Builder
			r := reportReader{take: func(rep report) { fmt.Fprintf(&out, "%s/%d/%d/%s ", rep.Kind, rep.Run, rep.Count, rep.Name) }}
			rest := text
			for _, n := range cuts {
				n = min(n, len(rest))
				r.feed(rest[:n])
				rest = rest[n:]
			}
			r.feed(rest)
			return out.String()
		}
		cuts := rapid.SliceOf(rapid.IntRange(0, 40)).Draw(t, "cuts")
		if whole, parts := read(nil), read(cuts); whole != parts {
			t.Fatalf("in one piece %q, in parts %q", whole, parts)
		}
	})
}

func TestErrorsAreBounded(t *testing.T) {
	rep := report{Kind: reportError, Name: strings.Repeat("é", 10000), Value: strings.Repeat("é", 1<<20)}
	for range 100000 {
		rep.Traceback = append(rep.Traceback, strings.Repeat("z", 100))
	}
	rep.bound()
	size := len(rep.Name) + len(rep.Value)
	for _, l := range rep.Traceback {
		size += len(l)
	}
	if size > 6*maxErrorText || len(rep.Traceback) > maxErrorLines+1 {
		t.Errorf("an error of %d bytes and %d lines", size, len(rep.Traceback))
	}
}

// FuzzReports feeds a driver's channel, which the user's code can write to, with
// anything.
func FuzzReports(f *testing.F) {
	for _, s := range []string{
		"", "\n", `{"t":"ready"}` + "\n", `{"t":"result","n":1,"data":{"text/plain":"x","application/json":{"a":[1]}}}` + "\n",
		`{"t":"error","ename":"E","evalue":"v","traceback":["a","b"]}` + "\n", strings.Repeat("[", 20000) + "\n",
		`{"t":"done","n":18446744073709551615,"count":-1,"code":9223372036854775807}` + "\n", "\xff\xfe\n", `{"t":"done","t":"busy"}` + "\n",
	} {
		f.Add([]byte(s), 3)
	}
	f.Fuzz(func(t *testing.T, text []byte, size int) {
		size = min(max(size, 1), 1<<16)
		taken := 0
		r := reportReader{
			take: func(rep report) {
				taken++
				switch rep.Kind {
				case reportDisplay, reportResult:
					if len(rep.Data) == 0 {
						t.Error("a result without data")
					}
				case reportError:
					if rep.Name == "" || len(rep.Value) > maxErrorText+8 || len(rep.Traceback) > maxErrorLines+1 {
						t.Error("an error that is not bounded")
					}
				case reportReady, reportBusy, reportDone:
				default:
					t.Errorf("kind %q", rep.Kind)
				}
			},
			tooLong: func() { t.Error("too long") },
		}
		for rest := text; len(rest) > 0; {
			n := min(size, len(rest))
			r.feed(rest[:n])
			rest = rest[n:]
			if cap(r.line) > 2*maxReport {
				t.Errorf("a buffer of %d bytes", cap(r.line))
			}
		}
		if lines := bytes.Count(text, []byte("\n")); taken > lines {
			t.Errorf("%d reports from %d lines", taken, lines)
		}
	})
}
