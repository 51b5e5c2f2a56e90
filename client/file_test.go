package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestMode(t *testing.T) {
	for perm, want := range map[uint32]Mode{0o755: 755, 0o4755: 4755, 0: 0, 0o7: 7, 0o100644: 644} {
		if got := ModeOf(perm); got != want {
			t.Errorf("ModeOf(%o) = %d, want %d", perm, got, want)
		}
		if got := want.Perm(); got != perm&0o7777 {
			t.Errorf("Mode(%d).Perm() = %o", want, got)
		}
	}
	if got := Mode(899).Perm(); got != 0 {
		t.Errorf("Mode(899).Perm() = %o", got)
	}
}

type received struct {
	meta    uploadMetadata
	content string
}

// readForm reads an upload as execd does: pairs of parts with file names.
func readForm(r *http.Request) (files []received, err error) {
	_, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return nil, err
	}
	mr := multipart.NewReader(r.Body, params["boundary"])
	for {
		meta, err := mr.NextPart()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, err
		}
		var f received
		if meta.FormName() != "metadata" || meta.FileName() == "" {
			return nil, fmt.Errorf("part %q", meta.FormName())
		}
		if err := json.NewDecoder(meta).Decode(&f.meta); err != nil {
			return nil, err
		}
		content, err := mr.NextPart()
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(content)
		if err != nil {
			return nil, err
		}
		f.content = string(data)
		files = append(files, f)
	}
}

func TestUpload(t *testing.T) {
	large := strings.Repeat("0123456789abcdef", 1<<16)
	for _, c := range []struct {
		name  string
		files []UploadFile
		sized bool
	}{
		{"known sizes", []UploadFile{{Path: "/a", Mode: 755, Content: strings.NewReader(large)}, {Path: "/b", Content: strings.NewReader("")}}, true},
		{"unknown size", []UploadFile{{Path: "/a", Mode: 755, Content: io.MultiReader(strings.NewReader(large)), Size: -1}, {Path: "/b", Content: io.MultiReader(), Size: -1}}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if (r.ContentLength >= 0) != c.sized {
					t.Errorf("content length %d", r.ContentLength)
				}
				files, err := readForm(r)
				if err != nil || len(files) != 2 {
					t.Errorf("%d files, %v", len(files), err)
					return
				}
				if files[0].meta.Path != "/a" || files[0].meta.Mode != 755 || files[0].content != large || files[1].meta.Path != "/b" || files[1].content != "" {
					t.Errorf("wrong files")
				}
			})
			if err := cl.UploadFiles(context.Background(), "s", c.files...); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestUploadOfChangingContentFails(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if _, err := readForm(r); err != nil {
			w.WriteHeader(400)
		}
	})
	for _, content := range []string{"short", "much longer than ten"} {
		err := c.UploadFiles(context.Background(), "s", UploadFile{Path: "/log", Content: io.MultiReader(strings.NewReader(content)), Size: 10})
		if err == nil || !strings.Contains(err.Error(), "/log") {
			t.Errorf("%q: error %v", content, err)
		}
	}
}

func TestDownload(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789"), 1000)
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("path") != "/a b" {
			t.Errorf("query %s", r.URL.RawQuery)
		}
		http.ServeContent(w, r, "x", time.Time{}, bytes.NewReader(content))
	})
	for _, o := range []struct {
		opts DownloadOptions
		want string
	}{
		{DownloadOptions{}, string(content)},
		{DownloadOptions{Offset: 5, Length: 3}, "567"},
		{DownloadOptions{Offset: 9998}, "89"},
		{DownloadOptions{Length: 2}, "01"},
	} {
		d, err := c.DownloadFile(context.Background(), "s", "/a b", o.opts)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(d)
		d.Close()
		if err != nil || string(data) != o.want || d.Size != int64(len(o.want)) {
			t.Errorf("%+v: %d bytes of %d, %v", o.opts, len(data), d.Size, err)
		}
	}
}

