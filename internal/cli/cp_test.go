package cli_test

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// grow makes a tree with what is hard to copy, and returns what is in it.
func grow(t *testing.T, top string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(top, "empty"), 0o755))
	must(os.MkdirAll(filepath.Join(top, "closed"), 0o755))
	must(os.WriteFile(filepath.Join(top, "closed", "f"), []byte("in closed"), 0o400))
	must(os.Chmod(filepath.Join(top, "closed"), 0o500))
	must(os.WriteFile(filepath.Join(top, "run"), []byte("#!/bin/sh\necho ran\n"), 0o755))
	must(os.WriteFile(filepath.Join(top, "not \xff UTF-8"), []byte("x"), 0o644))
	must(os.WriteFile(filepath.Join(top, "new\nline"), []byte("y"), 0o644))
	must(os.Symlink("run", filepath.Join(top, "link")))
	must(os.Symlink("/etc/passwd", filepath.Join(top, "absolute")))
	must(os.Symlink("nowhere", filepath.Join(top, "dangling")))
	must(os.Link(filepath.Join(top, "run"), filepath.Join(top, "hard")))
	f, err := os.Create(filepath.Join(top, "sparse"))
	must(err)
	_, err = f.WriteAt([]byte("island"), 1<<20)
	must(err)
	must(f.Truncate(4 << 30))
	must(f.Close())
	old := time.Unix(1e9, 0)
	must(os.Chtimes(filepath.Join(top, "run"), old, old))
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(top, "closed"), 0o700) })
}

// shape lists a tree: names, kinds, modes, targets and sizes.
func shape(t *testing.T, top string) string {
	t.Helper()
	cmd := exec.Command("find", ".", "-mindepth", "1", "-printf", "%P %y %m %l %n %s\\n")
	cmd.Dir = top
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	// The sizes of directories depend on the filesystem.
	lines := strings.Split(string(out), "\n")
	for i, line := range lines {
		if strings.Contains(line, " d ") {
			lines[i] = line[:strings.LastIndexByte(line, ' ')]
		}
	}
	sortLines(lines)
	return strings.Join(lines, "\n")
}

func sortLines(lines []string) {
	for i := range lines {
		for j := i; j > 0 && lines[j] < lines[j-1]; j-- {
			lines[j], lines[j-1] = lines[j-1], lines[j]
		}
	}
}

func testDirectories(t *testing.T, m *machine, id string) {
	dir := t.TempDir()
	src := filepath.Join(dir, "src")
	grow(t, src)
	want := shape(t, src)
	m.ok("cp", src, id+":/work")
	if out := m.ok("exec", id, "--", "/work/link"); out != "ran\n" {
		t.Errorf("%q", out)
	}
	if out := m.ok("exec", id, "--", "sh", "-c", "stat -c %u:%a:%Y /work/run; stat -c %b /work/sparse"); !strings.HasPrefix(out, "0:755:1000000000\n") || len(out) > 24 {
		t.Errorf("owner, mode, time and blocks: %q", out)
	}
	back := filepath.Join(dir, "back")
	m.ok("cp", id+":/work", back)
	t.Cleanup(func() { _ = os.Chmod(filepath.Join(back, "closed"), 0o700) })
	if got := shape(t, back); got != want {
		t.Errorf("came back as:\n%s\nwant:\n%s", got, want)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(back, "sparse"), &st); err != nil || st.Blocks*512 > 1<<20 {
		t.Errorf("sparse takes %d bytes, %v", st.Blocks*512, err)
	}
	m.ok("exec", id, "--", "rm", "-rf", "/work")
}

