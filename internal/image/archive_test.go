package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/paddock-sandbox/paddock/internal/image/imagetest"
	"github.com/paddock-sandbox/paddock/internal/image/ociwriter"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func gzipped(t testing.TB, data []byte) []byte {
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	w.Close()
	return buf.Bytes()
}

func zstandard(t testing.TB, data []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(data, nil)
}

func TestImport(t *testing.T) {
	img := imagetest.Image{Layers: []imagetest.Layer{
		{Compression: ociwriter.Gzip, Entries: imagetest.Files(map[string]string{"a": "1"}).Entries},
		{Compression: ociwriter.Zstd, Entries: imagetest.Files(map[string]string{"b": "2"}).Entries},
	}}
	plain := img
	plain.Layers = []imagetest.Layer{imagetest.Files(map[string]string{"a": "1"}), imagetest.Files(map[string]string{"b": "2"})}
	oci := imagetest.Archive(t, "example.org/tool:v1", img)
	docker := imagetest.DockerArchive(t, []string{"tool:v1", "tool:latest"}, plain)
	s390 := img
	s390.Arch = "s390x"
	both := imagetest.Archive(t, "tool:v3", s390, img)

	for _, c := range []struct {
		what  string
		data  []byte
		name  string
		names []string
	}{
		{"oci", oci, "", []string{"example.org/tool:v1"}},
		{"oci renamed", oci, "python:3.11", []string{"docker.io/library/python:3.11"}},
		{"oci gzip", gzipped(t, oci), "", []string{"example.org/tool:v1"}},
		{"oci zstd", zstandard(t, oci), "", []string{"example.org/tool:v1"}},
		{"oci without a name", imagetest.Archive(t, "", img), "x", []string{"docker.io/library/x:latest"}},
		{"docker", docker, "", []string{"docker.io/library/tool:v1", "docker.io/library/tool:latest"}},
		{"docker gzip, renamed", gzipped(t, docker), "y:2", []string{"docker.io/library/y:2"}},
		{"several platforms", both, "", []string{"docker.io/library/tool:v3"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := openStore(t, nil)
			s.HoldsRestored()
			got, err := s.Import(t.Context(), bytes.NewReader(c.data), c.name)
			if err != nil {
				t.Fatal(err, sandbox.AsError(err).Err)
			}
			var names []string
			for _, img := range got {
				names = append(names, img.Name)
				if a, b := imagetest.Tree(t, img.LayerDirs[1]), imagetest.Tree(t, img.LayerDirs[0]); a["a"] != "1" || b["b"] != "2" {
					t.Errorf("layers are %v and %v", a, b)
				}
			}
			if !slices.Equal(names, c.names) {
				t.Errorf("imported %v, want %v", names, c.names)
			}
			for _, name := range c.names {
				if _, err := s.Lookup(t.Context(), name, nil); err != nil {
					t.Error(err)
				}
				if err := s.Remove(t.Context(), name); err != nil {
					t.Error(err)
				}
			}
			if left := remains(t, s); len(left) != 0 {
				t.Errorf("after removal there is still %v", left)
			}
		})
	}
}

func TestImportRefuses(t *testing.T) {
	symlinks := func() []byte {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		for i := range maxMembers + 1 {
			w.WriteHeader(&tar.Header{Name: fmt.Sprint(i), Typeflag: tar.TypeSymlink, Linkname: "x"})
		}
		w.Close()
		return buf.Bytes()
	}()
	foreign := oneFile("a", "1")
	foreign.Arch = "s390x"
	truncated := imagetest.Archive(t, "x:1", oneFile("a", noise(100_000)))
	two := func() []byte {
		dir := t.TempDir()
		l, err := ociwriter.NewLayout(dir)
		if err != nil {
			t.Fatal(err)
		}
		imagetest.Add(t, l, "one:1", oneFile("a", "1"))
		imagetest.Add(t, l, "two:1", oneFile("a", "2"))
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		data, err := ociwriter.ArchiveBytes(dir)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}()
	lacking := func() []byte {
		dir := imagetest.Layout(t, "x:1", oneFile("a", noise(5000)))
		blobs, _ := filepath.Glob(filepath.Join(dir, "blobs/sha256/*"))
		for _, blob := range blobs {
			if info, err := os.Stat(blob); err == nil && info.Size() > 5000 {
				os.Remove(blob)
			}
		}
		data, err := ociwriter.ArchiveBytes(dir)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}()
	for _, c := range []struct {
		what, name string
		data       []byte
		says       string
	}{
		{"nothing", "x", nil, "neither"},
		{"text", "x", []byte("hello"), "neither"},
		{"some tar", "x", imagetest.DockerArchive(t, nil, oneFile("a", "1"))[:1024], "neither"},
		{"endless members", "", gzipped(t, symlinks), "files that are allowed"},
		{"truncated", "", truncated[:len(truncated)/2], "damaged"},
		{"broken gzip", "", gzipped(t, truncated)[:1000], "damaged"},
		{"a blob missing", "", lacking, "lacks"},
		{"no name", "", imagetest.Archive(t, "", oneFile("a", "1")), "Give a name"},
		{"bad name", "UPPER", truncated, "lower case"},
		{"digest as name", "x@sha256:" + strings.Repeat("0", 64), truncated, "digest"},
		{"two images, one name", "x", two, "2 images"},
		{"another architecture", "", imagetest.Archive(t, "x:1", foreign), "s390x"},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := openStore(t, nil)
			s.HoldsRestored()
			_, err := s.Import(t.Context(), bytes.NewReader(c.data), c.name)
			e := wantError(t, err, sandbox.KindInvalid, sandbox.CodeImageInvalid)
			if !strings.Contains(e.Message, c.says) {
				t.Errorf("message %q does not contain %q", e.Message, c.says)
			}
			collect(t, s)
			if left := remains(t, s); len(left) != 0 {
				t.Errorf("there is still %v", left)
			}
		})
	}
}

