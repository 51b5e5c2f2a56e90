package event

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"math/rand/v2"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"
)

type decoded struct {
	Type      string  `json:"type"`
	Text      string  `json:"text"`
	EOL       *string `json:"eol"`
	Raw       *string `json:"raw"`
	Timestamp int64   `json:"timestamp"`
	Error     *struct {
		EName     string   `json:"ename"`
		EValue    string   `json:"evalue"`
		Traceback []string `json:"traceback"`
	} `json:"error"`
}

func decode(t testing.TB, body string) []decoded {
	t.Helper()
	var all []decoded
	for frame := range strings.SplitSeq(strings.TrimSuffix(body, "\n\n"), "\n\n") {
		data, ok := strings.CutPrefix(frame, "data: ")
		if !ok || strings.Contains(data, "\n") {
			t.Fatalf("bad frame %q", frame)
		}
		var d decoded
		if err := json.Unmarshal([]byte(data), &d); err != nil {
			t.Fatalf("%q: %v", data, err)
		}
		if d.Timestamp == 0 || d.Type == "" {
			t.Fatalf("event without type or timestamp: %q", data)
		}
		all = append(all, d)
	}
	if len(all) > 0 && all[0].Type == "init" {
		if len(all) < 2 || all[1].Type != "ping" || all[1].Text != "pong" {
			t.Fatalf("no ping after init: %.200q", body)
		}
		all = append(all[:1], all[2:]...)
	}
	return all
}

// exact applies the rule of the package comment.
func exact(t testing.TB, d decoded) string {
	text, eol := d.Text, "\n"
	if text == "\n" {
		text = ""
	}
	if d.Raw != nil {
		b, err := base64.StdEncoding.DecodeString(*d.Raw)
		if err != nil {
			t.Fatal(err)
		}
		text = string(b)
	}
	if d.EOL != nil {
		eol = *d.EOL
	}
	return text + eol
}

func TestExactBytes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := httptest.NewRecorder()
		s := Open(w, "id")
		var want [2]bytes.Buffer
		for range rapid.IntRange(0, 20).Draw(rt, "chunks") {
			i := rapid.IntRange(0, 1).Draw(rt, "stream")
			p := rapid.SliceOfN(rapid.SampledFrom([]byte("ab\n\n\r\x00\x85\xe2\x80\xa8\xff\"\\")), 0, 12).Draw(rt, "bytes")
			s.Output([]string{Stdout, Stderr}[i], p)
			want[i].Write(p)
			if rapid.Bool().Draw(rt, "pause") {
				s.mu.Lock()
				s.emit(func(emit [2]emitter) {
					s.out[i].flushProgress(emit[i])
					if rapid.Bool().Draw(rt, "long") {
						s.out[i].flush(emit[i])
					}
				})
				s.mu.Unlock()
			}
		}
		s.Complete(time.Second)
		s.Error("late", "dropped")
		s.Output(Stdout, []byte("late\n"))
		events := decode(t, w.Body.String())
		if events[0].Type != "init" || events[0].Text != "id" || events[len(events)-1].Type != "execution_complete" {
			rt.Fatalf("wrong frame: %+v", events)
		}
		var got [2]bytes.Buffer
		for _, d := range events[1 : len(events)-1] {
			if !utf8.ValidString(d.Text) || d.Text == "" {
				rt.Fatalf("text %q", d.Text)
			}
			got[which(d.Type)].WriteString(exact(t, d))
		}
		for i := range want {
			if want[i].String() != got[i].String() {
				rt.Fatalf("stream %d: wrote %q, events give %q", i, want[i].String(), got[i].String())
			}
		}
	})
}