// Where a copy goes is as with docker cp.
func testDestinations(t *testing.T, m *machine, id string) {
	dir := t.TempDir()
	for _, d := range []string{"src", "there"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"src/f", "file"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m.ok("exec", id, "--", "sh", "-c", "chmod 1777 /tmp; mkdir -p /d/src /d/there; echo -n content >/d/file; echo -n content >/d/src/f; ln -s file /d/link; ln -s src /d/dirlink")
	in := func(src, dst string) string { return "cp " + filepath.Join(dir, src) + " " + id + ":" + dst }
	for _, c := range []struct{ src, dst, made string }{
		{"file", "/t/new", "/t/new"}, {"file", "/d/there", "/d/there/file"}, {"file", "/t/slash/", "/t/slash/file"},
		{"src", "/t/dir", "/t/dir/f"}, {"src", "/d/there", "/d/there/src/f"}, {"src/.", "/d/there", "/d/there/f"},
		{"file", "/d/link", "/d/link"}, {"src/.", "/d/dirlink/x", "/d/src/x/f"}, {"file", "/t/not \xff UTF-8", "/t/not \xff UTF-8"},
		{"file", "relative", "/home/user/relative"},
	} {
		src := filepath.Join(dir, c.src)
		if strings.HasSuffix(c.src, "/.") {
			src += "/."
		}
		if c.dst == "relative" {
			c.made = strings.TrimSpace(m.ok("exec", id, "--", "pwd")) + "/relative"
		}
		m.ok("cp", src, id+":"+c.dst)
		if out := m.ok("exec", id, "--", "sh", "-c", "cat "+strings.ReplaceAll(strings.ReplaceAll(c.made, "\xff", "?"), " ", "?")); out != "content" {
			t.Errorf("%s made %q", in(c.src, c.dst), out)
		}
	}
	for _, c := range []struct{ src, dst, made string }{
		{"/d/file", "new", "new"}, {"/d/file", "there", "there/file"}, {"/d/file", "slash/", "slash/file"},
		{"/d/src", "dir", "dir/f"}, {"/d/src", "there", "there/src/f"}, {"/d/src/.", "there", "there/f"},
		{"/d/link", "followed", "followed"}, {"/d/dirlink", "dirfollowed", "dirfollowed/f"}, {"/t/not \xff UTF-8", "there", "there/not \xff UTF-8"},
	} {
		m.ok("cp", id+":"+c.src, filepath.Join(dir, c.dst)+c.dst[len(strings.TrimRight(c.dst, "/")):])
		if b, err := os.ReadFile(filepath.Join(dir, c.made)); err != nil || string(b) != "content" {
			t.Errorf("cp %s %s: %q, %v", c.src, c.dst, b, err)
		}
	}
	for _, c := range []struct {
		line []string
		want string
	}{
		{[]string{"cp", filepath.Join(dir, "src"), id + ":/d/file"}, "is not a directory"},
		{[]string{"cp", id + ":/d/src", filepath.Join(dir, "file")}, "is not a directory"},
		{[]string{"cp", filepath.Join(dir, "none"), id + ":/d"}, "no such file"},
		{[]string{"cp", id + ":/none", dir}, "/none does not exist"},
		{[]string{"cp", id + ":/dev/null", dir}, "neither a file nor a directory"},
		{[]string{"cp", "/dev/null", id + ":/d"}, "neither a file nor a directory"},
		{[]string{"cp", id + ":/d/file", filepath.Join(dir, "no/such/dir")}, "no such file"},
		{[]string{"cp", filepath.Join(dir, "file"), id + ":/d/file/x"}, "not a directory"},
		{[]string{"cp", filepath.Join(dir, "file"), "none:/d"}, "none"},
		{[]string{"cp", "-u", "nobody-here", filepath.Join(dir, "file"), id + ":/d"}, "nobody-here"},
		{[]string{"cp", "-u", "1000", filepath.Join(dir, "file"), id + ":/root/x"}, "permission denied"},
	} {
		if _, errs, code := m.result(m.command(c.line...)); code != 1 || !strings.Contains(strings.ToLower(errs), c.want) {
			t.Errorf("%q: %d, %s", c.line, code, errs)
		}
	}
	m.ok("cp", "-u", "user", filepath.Join(dir, "src"), id+":/tmp/mine")
	if out := m.ok("exec", id, "--", "stat", "-c", "%u:%g", "/tmp/mine", "/tmp/mine/f"); out != "1000:1000\n1000:1000\n" {
		t.Errorf("with --user: %q", out)
	}
	m.ok("cp", id+":/d/file", "/dev/null")
	if st, err := os.Stat("/dev/null"); err != nil || st.Mode().IsRegular() {
		t.Fatalf("/dev/null: %v, %v", st, err)
	}
	m.ok("exec", id, "--", "rm", "-rf", "/d", "/t", "/tmp/mine")
}

// Directories go through pipes as archives.
func testArchives(t *testing.T, m *machine, id string) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "a/f", Mode: 0o644, Size: 1}); err != nil {
		t.Fatal(err)
	}
	w.Write([]byte("x"))
	w.Close()
	for _, dst := range []string{"/tmp", "/tmp/new/"} {
		cmd := m.command("cp", "-", id+":"+dst)
		cmd.Stdin = bytes.NewReader(archive.Bytes())
		if _, errs, code := m.result(cmd); code != 0 {
			t.Errorf("to %s: %s", dst, errs)
		}
	}
	if out := m.ok("exec", id, "--", "cat", "/tmp/a/f", "/tmp/new/a/f"); out != "xx" {
		t.Errorf("%q", out)
	}
	out := m.ok("cp", id+":/tmp/new", "-")
	var names []string
	for r := tar.NewReader(strings.NewReader(out)); ; {
		h, err := r.Next()
		if err != nil {
			if err != io.EOF {
				t.Error(err)
			}
			break
		}
		names = append(names, h.Name)
	}
	if got := strings.Join(names, " "); got != "./ a/ a/f" {
		t.Errorf("the archive holds %s", got)
	}
	cmd := m.command("cp", "-", id+":/tmp")
	cmd.Stdin = strings.NewReader("this is no archive at all, but long enough for a header or so")
	if _, errs, code := m.result(cmd); code != 1 || !strings.Contains(errs, "not a tar archive") {
		t.Errorf("no archive: %d, %s", code, errs)
	}
	m.ok("exec", id, "--", "rm", "-rf", "/tmp/a", "/tmp/new")
}

