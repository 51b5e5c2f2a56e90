package mcp_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/paddock-sandbox/paddock/test/harness"
)

func testFiles(t *testing.T, s *harness.Server) {
	a := overStdio(t, s, nil)
	a.has(`"bytes":12`, "file_write", object{"path": "/tmp/d/a.txt", "content": "first\nzweiß"})
	a.has("first\nzweiß\n", "file_read", object{"path": "/tmp/d/a.txt"})
	a.ok("file_write", object{"path": "/tmp/d/run", "content": "#!/bin/sh\necho ran", "mode": "755"})
	a.has("ran\n", "run_command", object{"command": "/tmp/d/run"})
	a.ok("file_write", object{"path": "/tmp/d/bin", "content": "AP8=", "base64": true})
	a.has("in base64)\nAP8=\n", "file_read", object{"path": "/tmp/d/bin"})
	a.ok("file_write", object{"path": "/tmp/d/empty", "content": ""})
	a.has("0 bytes long", "file_read", object{"path": "/tmp/d/empty"})
	a.ok("run_command", object{"command": "seq 1 20000 > /tmp/d/long; ln -s long /tmp/d/link"})
	if got := a.ok("file_read", object{"path": "/tmp/d/long", "line": 100, "lines": 3}); got != "100\n101\n102\n" {
		t.Errorf("lines: %q", got)
	}
	a.has("fewer than 30000 lines", "file_read", object{"path": "/tmp/d/long", "line": 30000})
	var all strings.Builder
	for offset := 0; ; {
		body, note, more := strings.Cut(a.ok("file_read", object{"path": "/tmp/d/link", "offset": offset, "length": 50000}), "--- bytes ")
		all.WriteString(body)
		text := all.String()
		if !more {
			break
		}
		var end int
		fmt.Sscanf(note, fmt.Sprintf("%d to %%d of 108894", offset), &end)
		if end <= offset {
			t.Fatalf("no way on: %q", note)
		}
		offset = end
		all.Reset()
		all.WriteString(text[:end])
		if strings.Contains(note, "the end") {
			break
		}
	}
	if all.Len() != 108894 {
		t.Errorf("read %d bytes in ranges, want 108894", all.Len())
	}
	a.has("the file is 108894 bytes long", "file_read", object{"path": "/tmp/d/long", "offset": 200000})
	png, _ := base64.StdEncoding.DecodeString("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
	a.ok("file_write", object{"path": "/tmp/d/p.png", "content": base64.StdEncoding.EncodeToString(png), "base64": true})
	if res := a.result("file_read", object{"path": "/tmp/d/p.png"}); len(res.Content) != 1 || !bytes.Equal(res.Content[0].(*mcp.ImageContent).Data, png) {
		t.Errorf("a picture: %+v", res)
	}
	a.ok("file_write", object{"path": "/tmp/d/no.png", "content": "no picture"})
	a.has("no picture", "file_read", object{"path": "/tmp/d/no.png"})
	var dir struct {
		Entries []struct{ Path, Type string }
		Total   int
	}
	if a.into(&dir, "file_list", object{"path": "/tmp/d"}); dir.Total != 8 || len(dir.Entries) != 8 {
		t.Errorf("%+v", dir)
	}
	a.fails("file_list", "file_read", object{"path": "/tmp/d"})
	a.fails("no such file", "file_read", object{"path": "/tmp/d/none"})
	a.fails("not base64", "file_write", object{"path": "/tmp/x", "content": "%", "base64": true})
	a.fails("octal", "file_write", object{"path": "/tmp/x", "content": "", "mode": "rwx"})
	a.fails("path is empty", "file_list", object{"path": ""})
	a.fails("exclude", "file_read", object{"path": "/tmp/d/long", "line": 1, "offset": 1})
	a.fails("at most", "file_write", object{"path": "/tmp/x", "content": strings.Repeat("x", 4<<20+1)})
}

func testEdits(t *testing.T, s *harness.Server) {
	a := overStdio(t, s, nil)
	a.ok("file_write", object{"path": "/tmp/e/a.py", "content": "x = 1\ny = 1\n"})
	a.fails("2 times", "file_edit", object{"path": "/tmp/e/a.py", "old": "1", "new": "2"})
	a.fails("not in", "file_edit", object{"path": "/tmp/e/a.py", "old": "z = 1", "new": "2"})
	a.fails("old is empty", "file_edit", object{"path": "/tmp/e/a.py", "old": "", "new": "2"})
	a.fails("same", "file_edit", object{"path": "/tmp/e/a.py", "old": "1", "new": "1"})
	a.fails("no such file", "file_edit", object{"path": "/tmp/e/none", "old": "1", "new": "2"})
	a.has(`"replaced":1`, "file_edit", object{"path": "/tmp/e/a.py", "old": "x = 1\n", "new": "x = 3\n"})
	a.has(`"replaced":1`, "file_edit", object{"path": "/tmp/e/a.py", "old": "y = 1\n", "new": ""})
	a.has("x = 3\n", "file_read", object{"path": "/tmp/e/a.py"})
	a.ok("file_write", object{"path": "/tmp/e/b.py", "content": "def f():\n  return 3\n"})
	a.ok("file_write", object{"path": "/tmp/e/c.txt", "content": "return 3\n"})
	a.has("/tmp/e/a.py (6 bytes)\n", "file_search", object{"path": "/tmp/e", "pattern": "*.py"})
	a.has("no file matches", "file_search", object{"path": "/tmp/e", "pattern": "*.go"})
	if got := a.ok("file_search", object{"path": "/tmp/e", "pattern": "*.py", "text": "return +[0-9]"}); got != "/tmp/e/b.py:2:  return 3\n" {
		t.Errorf("a search: %q", got)
	}
	a.has("no line matches", "file_search", object{"path": "/tmp/e", "text": "'; exit 9; '"})
	a.fails("no such file", "file_search", object{"path": "/tmp/none", "text": "x"})
	a.fails("failed", "file_search", object{"path": "/tmp/e", "text": "("})
}