func TestConvention(t *testing.T) {
	for in, want := range map[string][]string{
		"a\n\nb\n\n\nc\n": {"a", "\n", "b", "\n", "\n", "c"},
		"\nx":             {"\n", "x"},
		"a\r\n\r\nb\r\n":  {"a", "\n", "b"},
		"10%\r20%\rdone\n": {
			"10%\r20%\rdone"},
		"é\xff": {"é\ufffd"},
	} {
		w := httptest.NewRecorder()
		s := Open(w, "id")
		s.Output(Stdout, []byte(in))
		s.Complete(0)
		var got []string
		for _, d := range decode(t, w.Body.String()) {
			if d.Type == Stdout {
				got = append(got, d.Text)
			}
		}
		if strings.Join(got, "|") != strings.Join(want, "|") {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestPauseSendsUnfinishedLine(t *testing.T) {
	w := httptest.NewRecorder()
	s := Open(w, "id")
	s.Output(Stdout, []byte("name? "))
	// Awaited, not timed: the timer's own work empties pending.
	for {
		s.mu.Lock()
		sent := len(s.out[0].pending) == 0
		s.mu.Unlock()
		if sent {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	s.mu.Lock()
	events := decode(t, w.Body.String())
	s.mu.Unlock()
	if d := events[len(events)-1]; d.Text != "name? " || d.EOL == nil || *d.EOL != "" {
		t.Errorf("got %+v", d)
	}
	s.Error(ExecError, "3", "exit status 3")
	events = decode(t, w.Body.String())
	if d := events[len(events)-1]; d.Error == nil || d.Error.EValue != "3" || d.Error.Traceback[0] != "exit status 3" {
		t.Errorf("got %+v", d)
	}
}

func TestLongLines(t *testing.T) {
	w := httptest.NewRecorder()
	s := Open(w, "id")
	long := strings.Repeat("é", maxLine/2+100)
	s.Output(Stdout, []byte(long+"\n"))
	s.Output(Stdout, []byte("short\n"))
	s.Complete(0)
	var texts []string
	for _, d := range decode(t, w.Body.String()) {
		if d.Type == Stdout {
			texts = append(texts, d.Text)
			if len(d.Text) > maxLine || d.Raw != nil {
				t.Errorf("an event of %d bytes, raw %v", len(d.Text), d.Raw != nil)
			}
		}
	}
	if len(texts) != 3 || texts[0]+texts[1] != long || texts[2] != "short" {
		t.Errorf("%d texts", len(texts))
	}
	if held.Load() != 0 {
		t.Errorf("%d bytes still held", held.Load())
	}

	// Without memory for long lines they are cut earlier.
	held.Store(maxHeld)
	defer held.Store(0)
	w = httptest.NewRecorder()
	s = Open(w, "id")
	s.Output(Stdout, bytes.Repeat([]byte("x"), 3*minLine))
	s.Complete(0)
	if n := len(decode(t, w.Body.String())); n != 5 {
		t.Errorf("%d events, want init, 3 parts and the end", n)
	}
	if held.Load() != maxHeld {
		t.Errorf("%d bytes held, want %d", held.Load(), maxHeld)
	}
}

func FuzzEncode(f *testing.F) {
	f.Add([]byte("a\"\\\x00\x7f\xc2\x85\xe2\x80\xa8\xff\xed\xa0\x80"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := appendString(nil, b)
		var s string
		if err := json.Unmarshal(got, &s); err != nil {
			t.Fatalf("%q: %v", got, err)
		}
		if want := strings.ToValidUTF8(string(b), "\ufffd"); !utf8.Valid(b) {
			// One replacement per bad byte, as encoding/json has it.
			if strings.ReplaceAll(s, "\ufffd", "") != strings.ReplaceAll(want, "\ufffd", "") {
				t.Errorf("%q became %q", b, s)
			}
		} else if s != string(b) {
			t.Errorf("%q became %q", b, s)
		}
		for _, r := range string(got) {
			if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 {
				t.Errorf("a line break in %q", got)
			}
		}
	})
}

func BenchmarkOutput(b *testing.B) {
	chunk := bytes.Repeat([]byte("some ordinary line of output, sixty characters in all.....\n"), 1000)
	b.SetBytes(int64(len(chunk)))
	s := Open(&discard{httptest.NewRecorder()}, "id")
	for b.Loop() {
		s.Output(Stdout, chunk)
	}
}

type discard struct{ *httptest.ResponseRecorder }

func (d *discard) Write(p []byte) (int, error) { return len(p), nil }

// Binary output has a line end in each 256 bytes, and half of its bytes are not
// UTF-8.
func BenchmarkBinaryOutput(b *testing.B) {
	chunk := make([]byte, 64<<10)
	rand.NewChaCha8([32]byte{}).Read(chunk)
	b.SetBytes(int64(len(chunk)))
	s := Open(&discard{httptest.NewRecorder()}, "id")
	for b.Loop() {
		s.Output(Stdout, chunk)
	}
}
