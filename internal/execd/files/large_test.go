package files

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// allocated adds up what is allocated, roughly: all of the process.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// Ten thousand files in a request take no more memory at one time than one: what
// is allocated for each is little.
func TestManyFilesInOneUpload(t *testing.T) {
	if testing.Short() {
		t.Skip("ten thousand files take a while")
	}
	// Not on a disk, which would sync each.
	dir, err := os.MkdirTemp("/dev/shm", "files")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := serve(t, dir)
	const files = 10_000
	pr, pw := io.Pipe()
	w := multipart.NewWriter(pw)
	go func() {
		for i := range files {
			m, _ := w.CreateFormFile("metadata", "m")
			fmt.Fprintf(m, `{"path":"many/%d/%d"}`, i%100, i)
			f, _ := w.CreateFormFile("file", "f")
			fmt.Fprint(f, "file ", i)
		}
		pw.CloseWithError(w.Close())
	}()
	took := allocated(func() {
		resp, err := http.Post(s.URL+"/files/upload", w.FormDataContentType(), pr)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Fatalf("%d %s", resp.StatusCode, b)
		}
	})
	// The client's part is in it. A buffer for each file would be 2.5 GiB.
	if took > files*16<<10 {
		t.Errorf("%d bytes were allocated for each file", took/files)
	}
	var list []Info
	json.Unmarshal([]byte(do(t, s, "GET", "/directories/list?path=many&depth=2", "", 200, "")), &list)
	if len(list) != files+100 {
		t.Errorf("%d entries", len(list))
	}
	if !slices.IsSortedFunc(list, func(a, b Info) int { return strings.Compare(a.Path, b.Path) }) {
		t.Error("the list is not in order")
	}
	if got := read(t, filepath.Join(dir, "many/42/9942")); got != "file 9942" {
		t.Errorf("got %q", got)
	}
}

func TestMetadataWithoutFilesIsBounded(t *testing.T) {
	s, _ := server(t)
	var parts []string
	for range 300 {
		parts = append(parts, "metadata", `{"path":"x","owner":"`+strings.Repeat("y", 40_000)+`"}`)
	}
	if status, b := send(t, s, parts...); status != 400 || !strings.Contains(b, "INVALID_FILE_METADATA") {
		t.Errorf("%d %s", status, b)
	}
}

// A directory with more entries than are held at one time is listed whole.
func TestWalkInParts(t *testing.T) {
	dir := t.TempDir()
	want := 0
	for i := range 5 {
		sub := filepath.Join(dir, fmt.Sprint("d", i))
		os.Mkdir(sub, 0o755)
		for j := range 200 {
			os.WriteFile(filepath.Join(sub, fmt.Sprint(j)), nil, 0o600)
			want++
		}
		want++
	}
	for _, held := range []int{0, maxHeld - 10, maxHeld, 2 * maxHeld} {
		seen := map[string]bool{}
		w := &walker{ctx: t.Context(), held: held, visit: func(path string, _ fs.DirEntry) error {
			seen[path] = true
			return nil
		}}
		if err := w.directory(dir, 5); err != nil || len(seen) != want || w.held != held {
			t.Errorf("holding %d: %d seen of %d, %v", held, len(seen), want, err)
		}
	}
}

// Holes stay holes when a file is moved to another filesystem.
func TestSparseCopy(t *testing.T) {
	dir := t.TempDir()
	src, dest := filepath.Join(dir, "src"), filepath.Join(dir, "dest")
	f, err := os.Create(src)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte("begin"), 0)
	f.WriteAt([]byte("middle"), 1<<30)
	f.Truncate(10 << 30)
	f.Close()
	if err := copyTree(src, dest); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(dest)
	if err != nil || st.Size() != 10<<30 || st.Sys().(*syscall.Stat_t).Blocks*512 > 1<<20 {
		t.Fatalf("%+v, %v", st.Sys(), err)
	}
	in, _ := os.Open(dest)
	defer in.Close()
	var buf [6]byte
	for at, want := range map[int64]string{0: "begin\x00", 1 << 30: "middle", 1<<30 + 6: "\x00\x00\x00\x00\x00\x00", 10<<30 - 6: "\x00\x00\x00\x00\x00\x00"} {
		if in.ReadAt(buf[:], at); string(buf[:]) != want {
			t.Errorf("at %d: %q", at, buf)
		}
	}
}

func TestCopyTreeKeeps(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	os.MkdirAll(filepath.Join(src, "d"), 0o751)
	os.WriteFile(filepath.Join(src, "d/f"), []byte("x"), 0o644)
	os.Chmod(filepath.Join(src, "d/f"), 0o755|fs.ModeSetuid)
	os.Symlink("nowhere", filepath.Join(src, "l"))
	syscall.Mkfifo(filepath.Join(src, "p"), 0o600)
	if err := copyTree(src, filepath.Join(dir, "dest")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"d", "d/f", "l", "p"} {
		a, _ := os.Lstat(filepath.Join(src, name))
		b, err := os.Lstat(filepath.Join(dir, "dest", name))
		if err != nil || a.Mode() != b.Mode() || name != "l" && !a.ModTime().Equal(b.ModTime()) {
			t.Errorf("%s: %v and %v, %v", name, a, b, err)
		}
	}
}

// Several names of one file stay names of one file.
func TestUploadKeepsHardLinks(t *testing.T) {
	s, dir := server(t)
	os.WriteFile(filepath.Join(dir, "a"), []byte("old, and longer"), 0o644)
	os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b"))
	if status, b := send(t, s, "metadata", `{"path":"a"}`, "file", "new"); status != 200 {
		t.Fatalf("%d %s", status, b)
	}
	if read(t, filepath.Join(dir, "b")) != "new" {
		t.Error("the other name has the old content")
	}
}

// Space that was allocated ahead is given back.
func TestUploadTakesItsSizeOnly(t *testing.T) {
	s, dir := server(t)
	content := string(bytes.Repeat([]byte("0123456789abcdef"), 3<<16))
	for range 2 {
		if status, b := send(t, s, "metadata", `{"path":"big"}`, "file", content); status != 200 {
			t.Fatalf("%d %s", status, b)
		}
	}
	st, _ := os.Stat(filepath.Join(dir, "big"))
	if st.Size() != 3<<20 || st.Sys().(*syscall.Stat_t).Blocks*512 > 4<<20 || read(t, filepath.Join(dir, "big")) != content {
		t.Errorf("size %d, %d on the disk", st.Size(), st.Sys().(*syscall.Stat_t).Blocks*512)
	}
}

// Lines longer than every buffer are sent as they are.
func TestDownloadLongLines(t *testing.T) {
	s, dir := server(t)
	long := strings.Repeat("x", 3*lineBuffer-1) + "\r" + strings.Repeat("y", 10)
	onEdge := strings.Repeat("z", lineBuffer-1)
	os.WriteFile(filepath.Join(dir, "f"), []byte("1\n"+long+"\r\n"+onEdge+"\r\n4\n"), 0o644)
	for query, want := range map[string]string{
		"offset=2&limit=1": long, "offset=3&limit=1": onEdge, "offset=3": onEdge + "\n4", "limit=2": "1\n" + long,
	} {
		if got := do(t, s, "GET", "/files/download?path=f&"+query, "", 200, ""); got != want {
			t.Errorf("%s: %d bytes, want %d", query, len(got), len(want))
		}
	}
}
