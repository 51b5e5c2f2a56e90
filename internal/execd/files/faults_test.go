package files

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds waits that end at once when all is well.
const patience = 20 * time.Second

// until waits for something that another goroutine does.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); {
		if time.Now().After(end) {
			t.Fatalf("no %s within %s", what, patience)
		}
		time.Sleep(time.Millisecond)
	}
}

// contents lists a directory.
func contents(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// small is a directory on a filesystem of one mebibyte.
func small(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting a small filesystem needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=755"); err != nil {
		t.Skipf("mounting a small filesystem: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// A full disk is named, what was there stays, and nothing else does. Files of
// the same request that came before are complete.
func TestUploadToAFullDisk(t *testing.T) {
	dir := small(t)
	s := serve(t, dir)
	if err := os.WriteFile(filepath.Join(dir, "kept"), []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("x", 2<<20)
	for _, name := range []string{"kept", "new", "made/new"} {
		status, answer := send(t, s, "metadata", `{"path":"first"}`, "file", "whole", "metadata", `{"path":"`+name+`"}`, "file", big)
		if status != http.StatusInternalServerError || !strings.Contains(answer, "no space left on device") || !strings.Contains(answer, name+": no space") {
			t.Errorf("%s: %d %s", name, status, answer)
		}
	}
	if got := contents(t, dir); got != "first kept made" || contents(t, filepath.Join(dir, "made")) != "" {
		t.Errorf("left: %s", got)
	}
	if read(t, filepath.Join(dir, "kept")) != "old" || read(t, filepath.Join(dir, "first")) != "whole" {
		t.Error("a file has changed")
	}
	// There is room again.
	if status, answer := send(t, s, "metadata", `{"path":"kept"}`, "file", "new"); status != http.StatusOK {
		t.Errorf("afterwards: %d %s", status, answer)
	}
}

// Replacing text needs room for the new content first.
func TestReplaceOnAFullDisk(t *testing.T) {
	dir := small(t)
	s := serve(t, dir)
	text := strings.Repeat("a\n", 300<<10)
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	do(t, s, "POST", "/files/replace", `{"f":{"old":"a","new":"bbb"}}`, http.StatusInternalServerError, "no space left on device")
	if read(t, filepath.Join(dir, "f")) != text || contents(t, dir) != "f" {
		t.Errorf("left: %s", contents(t, dir))
	}
}

// A client whose connection breaks in the middle of an upload leaves nothing,
// whatever it had announced.
func TestUploadConnectionCut(t *testing.T) {
	head := "--B\r\nContent-Disposition: form-data; name=\"metadata\"; filename=\"m\"\r\n\r\n{\"path\":\"kept\"}\r\n" +
		"--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n" + strings.Repeat("x", 600<<10)
	for name, request := range map[string]string{
		"length":  fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(head)*2, head),
		"chunked": fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", len(head), head),
		"chunk":   fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s", len(head)*2, head),
	} {
		s, dir := server(t)
		if err := os.WriteFile(filepath.Join(dir, "kept"), []byte("old"), 0o644); err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "POST /files/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=B\r\n"+request); err != nil {
			t.Fatal(err)
		}
		until(t, "temporary file ("+name+")", func() bool { return strings.Contains(contents(t, dir), ".upload-") })
		c.Close()
		until(t, "clean directory ("+name+")", func() bool { return contents(t, dir) == "kept" })
		if got := read(t, filepath.Join(dir, "kept")); got != "old" {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// opened counts this process's descriptors of a file.
func opened(path string) int {
	n := 0
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && to == path {
			n++
		}
	}
	return n
}

// A client that leaves in the middle of a download, or that does not read, holds
// nothing once it is gone.
func TestDownloadAbandoned(t *testing.T) {
	s, dir := server(t)
	path := filepath.Join(dir, "big")
	if err := os.WriteFile(path, bytes.Repeat([]byte("0123456789abcde\n"), 4<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, query := range []string{"", "&offset=1&limit=4000000"} {
		var all []net.Conn
		for range 20 {
			c, err := net.Dial("tcp", s.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, c)
			if _, err := io.WriteString(c, "GET /files/download?path=big"+query+" HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
		}
		if n := opened(path); n == 0 {
			t.Error("nobody reads; is the file too small?")
		}
		for _, c := range all {
			c.Close()
		}
		until(t, "closed file", func() bool { return opened(path) == 0 })
	}
}

// Requests that are no upload are told what is wrong with them.
func TestMalformedUploads(t *testing.T) {
	s, dir := server(t)
	part := func(header, body string) string { return "--B\r\n" + header + "\r\n\r\n" + body + "\r\n" }
	const meta, file = `Content-Disposition: form-data; name="metadata"; filename="m"`, `Content-Disposition: form-data; name="file"; filename="f"`
	for name, c := range map[string]struct{ contentType, body string }{
		"no type":             {"", "x"},
		"another type":        {"application/json", "{}"},
		"no boundary":         {"multipart/form-data", "x"},
		"endless boundary":    {"multipart/form-data; boundary=" + strings.Repeat("b", 100), "x"},
		"no body":             {"multipart/form-data; boundary=B", ""},
		"text":                {"multipart/form-data; boundary=B", "hello"},
		"nothing in it":       {"multipart/form-data; boundary=B", "--B--\r\n"},
		"file first":          {"multipart/form-data; boundary=B", part(file, "x") + "--B--\r\n"},
		"metadata only":       {"multipart/form-data; boundary=B", part(meta, `{"path":"x"}`) + "--B--\r\n"},
		"metadata no object":  {"multipart/form-data; boundary=B", part(meta, `[]`) + part(file, "x") + "--B--\r\n"},
		"metadata no JSON":    {"multipart/form-data; boundary=B", part(meta, `{"path`) + part(file, "x") + "--B--\r\n"},
		"metadata no path":    {"multipart/form-data; boundary=B", part(meta, `{}`) + part(file, "x") + "--B--\r\n"},
		"metadata mistyped":   {"multipart/form-data; boundary=B", part(meta, `{"path":1}`) + part(file, "x") + "--B--\r\n"},
		"mode of digit 9":     {"multipart/form-data; boundary=B", part(meta, `{"path":"x","mode":999}`) + part(file, "x") + "--B--\r\n"},
		"mode below zero":     {"multipart/form-data; boundary=B", part(meta, `{"path":"x","mode":-1}`) + part(file, "x") + "--B--\r\n"},
		"metadata too large":  {"multipart/form-data; boundary=B", part(meta, `{"path":"`+strings.Repeat("x", maxMetadata)+`"}`) + part(file, "x") + "--B--\r\n"},
		"another part":        {"multipart/form-data; boundary=B", part(`Content-Disposition: form-data; name="other"`, "x") + "--B--\r\n"},
		"no disposition":      {"multipart/form-data; boundary=B", part("X: y", "x") + "--B--\r\n"},
		"no end":              {"multipart/form-data; boundary=B", part(meta, `{"path":"x"}`) + "--B\r\n" + file + "\r\n\r\nx"},
		"header without end":  {"multipart/form-data; boundary=B", "--B\r\n" + strings.Repeat("x", 1<<20)},
		"header of many rows": {"multipart/form-data; boundary=B", "--B\r\n" + strings.Repeat("A: b\r\n", 100_000)},
	} {
		req, err := http.NewRequest("POST", s.URL+"/files/upload", strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		if c.contentType != "" {
			req.Header.Set("Content-Type", c.contentType)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		answer, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(answer), `"message"`) || len(answer) > 4<<10 {
			t.Errorf("%s: %d %.300s", name, resp.StatusCode, answer)
		}
	}
	if got := contents(t, dir); got != "" {
		t.Errorf("left: %s", got)
	}
}

// Paths of every hostile form are answered, with an error where they name
// nothing, and never with a file elsewhere than they say.
func TestHostilePaths(t *testing.T) {
	s, dir := server(t)
	if err := os.Symlink("loop", filepath.Join(dir, "loop")); err != nil {
		t.Fatal(err)
	}
	for path, status := range map[string]int{
		"":                                      400,
		"nul\x00byte":                           400,
		"none":                                  404,
		"none/below":                            404,
		"../../../../../../../../none-anywhere": 404,
		"/proc/self/fd/9999":                    404,
		"/proc/self/root/none-anywhere":         404,
		strings.Repeat("n", 256):                400,
		strings.Repeat("d/", 2100) + "f":        400,
		"~nobody-has-this-name/x":               404,
		"$UNDEFINED_HERE/x":                     500,
		"${UNCLOSED":                            404,
		"new\nline":                             404,
		"escape\x1b[31m":                        404,
		"not \xff UTF-8":                        404,
		"\u202eright-to-left":                   404,
		"loop":                                  500,
		"file://etc/passwd":                     404,
		"C:\\windows":                           404,
		"%2e%2e%2f":                             404,
		" ":                                     404,
	} {
		resp, err := http.Get(s.URL + "/files/download?path=" + url.QueryEscape(path))
		if err != nil {
			t.Fatal(err)
		}
		answer, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != status || !strings.Contains(string(answer), `"message"`) {
			t.Errorf("%.60q: %d %.200s, want %d", path, resp.StatusCode, answer, status)
		}
	}
}