// cutProxy passes requests on to the server, and answers about archives until
// the cut only.
func cutProxy(t *testing.T, m *machine, cut int, reached chan<- struct{}) string {
	t.Helper()
	to, err := url.Parse(m.URL)
	if err != nil {
		t.Fatal(err)
	}
	p := httputil.NewSingleHostReverseProxy(to)
	p.ModifyResponse = func(r *http.Response) error {
		if strings.Contains(r.Request.URL.Path, "/directories/archive") {
			r.Body = &cutBody{ReadCloser: r.Body, left: cut, reached: reached, done: r.Request.Context().Done()}
		}
		return nil
	}
	s := httptest.NewServer(p)
	t.Cleanup(s.Close)
	return s.URL
}

// cutBody breaks off after some bytes, or waits there when somebody is told.
type cutBody struct {
	io.ReadCloser
	left    int
	reached chan<- struct{}
	done    <-chan struct{}
}

func (c *cutBody) Read(p []byte) (int, error) {
	if c.left == 0 {
		if c.reached != nil {
			close(c.reached)
			<-c.done
		}
		return 0, io.ErrUnexpectedEOF
	}
	n, err := c.ReadCloser.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// A copy that breaks off leaves no half file, and says so.
func testBrokenCopies(t *testing.T, m *machine, id string) {
	m.ok("exec", id, "--", "sh", "-c", "mkdir /b; echo first >/b/a; head -c 3000000 /dev/urandom >/b/z")
	defer m.ok("exec", id, "--", "rm", "-rf", "/b")
	leftovers := func(dir string) string {
		found, _ := filepath.Glob(filepath.Join(dir, ".paddock-*"))
		half, _ := filepath.Glob(filepath.Join(dir, "z"))
		return strings.Join(append(found, half...), " ")
	}
	proxy := cutProxy(t, m, 1<<20, nil)
	dir := t.TempDir()
	for _, line := range [][]string{{"cp", id + ":/b/.", dir}, {"cp", id + ":/b/z", dir}} {
		_, errs, code := m.result(m.command(append([]string{"--api-key", m.Key, "--server", proxy}, line...)...))
		if code != 1 || !strings.Contains(errs, "z") {
			t.Errorf("%q: %d, %s", line, code, errs)
		}
		if l := leftovers(dir); l != "" {
			t.Errorf("%q left %s", line, l)
		}
	}
	for _, line := range [][]string{{"cp", id + ":/b/.", dir}, {"cp", id + ":/b/z", dir}} {
		reached := make(chan struct{})
		cmd := m.command(append([]string{"--api-key", m.Key, "--server", cutProxy(t, m, 1<<20, reached)}, line...)...)
		go func() {
			<-reached
			_ = cmd.Process.Signal(syscall.SIGINT)
		}()
		if _, errs, code := m.result(cmd); code != 130 || errs != "" {
			t.Errorf("%q and Ctrl-C: %d, %s", line, code, errs)
		}
		if l := leftovers(dir); l != "" {
			t.Errorf("%q and Ctrl-C left %s", line, l)
		}
	}
	// Into the sandbox, from a pipe that never ends.
	for _, dst := range []string{"/b/stream", "/b/"} {
		pr, pw, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer pw.Close()
		cmd := m.command("cp", "-", id+":"+dst)
		cmd.Stdin = pr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pr.Close()
		var head bytes.Buffer
		w := tar.NewWriter(&head)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "stream", Mode: 0o644, Size: 1 << 30}); err != nil {
			t.Fatal(err)
		}
		// More than pipes and buffers hold, so that it is under way.
		if _, err := pw.Write(append(head.Bytes(), make([]byte, 1<<20)...)); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Process.Signal(syscall.SIGINT)
		_ = cmd.Wait()
		if code := cmd.ProcessState.ExitCode(); code != 130 {
			t.Errorf("to %s: exit code %d", dst, code)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for ctx.Err() == nil {
		if out := m.ok("exec", id, "--", "ls", "-A", "/b"); out == "a\nz\n" {
			return
		}
	}
	t.Errorf("left in the sandbox: %s", m.ok("exec", id, "--", "ls", "-A", "/b"))
}

// A link that came from a sandbox once is not followed by a later copy.
func testPlantedLinks(t *testing.T, m *machine, id string) {
	dir := t.TempDir()
	mine := filepath.Join(dir, "mine")
	if err := os.WriteFile(mine, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "away"), 0o700); err != nil {
		t.Fatal(err)
	}
	m.ok("exec", id, "--", "sh", "-c", "mkdir -p /planted/d && ln -s "+mine+" /planted/d/f && ln -s "+filepath.Join(dir, "away")+" /planted/d/sub")
	m.ok("cp", id+":/planted/.", dir)
	m.ok("exec", id, "--", "sh", "-c", "cd /planted/d && rm f sub && echo theirs > f && mkdir sub && echo theirs > sub/x")
	for _, name := range []string{"f", "sub"} {
		if _, errs, code := m.result(m.command("cp", id+":/planted/d/"+name, filepath.Join(dir, "d"))); code == 0 || !strings.Contains(errs, "symbolic link") {
			t.Errorf("%s: exit code %d, %s", name, code, errs)
		}
	}
	// Named in full, with the link last or on the way, and whatever the way of
	// the content: archive, file, directory.
	m.ok("exec", id, "--", "sh", "-c", "touch /planted/empty; ln -s f /planted/d/tof")
	for _, c := range [][2]string{
		{"f", "d/f"}, {"tof", "d/f"}, {"../empty", "d/f"}, {"f", "d/sub"}, {"f", "d/sub/"}, {"f", "d/sub/f"}, {"../empty", "d/sub/f"},
		{"sub", "d/sub"}, {"sub/.", "d/sub"}, {"sub/.", "d/sub/."}, {"sub", "d/sub/new"}, {"sub/.", "d/sub/new/"}, {"sub", "d/f"},
	} {
		if _, errs, code := m.result(m.command("cp", id+":/planted/d/"+c[0], dir+"/"+c[1])); code != 1 || !strings.Contains(errs, "symbolic link") {
			t.Errorf("%q: exit code %d, %s", c, code, errs)
		}
	}
	if b, err := os.ReadFile(mine); err != nil || string(b) != "mine" {
		t.Errorf("the file elsewhere holds %q, %v", b, err)
	}
	if list, err := os.ReadDir(filepath.Join(dir, "away")); err != nil || len(list) > 0 {
		t.Errorf("the directory elsewhere holds %v, %v", list, err)
	}

	// Who asks for it gets it.
	m.ok("cp", "--through-links", id+":/planted/d/f", filepath.Join(dir, "d/f"))
	m.ok("cp", "--through-links", id+":/planted/d/f", filepath.Join(dir, "d/sub"))
	for _, name := range []string{mine, filepath.Join(dir, "away", "f")} {
		if b, err := os.ReadFile(name); err != nil || string(b) != "theirs\n" {
			t.Errorf("%s holds %q, %v", name, b, err)
		}
	}
	if to, err := os.Readlink(filepath.Join(dir, "d/f")); err != nil || to != mine {
		t.Errorf("the link leads to %q, %v", to, err)
	}
	out := m.ok("cp", id+":/planted/d/f", "/dev/stdout")
	if out != "theirs\n" {
		t.Errorf("to /dev/stdout: %q", out)
	}
}
