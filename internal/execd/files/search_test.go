package files

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func searched(t *testing.T, body string) map[string]Info {
	t.Helper()
	var list []Info
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	out := map[string]Info{}
	for _, i := range list {
		out[filepath.Base(i.Path)] = i
	}
	return out
}

func TestSearchByContent(t *testing.T) {
	s, dir := server(t)
	long := strings.Repeat("é", 100_000)
	for name, content := range map[string]string{
		"plain.txt":  "first\nthe needle is here\r\nand\nneedle needle\n",
		"none.txt":   "nothing\n",
		"empty.txt":  "",
		"binary.txt": "needle\x00",
		"late.txt":   "needle\n" + strings.Repeat("x", 20_000) + "\x00needle",
		"many.txt":   strings.Repeat("needle\n", 30),
		"long.txt":   "a\n" + long + "needle" + long + "\nneedle",
		"other.go":   "needle\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	os.Symlink("plain.txt", filepath.Join(dir, "link.txt"))
	unix.Mkfifo(filepath.Join(dir, "fifo.txt"), 0o644)
	// A hole without end after some text: the disk's size, not its use.
	os.WriteFile(filepath.Join(dir, "sparse.txt"), []byte("needle\n"+strings.Repeat("y", 9000)), 0o644)
	os.Truncate(filepath.Join(dir, "sparse.txt"), 1<<40)

	found := searched(t, do(t, s, "GET", "/files/search?path=.&pattern=*.txt&content=needle", "", 200, ""))
	if len(found) != 5 {
		t.Errorf("found %d files: %v", len(found), found)
	}
	if got, want := fmt.Sprint(found["plain.txt"].Matches), "[{2 the needle is here} {4 needle needle}]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if i := found["many.txt"]; len(i.Matches) != 20 || !i.Truncated || i.Matches[19].Line != 20 {
		t.Errorf("many: %+v", i)
	}
	for _, name := range []string{"late.txt", "sparse.txt"} {
		if i := found[name]; len(i.Matches) != 1 || !i.Truncated {
			t.Errorf("%s: %+v", name, i)
		}
	}
	i := found["long.txt"]
	if len(i.Matches) != 2 || i.Matches[0].Line != 2 || i.Matches[1].Line != 3 || i.Truncated {
		t.Fatalf("long: %+v", i)
	}
	if text := i.Matches[0].Text; len(text) > maxShown || !strings.Contains(text, "éneedleé") || strings.Contains(text, "\ufffd") {
		t.Errorf("long: %q", text)
	}
	if found := searched(t, do(t, s, "GET", "/files/search?path=.&content=needle&max_matches=1000", "", 200, "")); len(found) != 6 || len(found["many.txt"].Matches) != 30 || found["many.txt"].Truncated {
		t.Errorf("all: %v", found)
	}
	do(t, s, "GET", "/files/search?path=plain.txt&content=needle", "", 200, `"line":4`)
	do(t, s, "GET", "/files/search?path=.&content=no+such+text", "", 200, "[]")
	for query, want := range map[string]string{
		"content=":                             "empty",
		"content=a%0Ab":                        "line end",
		"content=" + strings.Repeat("x", 5000): "5000",
		"content=a&max_matches=0":              "max_matches",
		"content=a&max_matches=1001":           "1000",
		"content=a&pattern=%5B":                "pattern",
	} {
		do(t, s, "GET", "/files/search?path=.&"+query, "", 400, want)
	}
}

// Searching in windows equals searching line by line in memory.
func TestContentProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := strings.Join(rapid.SliceOf(rapid.SampledFrom([]string{"a", "b", "ab", "\n", "\r\n", "aab", strings.Repeat("b", 40)})).Draw(t, "text"), "")
		n := &needle{text: []byte(rapid.SampledFrom([]string{"a", "ab", "aab", "bba"}).Draw(t, "needle")), most: 1000}
		got, err := n.in(context.Background(), strings.NewReader(text), make([]byte, 64))
		if err != nil {
			t.Fatal(err)
		}
		var want, lines []int
		for i, line := range strings.Split(text, "\n") {
			if strings.Contains(line, string(n.text)) {
				want = append(want, i+1)
			}
		}
		for _, m := range got.matches {
			lines = append(lines, m.Line)
		}
		if fmt.Sprint(lines) != fmt.Sprint(want) || got.truncated {
			t.Fatalf("%q in %q: lines %v, want %v", n.text, text, lines, want)
		}
	})
}

