package session

import (
	"slices"
	"strings"
	"testing"
)

// FuzzReport feeds a report in two parts: what a hostile shell may write.
func FuzzReport(f *testing.F) {
	f.Add([]byte("1\x000\x00/\x00umask 0022\n\x00"), 3)
	f.Add([]byte("\x00\x00\x00\x00\x00"), 2)
	f.Add([]byte("99999999999999999999\x00-\x00\x00x"), 0)
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		var results, states int
		r := &reportReader{
			result: func(r result) {
				results++
				if len(r.code) > maxField || len(r.cwd) > maxField || strings.Contains(r.cwd, "\x00") {
					t.Errorf("bad result %+v", r)
				}
			},
			state: func(_ uint64, text string) {
				states++
				if len(text) > maxState {
					t.Errorf("a state of %d bytes", len(text))
				}
			},
		}
		cut = min(max(cut, 0), len(data))
		r.read(data[:cut])
		r.read(data[cut:])
		fields := strings.Count(string(data), "\x00")
		if states != fields/reportFields || results != (fields+1)/reportFields {
			t.Errorf("%d fields gave %d results and %d states", fields, results, states)
		}
	})
}

func TestReportTooLong(t *testing.T) {
	var got []any
	r := &reportReader{
		result: func(r result) { got = append(got, r) },
		state:  func(_ uint64, text string) { got = append(got, len(text)) },
	}
	for _, size := range []int{maxField + 1, maxState + 1, 5} {
		r.read([]byte("7\x003\x00" + strings.Repeat("d", min(size, maxField+1)) + "\x00"))
		r.read([]byte(strings.Repeat("s", size)))
		r.read([]byte("\x00"))
	}
	want := []any{result{7, "3", ""}, maxField + 1, result{7, "3", ""}, 0, result{7, "3", "ddddd"}, 5}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestQuote(t *testing.T) {
	for in, want := range map[string]string{"": "''", "a b": "'a b'", "it's": `'it'\''s'`} {
		if got := quote(in); got != want {
			t.Errorf("quote(%q) = %s", in, got)
		}
	}
}

func TestBudget(t *testing.T) {
	b := &budget{}
	if !b.replace(0, maxStates) || b.replace(0, 1) || !b.replace(10, 10) || !b.replace(5, 2) || !b.replace(0, 3) {
		t.Error("the budget is wrong")
	}
	if n := b.used.Load(); n != maxStates {
		t.Errorf("%d bytes are used", n)
	}
}
