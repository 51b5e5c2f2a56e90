package imagetest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/paddock-sandbox/paddock/internal/image/ociwriter"
)

// Entry is one member of a layer's tar. Size is filled in from Body unless the
// header has one.
type Entry struct {
	tar.Header
	Body []byte
}

// Layer is one layer of a test image.
type Layer struct {
	Entries     []Entry
	Compression ociwriter.Compression
	// Tar, if set, is the uncompressed layer, instead of Entries.
	Tar []byte
	// DiffID, if set, is what the image's config claims instead of the truth.
	DiffID string
}

// Files is a layer of regular files with mode 0644, or 0755 if their content
// begins as a program's does. A name that ends in "/" is a directory, content
// that begins with "-> " is a symbolic link. Parent directories are made.
func Files(files map[string]string) Layer {
	var layer Layer
	made := map[string]bool{".": true}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		for _, dir := range parents(strings.TrimSuffix(name, "/")) {
			if !made[dir] {
				made[dir] = true
				layer.Entries = append(layer.Entries, Entry{Header: tar.Header{Name: dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}})
			}
		}
		layer.Entries = append(layer.Entries, file(name, files[name]))
		made[strings.TrimSuffix(name, "/")] = true
	}
	return layer
}

func file(name, content string) Entry {
	if strings.HasSuffix(name, "/") {
		return Entry{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}}
	}
	if target, ok := strings.CutPrefix(content, "-> "); ok {
		return Entry{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}}
	}
	mode := int64(0o644)
	if strings.HasPrefix(content, "#!") || strings.HasPrefix(content, "\x7fELF") {
		mode = 0o755
	}
	return Entry{Header: tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode}, Body: []byte(content)}
}

func parents(name string) []string {
	var out []string
	for dir := path.Dir(name); dir != "." && dir != "/"; dir = path.Dir(dir) {
		out = append([]string{dir}, out...)
	}
	return out
}

func (l Layer) tarball(t testing.TB) []byte {
	t.Helper()
	if l.Tar != nil {
		return l.Tar
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range l.Entries {
		header := e.Header
		if header.Size == 0 {
			header.Size = int64(len(e.Body))
		}
		if err := w.WriteHeader(&header); err != nil {
			t.Fatalf("writing tar header %q: %v", header.Name, err)
		}
		if _, err := w.Write(e.Body); err != nil {
			t.Fatalf("writing tar member %q: %v", header.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// Image is a test image for one platform.
type Image struct {
	Config ocispec.ImageConfig
	// Arch is this machine's when empty.
	Arch   string
	Layers []Layer
}

// Layout writes an OCI image layout into a temporary directory and returns its
// path. Several images become one image for several platforms. name may be
// empty.
func Layout(t testing.TB, name string, images ...Image) string {
	t.Helper()
	dir := t.TempDir()
	l, err := ociwriter.NewLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	Add(t, l, name, images...)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Add is the part of Layout that enters one image into a layout.
func Add(t testing.TB, l *ociwriter.Layout, name string, images ...Image) ocispec.Descriptor {
	t.Helper()
	var manifests []ocispec.Descriptor
	for _, img := range images {
		manifests = append(manifests, addManifest(t, l, img))
	}
	top := manifests[0]
	if len(manifests) > 1 {
		var err error
		if top, err = l.AddIndex(manifests...); err != nil {
			t.Fatal(err)
		}
	}
	l.Name(top, name)
	return top
}

func addManifest(t testing.TB, l *ociwriter.Layout, img Image) ocispec.Descriptor {
	t.Helper()
	config := ocispec.Image{Config: img.Config}
	config.Platform = ocispec.Platform{OS: "linux", Architecture: img.Arch}
	if img.Arch == "" {
		config.Platform.Architecture = runtime.GOARCH
	}
	var layers []ociwriter.Layer
	for _, layer := range img.Layers {
		stored, err := l.AddLayer(bytes.NewReader(layer.tarball(t)), layer.Compression)
		if err != nil {
			t.Fatal(err)
		}
		if layer.DiffID != "" {
			stored.DiffID = stored.DiffID.Algorithm().FromString(layer.DiffID)
		}
		layers = append(layers, stored)
	}
	desc, err := l.AddManifest(config, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return desc
}

// Archive returns an OCI archive.
func Archive(t testing.TB, name string, images ...Image) []byte {
	t.Helper()
	data, err := ociwriter.ArchiveBytes(Layout(t, name, images...))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// DockerArchive returns an archive in the format that docker save wrote before
// it adopted OCI's.
func DockerArchive(t testing.TB, tags []string, img Image) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(name string, data []byte) {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	dir := Layout(t, "", img)
	config := configOf(t, dir)
	names := []string{}
	for i, layer := range img.Layers {
		name := string(rune('a'+i)) + "/layer.tar"
		add(name, layer.tarball(t))
		names = append(names, name)
	}
	add("config.json", config)
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": tags, "Layers": names}})
	if err != nil {
		t.Fatal(err)
	}
	add("manifest.json", manifest)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// configOf reads the config of a layout with one image.
func configOf(t testing.TB, dir string) []byte {
	t.Helper()
	var manifest ocispec.Manifest
	readJSON(t, blobPath(dir, Top(t, dir)), &manifest)
	config, err := os.ReadFile(blobPath(dir, manifest.Config))
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// Top returns the first entry of a layout's index.
func Top(t testing.TB, dir string) ocispec.Descriptor {
	t.Helper()
	var index ocispec.Index
	readJSON(t, filepath.Join(dir, ocispec.ImageIndexFile), &index)
	return index.Manifests[0]
}

func blobPath(dir string, d ocispec.Descriptor) string {
	return filepath.Join(dir, ocispec.ImageBlobsDir, d.Digest.Algorithm().String(), d.Digest.Encoded())
}

func readJSON(t testing.TB, path string, into any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Busybox is an image with a static busybox and links to its common programs.
// It skips the test where the package busybox-static is not installed.
func Busybox(t testing.TB) Image {
	t.Helper()
	program, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox (Debian package busybox-static)")
	}
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(data[:min(len(data), 4096)], []byte("ld-linux")) {
		t.Skip("busybox is not static; install busybox-static")
	}
	files := map[string]string{
		"bin/busybox": string(data),
		"etc/passwd":  "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
		"etc/group":   "root:x:0:\nuser:x:1000:\n",
		"root/":       "", "tmp/": "", "proc/": "", "sys/": "", "dev/": "", "home/user/": "",
	}
	for _, name := range strings.Fields("sh cat cp echo env false find grep head id kill ls mkdir mount nc nproc ps pwd rm seq sha256sum sleep sort stat tail tar test touch true tr umount uname wc wget yes") {
		files["bin/"+name] = "-> busybox"
	}
	return Image{
		Config: ocispec.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"sh"}},
		Layers: []Layer{Files(files)},
	}
}

// Tree lists the files below dir: path to "dir", "-> target" or content.
func Tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, p)
		if err != nil || name == "." {
			return err
		}
		switch {
		case entry.IsDir():
			out[name] = "dir"
		case entry.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			out[name] = "-> " + target
			return err
		case entry.Type().IsRegular():
			data, err := os.ReadFile(p)
			out[name] = string(data)
			return err
		default:
			out[name] = entry.Type().String()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