func FuzzContent(f *testing.F) {
	f.Add([]byte("a\nb needle\n\xff\x00"), "needle")
	f.Fuzz(func(t *testing.T, text []byte, what string) {
		if what == "" || len(what) > 50 || strings.ContainsAny(what, "\n\x00") {
			return
		}
		n := &needle{text: []byte(what), most: 3}
		found, err := n.in(context.Background(), bytes.NewReader(text), make([]byte, 64))
		if err != nil || len(found.matches) > 3 {
			t.Errorf("%+v, %v", found, err)
		}
	})
}

// Names that are not UTF-8 are shown, can be told apart, and can be used.
func TestNamesThatAreNotUTF8(t *testing.T) {
	s, dir := server(t)
	names := []string{"a\xff", "a\xfe"}
	for _, n := range names {
		if err := os.WriteFile(filepath.Join(dir, n), []byte("text of "+n), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, route := range []string{"/directories/list?path=.", "/files/search?path=.", "/files/search?path=.&content=text"} {
		var list []Info
		json.Unmarshal([]byte(do(t, s, "GET", route, "", 200, "")), &list)
		if len(list) != 2 {
			t.Fatalf("%s: %+v", route, list)
		}
		for i, n := range []string{"a\xfe", "a\xff"} {
			raw, _ := base64.StdEncoding.DecodeString(list[i].Raw)
			if list[i].Path != filepath.Join(dir, "a\ufffd") || string(raw) != filepath.Join(dir, n) {
				t.Errorf("%s: %+v", route, list[i])
			}
		}
	}
	query := url.Values{"path": {names[0]}}.Encode()
	do(t, s, "GET", "/files/download?"+query, "", 200, "text of a\xff")
	do(t, s, "GET", "/files/info?"+query, "", 200, base64.StdEncoding.EncodeToString([]byte(filepath.Join(dir, names[0]))))
	do(t, s, "GET", "/files/info?"+url.Values{"path": names}.Encode(), "", 400, "request of its own")
	do(t, s, "DELETE", "/files?"+query, "", 200, "")
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("%v are left", left)
	}
	// A body would name another file.
	for _, path := range []string{"a\xff", `a\udcff`, `\ud800`, `\ud800\u0041`} {
		do(t, s, "POST", "/files/mv", `[{"src":"`+path+`","dest":"x"}]`, 400, "Unicode")
		do(t, s, "POST", "/directories", `{"`+path+`":{}}`, 400, "Unicode")
		if status, b := send(t, s, "metadata", `{"path":"`+path+`"}`, "file", "x"); status != 400 || !strings.Contains(b, "Unicode") {
			t.Errorf("upload to %q: %d %s", path, status, b)
		}
	}
	do(t, s, "POST", "/directories", `{"😀\ud83d\ude00\\udcff":{}}`, 200, "")
	do(t, s, "GET", "/files/info?path="+url.QueryEscape(`😀😀\udcff`), "", 200, "directory")
}

func TestSpecialFiles(t *testing.T) {
	s, dir := server(t)
	unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644)
	l, err := net.Listen("unix", filepath.Join(dir, "sock"))
	if err != nil {
		t.Skip("the directory's name is too long for a socket")
	}
	defer l.Close()
	if os.Geteuid() == 0 {
		unix.Mknod(filepath.Join(dir, "dev"), unix.S_IFCHR|0o644, int(unix.Mkdev(1, 3)))
	}
	os.Chtimes(filepath.Join(dir, "fifo"), at(unix.StatxTimestamp{Sec: 1}), at(unix.StatxTimestamp{Sec: 1 << 33}))
	for name, i := range searched(t, do(t, s, "GET", "/directories/list?path=.", "", 200, "")) {
		if i.Type != "other" {
			t.Errorf("%s: %+v", name, i)
		}
		do(t, s, "GET", "/files/download?path="+name, "", 400, "not a regular file")
		do(t, s, "POST", "/files/replace", `{"`+name+`":{"old":"a","new":"b"}}`, 400, "not a regular file")
	}
	for _, sec := range []int64{1 << 62, -1 << 62, 253402300799} {
		if _, err := json.Marshal(at(unix.StatxTimestamp{Sec: sec})); err != nil {
			t.Error(err)
		}
	}
}