func TestImportPath(t *testing.T) {
	s := openStore(t, nil)
	dir := imagetest.Layout(t, "tool:dir", oneFile("a", "1"))
	if img, err := s.ImportPath(t.Context(), dir, ""); err != nil || img[0].Name != "docker.io/library/tool:dir" {
		t.Errorf("layout directory: %v, %v", img, err)
	}
	file := filepath.Join(t.TempDir(), "x.tar")
	if err := os.WriteFile(file, imagetest.Archive(t, "tool:file", oneFile("a", "2")), 0o600); err != nil {
		t.Fatal(err)
	}
	if img, err := s.ImportPath(t.Context(), file, ""); err != nil || img[0].Name != "docker.io/library/tool:file" {
		t.Errorf("file: %v, %v", img, err)
	}
	for _, path := range []string{t.TempDir(), "/no/such/file"} {
		_, err := s.ImportPath(t.Context(), path, "x")
		wantError(t, err, sandbox.KindInvalid, sandbox.CodeImageInvalid)
	}
	// A layout that turns out to be bad ends the goroutine that reads it.
	if err := os.WriteFile(filepath.Join(dir, "index.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := s.ImportPath(t.Context(), dir, "")
	wantError(t, err, sandbox.KindInvalid, sandbox.CodeImageInvalid)
}

// Two imports at a time, one of which fails, do not mix their parts.
func TestImportsAtATime(t *testing.T) {
	s := openStore(t, nil)
	var wg sync.WaitGroup
	for i := range 6 {
		data := imagetest.Archive(t, fmt.Sprintf("app:%d", i), oneFile("a", noise(200_000+i)))
		if i%2 == 1 {
			data = data[:len(data)-100_000]
		}
		wg.Go(func() {
			if _, err := s.Import(t.Context(), bytes.NewReader(data), ""); (err == nil) != (i%2 == 0) {
				t.Errorf("import %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	for i := 0; i < 6; i += 2 {
		img, err := s.Lookup(t.Context(), fmt.Sprintf("app:%d", i), nil)
		if err != nil || len(imagetest.Tree(t, img.LayerDirs[0])["a"]) != 200_000+i {
			t.Errorf("image %d: %v", i, err)
		}
	}
}

// cancelReader cancels a context when it is read for the n-th time.
type cancelReader struct {
	io.Reader
	n      int
	cancel func()
}

func (c *cancelReader) Read(p []byte) (int, error) {
	if c.n--; c.n == 0 {
		c.cancel()
	}
	return c.Reader.Read(p[:min(len(p), 4096)])
}

func TestImportCancelled(t *testing.T) {
	s := openStore(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	data := imagetest.Archive(t, "x:1", oneFile("a", noise(1<<20)))
	_, err := s.Import(ctx, &cancelReader{bytes.NewReader(data), 20, cancel}, "")
	if err == nil {
		t.Error("a cancelled import succeeds")
	}
	collect(t, s)
	if left := remains(t, s); len(left) != 0 {
		t.Errorf("there is still %v", left)
	}
}

// What is exported can be imported elsewhere, with the same digest.
func TestExport(t *testing.T) {
	s := openStore(t, nil)
	img := mustImport(t, s, "tool:v1", imagetest.Image{Layers: []imagetest.Layer{
		{Compression: ociwriter.Gzip, Entries: imagetest.Files(map[string]string{"a": "1"}).Entries}, imagetest.Files(map[string]string{"b": "2"}),
	}})
	var buf bytes.Buffer
	if err := s.Export(t.Context(), "tool:v1", &buf); err != nil {
		t.Fatal(err)
	}
	other := openStore(t, nil)
	got, err := other.Import(t.Context(), &buf, "")
	if err != nil || len(got) != 1 || got[0].Digest != img.Digest || got[0].Name != img.Name {
		t.Errorf("imported again: %+v, %v; want %+v", got, err, img)
	}
	err = s.Export(t.Context(), "nothing", io.Discard)
	wantError(t, err, sandbox.KindNotFound, sandbox.CodeImageNotFound)
	if err := s.Export(t.Context(), img.Digest, io.Discard); err != nil {
		t.Errorf("by digest: %v", err)
	}
}
