package test

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
)

// Whole directories go in and come out through the client.
func TestDirectoriesThroughTheClient(t *testing.T) {
	s := sharedServer(t)
	sb := sleeper(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for name, content := range map[string]string{"sub/run": "#!/bin/sh\necho ran\n", "a": "alpha"} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := s.Client.UploadDir(ctx, sb.ID, "/tmp/tree", &archive)
	if err != nil || got.Bytes != 24 || got.SkippedTotal != 0 {
		t.Fatalf("%+v, %v", got, err)
	}
	if out := s.Must(t, sb.ID, "/tmp/tree/sub/run; cat /tmp/tree/a"); out != "ran\nalpha" {
		t.Errorf("unpacked: %q", out)
	}
	out, err := s.Client.DownloadDir(ctx, sb.ID, "/tmp/tree")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	found := map[string]string{}
	for r := tar.NewReader(out); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		found[h.Name] = string(content)
	}
	if len(found) != 4 || found["a"] != "alpha" || found["sub/run"] != "#!/bin/sh\necho ran\n" {
		t.Errorf("%q", found)
	}
	if _, err := s.Client.DownloadDir(ctx, sb.ID, "/no/such"); !client.IsNotFound(err) {
		t.Errorf("a directory that is not there: %v", err)
	}
	if _, err := s.Client.UploadDir(ctx, sb.ID, "/tmp/x", bytes.NewReader([]byte("no archive, and long enough to be looked at as one"))); !client.IsInvalid(err) {
		t.Errorf("what is no archive: %v", err)
	}
}
