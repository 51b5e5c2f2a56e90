package files

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
)

// server serves the routes on a directory of its own.
func server(t *testing.T) (*httptest.Server, string) {
	t.Helper()
	dir := t.TempDir()
	return serve(t, dir), dir
}

func serve(t *testing.T, dir string) *httptest.Server {
	g := guest.New(map[string]string{"HOME": dir, "WHERE": dir}, account.Identity{Home: dir}, dir)
	mux := http.NewServeMux()
	New(func() *guest.Guest { return g }).Routes(mux)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// do sends a request and checks its status and, for errors, its code.
func do(t *testing.T, s *httptest.Server, method, path, body string, status int, want string) string {
	t.Helper()
	req, err := http.NewRequest(method, s.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != status || !strings.Contains(string(b), want) {
		t.Errorf("%s %s: got status %d and %q, want %d and %q in it", method, path, resp.StatusCode, b, status, want)
	}
	return string(b)
}

func send(t *testing.T, s *httptest.Server, parts ...string) (int, string) {
	t.Helper()
	return post(t, s.URL+"/files/upload", parts...)
}

// post uploads parts, which are names and contents in turn.
func post(t *testing.T, url string, parts ...string) (int, string) {
	t.Helper()
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	for i := 0; i+1 < len(parts); i += 2 {
		p, err := w.CreateFormFile(parts[i], parts[i])
		if err != nil {
			t.Error(err)
			return 0, ""
		}
		io.WriteString(p, parts[i+1])
	}
	w.Close()
	resp, err := http.Post(url, w.FormDataContentType(), &body)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestUpload(t *testing.T) {
	s, dir := server(t)
	if status, b := send(t, s, "metadata", `{"path":"a/b/one.txt","mode":600}`, "file", "first", "metadata", `{"path":"$WHERE/two","mode":null}`, "file", ""); status != http.StatusOK {
		t.Fatalf("got status %d: %s", status, b)
	}
	if got := read(t, filepath.Join(dir, "a/b/one.txt")); got != "first" {
		t.Errorf("got content %q", got)
	}
	st, _ := os.Stat(filepath.Join(dir, "a/b/one.txt"))
	if st.Mode().Perm() != 0o600 {
		t.Errorf("got mode %v, want 0600", st.Mode())
	}
	for name, c := range map[string]struct {
		parts []string
		code  string
	}{
		"no metadata":     {[]string{"file", "x"}, "INVALID_FILE_METADATA"},
		"no file":         {[]string{"metadata", `{"path":"x"}`}, "INVALID_FILE_CONTENT"},
		"not JSON":        {[]string{"metadata", `{`, "file", "x"}, "INVALID_FILE_METADATA"},
		"no path":         {[]string{"metadata", `{}`, "file", "x"}, "INVALID_FILE_METADATA"},
		"NUL in the path": {[]string{"metadata", `{"path":"a\u0000b"}`, "file", "x"}, "INVALID_FILE_METADATA"},
		"mode 888":        {[]string{"metadata", `{"path":"x","mode":888}`, "file", "x"}, "INVALID_FILE_METADATA"},
		"other part":      {[]string{"metadata", `{"path":"x"}`, "other", "x"}, "INVALID_FILE"},
		"nothing":         {nil, "INVALID_FILE"},
	} {
		if status, b := send(t, s, c.parts...); status != http.StatusBadRequest || !strings.Contains(b, `"`+c.code+`"`) {
			t.Errorf("%s: got status %d and %s, want 400 and %s", name, status, b, c.code)
		}
	}
	if status, b := send(t, s, "metadata", `{"path":"a"}`, "file", "x"); status != http.StatusInternalServerError || !strings.Contains(b, "is a directory") {
		t.Errorf("onto a directory: got status %d and %s", status, b)
	}
	left, _ := filepath.Glob(filepath.Join(dir, ".upload-*"))
	if len(left) > 0 {
		t.Errorf("temporary files are left: %v", left)
	}
}

// An upload that ends early must leave the old content.
func TestUploadCutOff(t *testing.T) {
	s, dir := server(t)
	target := filepath.Join(dir, "kept")
	os.WriteFile(target, []byte("old"), 0o640)
	body := "--B\r\nContent-Disposition: form-data; name=\"metadata\"; filename=\"m\"\r\n\r\n{\"path\":\"kept\"}\r\n" +
		"--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\nnew but not compl"
	resp, err := http.Post(s.URL+"/files/upload", "multipart/form-data; boundary=B", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusBadRequest || read(t, target) != "old" {
		t.Errorf("got status %d and content %q, want 400 and the old content", resp.StatusCode, read(t, target))
	}
}

func TestUploadKeepsWhatIsThere(t *testing.T) {
	s, dir := server(t)
	os.WriteFile(filepath.Join(dir, "real"), []byte("old"), 0o751)
	os.Symlink("real", filepath.Join(dir, "link"))
	os.Symlink("missing", filepath.Join(dir, "dangling"))
	os.Symlink("loop", filepath.Join(dir, "loop"))
	for _, name := range []string{"link", "dangling"} {
		if status, b := send(t, s, "metadata", `{"path":"`+name+`"}`, "file", "new"); status != http.StatusOK {
			t.Fatalf("%s: got status %d: %s", name, status, b)
		}
	}
	st, _ := os.Lstat(filepath.Join(dir, "real"))
	if read(t, filepath.Join(dir, "real")) != "new" || st.Mode().Perm() != 0o751 {
		t.Errorf("through the link: content %q, mode %v", read(t, filepath.Join(dir, "real")), st.Mode())
	}
	if read(t, filepath.Join(dir, "missing")) != "new" {
		t.Error("a dangling link was not written through")
	}
	if st, _ := os.Lstat(filepath.Join(dir, "link")); st.Mode()&os.ModeSymlink == 0 {
		t.Error("the link was replaced")
	}
	if status, _ := send(t, s, "metadata", `{"path":"loop"}`, "file", "x"); status != http.StatusInternalServerError {
		t.Errorf("a loop of links: got status %d", status)
	}
}

func TestInfoAndList(t *testing.T) {
	s, dir := server(t)
	os.MkdirAll(filepath.Join(dir, "d/e"), 0o755)
	os.WriteFile(filepath.Join(dir, "d/f"), []byte("12345"), 0o640)
	os.Symlink("f", filepath.Join(dir, "d/l"))
	os.WriteFile(filepath.Join(dir, "d/e/deep"), nil, 0o644)

	var info map[string]Info
	json.Unmarshal([]byte(do(t, s, "GET", "/files/info?path=d/f&path=d/l", "", 200, "")), &info)
	if f := info["d/f"]; f.Type != "file" || f.Size != 5 || f.Mode != 640 || f.Owner != "root" || f.Path != filepath.Join(dir, "d/f") {
		t.Errorf("got %+v", f)
	}
	if info["d/l"].Type != "symlink" {
		t.Errorf("got %+v", info["d/l"])
	}
	do(t, s, "GET", "/files/info", "", 200, "{}")
	do(t, s, "GET", "/files/info?path=none", "", 404, "no such file or directory")

	listed := func(query string) string {
		var l []Info
		json.Unmarshal([]byte(do(t, s, "GET", "/directories/list?path=d"+query, "", 200, "")), &l)
		var names []string
		for _, i := range l {
			rel, _ := filepath.Rel(filepath.Join(dir, "d"), i.Path)
			names = append(names, rel)
		}
		return strings.Join(names, " ")
	}
	for query, want := range map[string]string{"": "e f l", "&depth=0": "", "&depth=2": "e e/deep f l"} {
		if got := listed(query); got != want {
			t.Errorf("list %q: got %q, want %q", query, got, want)
		}
	}
	do(t, s, "GET", "/directories/list?path=d&depth=-1", "", 400, "depth")
	do(t, s, "GET", "/directories/list?path=d/f", "", 400, "not a directory")
	do(t, s, "GET", "/directories/list?path=none", "", 404, "FILE_NOT_FOUND")
	do(t, s, "GET", "/directories/list", "", 400, "MISSING_QUERY")
	do(t, s, "GET", "/directories/list?path=$UNSET/x", "", 500, "RUNTIME_ERROR")

	do(t, s, "GET", "/files/search?path=d&pattern=d*p", "", 200, "e/deep")
	do(t, s, "GET", "/files/search?path=d&pattern=e", "", 200, "[]")
	do(t, s, "GET", "/files/search?path=d&pattern=%5B", "", 400, "pattern")
	do(t, s, "GET", "/files/search?path=none", "", 404, "")
}

func TestChanges(t *testing.T) {
	s, dir := server(t)
	do(t, s, "POST", "/directories", `{"x/y":{"mode":1777}}`, 200, "")
	if st, err := os.Stat(filepath.Join(dir, "x/y")); err != nil || st.Mode().Perm() != 0o777 || st.Mode()&os.ModeSticky == 0 {
		t.Errorf("got %v, %v", st, err)
	}
	os.WriteFile(filepath.Join(dir, "f"), []byte("one two one"), 0o644)
	do(t, s, "POST", "/directories", `{"f/g":{"mode":755}}`, 500, "not a directory")
	do(t, s, "POST", "/files/permissions", `{"f":{"mode":600,"owner":"nobody"}}`, 200, "")
	do(t, s, "POST", "/files/permissions", `{"f":{"mode":600,"owner":"nosuchuser"}}`, 500, "nosuchuser")
	do(t, s, "POST", "/files/permissions", `{"f":{"mode":"x"}}`, 400, "mode")
	do(t, s, "POST", "/files/permissions", `{"none":{"mode":600}}`, 404, "")
	do(t, s, "POST", "/files/replace?verbose=maybe", `{"f":{"old":"one","new":"two"}}`, 400, "verbose")
	do(t, s, "POST", "/files/replace?verbose=true", `{"f":{"old":"one","new":"three"}}`, 200, `"replacedCount":2`)
	do(t, s, "POST", "/files/replace", `{"f":{"old":"","new":"x"}}`, 400, "old")
	do(t, s, "POST", "/files/replace", `{"none":{"old":"a","new":"x"}}`, 404, "")
	if got := read(t, filepath.Join(dir, "f")); got != "three two three" {
		t.Errorf("got %q", got)
	}
	do(t, s, "POST", "/files/mv", `[{"src":"f","dest":"new/place"}]`, 200, "")
	os.WriteFile(filepath.Join(dir, "g"), nil, 0o644)
	do(t, s, "POST", "/files/mv", `[{"src":"g","dest":"new/place"}]`, 500, "file exists")
	do(t, s, "POST", "/files/mv", `[{"src":"none","dest":"z"}]`, 404, "FILE_NOT_FOUND")
	do(t, s, "DELETE", "/files?path=x", "", 500, "is a directory")
	do(t, s, "DELETE", "/files?path=g&path=none", "", 200, "")
	do(t, s, "DELETE", "/directories?path=x&path=none", "", 200, "")
	if _, err := os.Stat(filepath.Join(dir, "x")); !os.IsNotExist(err) {
		t.Error("the directory is still there")
	}
}

func TestDownload(t *testing.T) {
	s, dir := server(t)
	os.WriteFile(filepath.Join(dir, "t"), []byte("one\r\ntwo\nthree"), 0o644)
	os.WriteFile(filepath.Join(dir, "naïve\".txt"), []byte("x"), 0o644)
	for _, c := range []struct {
		query, rng string
		status     int
		want       string
	}{
		{"t", "", 200, "one\r\ntwo\nthree"},
		{"t", "bytes=0-2", 206, "one"}, {"t", "bytes=9-", 206, "three"}, {"t", "bytes=-2", 206, "ee"},
		{"t", "bytes=0-1,4-5", 206, "on"}, {"t", "bytes=5-1000", 206, "two\nthree"},
		{"t", "bytes=14-", 416, "UNKNOWN"}, {"t", "lines=1", 416, "UNKNOWN"}, {"t", "bytes=b-a", 416, "UNKNOWN"},
		{"t&offset=2", "", 200, "two\nthree"}, {"t&offset=1&limit=2", "", 200, "one\ntwo"}, {"t&limit=0", "", 400, "limit"},
		{"t&offset=9", "", 200, ""}, {"t&limit=1", "bytes=0-1", 400, "Range"},
		{"none", "", 404, "no such file or directory"}, {".", "", 400, "is a directory"}, {"/dev/zero", "", 400, "regular"},
	} {
		req, _ := http.NewRequest("GET", s.URL+"/files/download?path="+c.query, nil)
		if c.rng != "" {
			req.Header.Set("Range", c.rng)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		exact := resp.StatusCode < 300 && string(b) != c.want
		if resp.StatusCode != c.status || exact || !strings.Contains(string(b), c.want) {
			t.Errorf("%s %s: got status %d and %q, want %d and %q", c.query, c.rng, resp.StatusCode, b, c.status, c.want)
		}
	}
	resp, err := http.Get(s.URL + "/files/download?path=" + url.QueryEscape("naïve\".txt"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if want := `attachment; filename="na%C3%AFve%22.txt"; filename*=UTF-8''na%C3%AFve%22.txt`; resp.Header.Get("Content-Disposition") != want {
		t.Errorf("got %s, want %s", resp.Header.Get("Content-Disposition"), want)
	}
}

// Replacing in a stream must equal replacing in memory, wherever buffers end.
func TestReplaceProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := strings.Join(rapid.SliceOf(rapid.SampledFrom([]string{"a", "b", "ab", strings.Repeat("a", 11)})).Draw(t, "text"), "")
		old := rapid.StringOfN(rapid.SampledFrom([]rune("ab")), 1, 4, -1).Draw(t, "old")
		s := &substituter{in: bufio.NewReaderSize(strings.NewReader(text), 16), old: []byte(old), new: []byte("<>")}
		got, err := io.ReadAll(s)
		if err != nil {
			t.Fatal(err)
		}
		if want := strings.ReplaceAll(text, old, "<>"); string(got) != want || s.n != strings.Count(text, old) {
			t.Fatalf("replacing %q: %d replaced, want %d", old, s.n, strings.Count(text, old))
		}
	})
}

func TestModes(t *testing.T) {
	for digits, bits := range map[int]uint32{0: 0, 7: 0o7, 755: 0o755, 4711: 0o4711, 1777: 0o1777} {
		if got, err := fileMode(digits); err != nil || got != bits {
			t.Errorf("%d: got %o, %v", digits, got, err)
		}
	}
	for _, bad := range []int{-1, 8, 789, 10000} {
		if _, err := fileMode(bad); err == nil {
			t.Errorf("%d was taken for a mode", bad)
		}
	}
}

func FuzzRange(f *testing.F) {
	for _, s := range []string{"bytes=0-1", "bytes=-5", "bytes=3-", "bytes=9-1", "x", "bytes=1-2,3-4"} {
		f.Add(s, int64(10))
	}
	f.Fuzz(func(t *testing.T, header string, size int64) {
		if size < 0 {
			return
		}
		start, n, err := parseRange(header, size)
		if err == nil && (start < 0 || n < 1 || start+n > size || start+n < 0) {
			t.Errorf("%q of %d bytes gives %d bytes at %d", header, size, n, start)
		}
	})
}

func FuzzUpload(f *testing.F) {
	f.Add([]byte("--B\r\nContent-Disposition: form-data; name=\"metadata\"; filename=\"m\"\r\n\r\n{\"path\":\"x\"}\r\n--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\nabc\r\n--B--\r\n"))
	dir := f.TempDir()
	g := guest.New(map[string]string{}, account.Identity{}, dir)
	a := New(func() *guest.Guest { return g })
	f.Fuzz(func(t *testing.T, body []byte) {
		if bytes.Contains(body, []byte(`"/`)) || bytes.Contains(body, []byte("..")) || bytes.Contains(body, []byte(`\`)) || bytes.Contains(body, []byte("~")) {
			return // stays in the test's directory
		}
		w := httptest.NewRecorder()
		r := httptest.NewRequest("POST", "/files/upload", bytes.NewReader(body))
		r.Header.Set("Content-Type", "multipart/form-data; boundary=B")
		a.serve(&call{w, r, g, g.Identity}, upload)
		if w.Code != http.StatusOK && !strings.Contains(w.Body.String(), `"code"`) {
			t.Error(fmt.Sprint("status ", w.Code, " without a code: ", w.Body.String()))
		}
	})
}