func TestBrokenDownloadIsAnError(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	d, err := c.DownloadFile(context.Background(), "s", "/x", DownloadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := io.ReadAll(d); err == nil {
		t.Error("a broken download looks complete")
	}
}

func TestFileRoutes(t *testing.T) {
	var last string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		last = r.Method + " " + strings.TrimPrefix(r.URL.RequestURI(), "/v1/sandboxes/s/proxy/44772") + " " + string(body)
		switch {
		case strings.Contains(r.URL.Path, "/files/info"):
			reply(w, 200, map[string]any{"/a": map[string]any{"path": "/a", "type": "file", "mode": 644}})
		case strings.Contains(r.URL.Path, "/files/replace"):
			reply(w, 200, map[string]any{"/a": map[string]any{"replacedCount": 2}})
		case r.Method == "GET":
			reply(w, 200, []map[string]any{{"path": "/d/x", "type": "directory"}})
		}
	})
	ctx := context.Background()
	for _, s := range []struct {
		want string
		call func() error
	}{
		{"GET /files/info?path=%2Fa ", func() error {
			m, err := c.FileInfo(ctx, "s", "/a")
			if m["/a"].Mode.Perm() != 0o644 {
				return fmt.Errorf("info %+v", m)
			}
			return err
		}},
		{"GET /directories/list?depth=2&path=%2Fd ", func() error { _, err := c.ListDir(ctx, "s", "/d", 2); return err }},
		{"GET /files/search?path=%2Fd&pattern=%2A.go ", func() error { _, err := c.SearchFiles(ctx, "s", "/d", "*.go"); return err }},
		{`POST /directories {"/n":{"mode":755}}`, func() error { return c.Mkdir(ctx, "s", map[string]Permission{"/n": {Mode: 755}}) }},
		{"DELETE /files?path=%2Fa&path=%2Fb ", func() error { return c.RemoveFiles(ctx, "s", "/a", "/b") }},
		{"DELETE /directories?path=%2Fd ", func() error { return c.RemoveDirs(ctx, "s", "/d") }},
		{`POST /files/permissions {"/a":{"mode":0,"owner":"u"}}`, func() error { return c.Chmod(ctx, "s", map[string]Permission{"/a": {Owner: "u"}}) }},
		{`POST /files/mv [{"src":"/a","dest":"/b"}]`, func() error { return c.MoveFiles(ctx, "s", Move{"/a", "/b"}) }},
		{`POST /files/replace?verbose=true {"/a":{"old":"x","new":"y"}}`, func() error {
			n, err := c.ReplaceInFiles(ctx, "s", map[string]Replacement{"/a": {"x", "y"}})
			if n["/a"] != 2 {
				return fmt.Errorf("counts %v", n)
			}
			return err
		}},
	} {
		if err := s.call(); err != nil {
			t.Errorf("%s: %v", s.want, err)
		}
		if last != s.want {
			t.Errorf("sent %q, want %q", last, s.want)
		}
	}
}

func TestPull(t *testing.T) {
	for _, c := range []struct {
		name, stream string
		check        func(*Image, error) bool
	}{
		{"done", "data: {\"phase\":\"downloading\",\"bytesDone\":1,\"bytesTotal\":2}\n\ndata: {\"phase\":\"done\",\"image\":{\"name\":\"n\"}}\n\n",
			func(i *Image, err error) bool { return err == nil && i.Name == "n" }},
		{"error", "data: {\"phase\":\"downloading\"}\n\ndata: {\"phase\":\"error\",\"error\":{\"code\":\"C\",\"message\":\"m\"}}\n\n",
			func(_ *Image, err error) bool {
				var e *Error
				return errors.As(err, &e) && e.Code == "C" && e.Message == "m"
			}},
		{"cut off", "data: {\"phase\":\"downloading\"}\n\n", func(_ *Image, err error) bool { return err != nil }},
		{"garbage", "data: x\n\n", func(_ *Image, err error) bool { return err != nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := serve(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Accept") != "text/event-stream" {
					t.Errorf("Accept %q", r.Header.Get("Accept"))
				}
				_, _ = io.WriteString(w, c.stream)
			})
			calls := 0
			img, err := cl.PullImage(context.Background(), PullRequest{Image: "n"}, func(PullProgress) { calls++ })
			if !c.check(img, err) || (c.name != "garbage" && calls != 1) {
				t.Errorf("%+v, %v, %d calls", img, err, calls)
			}
		})
	}
}

func TestImagesAndVolumes(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.Method + " " + r.URL.RequestURI() {
		case "GET /v1/images":
			reply(w, 200, map[string]any{"items": []map[string]any{{"name": "a", "sizeBytes": 5}}})
		case "POST /v1/images/import?name=n%3A1":
			data, _ := io.ReadAll(r.Body)
			reply(w, 200, map[string]any{"items": []map[string]any{{"name": string(data)}}})
		case "GET /v1/images/export?ref=a":
			_, _ = io.WriteString(w, "archive")
		case "DELETE /v1/images?ref=a", "DELETE /v1/volumes/v%2F1":
			w.WriteHeader(204)
		case "POST /v1/images/prune":
			reply(w, 200, map[string]any{"images": []string{"a"}, "bytes": 9})
		case "GET /v1/volumes":
			reply(w, 200, map[string]any{"items": []map[string]any{{"name": "v"}}})
		default:
			t.Errorf("unexpected %s %s", r.Method, r.URL)
		}
	})
	ctx := context.Background()
	if l, err := c.ListImages(ctx); err != nil || len(l) != 1 || l[0].SizeBytes != 5 {
		t.Errorf("list %v, %v", l, err)
	}
	if l, err := c.ImportImage(ctx, strings.NewReader("tar"), "n:1"); err != nil || len(l) != 1 || l[0].Name != "tar" {
		t.Errorf("import %v, %v", l, err)
	}
	r, err := c.ExportImage(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if data, err := io.ReadAll(r); err != nil || string(data) != "archive" {
		t.Errorf("export %q, %v", data, err)
	}
	if p, err := c.PruneImages(ctx, true); err != nil || p.Bytes != 9 {
		t.Errorf("prune %v, %v", p, err)
	}
	if l, err := c.ListVolumes(ctx); err != nil || len(l) != 1 {
		t.Errorf("volumes %v, %v", l, err)
	}
	if err := errors.Join(c.RemoveImage(ctx, "a"), c.RemoveVolume(ctx, "v/1")); err != nil {
		t.Error(err)
	}
}
