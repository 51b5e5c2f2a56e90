package tree

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/tarball"
)

// observer is a client of a watch.
type observer struct {
	t    *testing.T
	rig  *rig
	body *bufio.Reader
	stop func()
}

// observe begins a watch and reads its first event.
func (r *rig) observe(t *testing.T, query string) *observer {
	t.Helper()
	return r.observeAt(t, "/directories/watch?"+query)
}

func (r *rig) observeAt(t *testing.T, path string) *observer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url+path, nil)
	must(t, err)
	res, err := http.DefaultClient.Do(req)
	must(t, err)
	stop := func() { cancel(); res.Body.Close() }
	t.Cleanup(stop)
	if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%d %q", res.StatusCode, res.Header.Get("Content-Type"))
	}
	o := &observer{t: t, rig: r, body: bufio.NewReader(res.Body), stop: stop}
	if c := o.next(); c.Type != "init" {
		t.Fatalf("first event %+v", c)
	}
	return o
}

// next reads one event; the type is "" at the end of the stream.
func (o *observer) next() change {
	o.t.Helper()
	for {
		line, err := o.body.ReadString('\n')
		if err != nil {
			return change{}
		}
		data, ok := strings.CutPrefix(line, "data: ")
		if !ok {
			continue
		}
		var c change
		if err := json.Unmarshal([]byte(data), &c); err != nil || c.Timestamp == 0 {
			o.t.Fatalf("%s: %v", data, err)
		}
		return c
	}
}

// brief writes an event as a test expects it.
func (o *observer) brief(c change) string {
	name := func(path string, raw []byte) string {
		if raw != nil {
			path = string(raw)
		}
		rel, err := filepath.Rel(o.rig.dir, path)
		if err != nil {
			o.t.Fatal(err)
		}
		return rel
	}
	s := c.Type + " " + name(c.Path, c.Raw)
	if c.Directory {
		s += "/"
	}
	if c.From != "" {
		s += " from " + name(c.From, c.RawFrom)
	}
	return s
}

// expect reads the events of a change.
func (o *observer) expect(want ...string) {
	o.t.Helper()
	for _, w := range want {
		if got := o.brief(o.next()); got != w {
			o.t.Fatalf("got %q, want %q of %q", got, w, want)
		}
	}
}

func TestWatch(t *testing.T) {
	r := newRig(t)
	in := func(name string) string { return filepath.Join(r.dir, name) }
	must(t, os.MkdirAll(in("top/sub"), 0o755))
	must(t, os.WriteFile(in("top/old"), nil, 0o644))
	must(t, os.Mkdir(in("other"), 0o755))
	o := r.observe(t, "path=top")

	must(t, os.WriteFile(in("top/a"), []byte("x"), 0o644))
	o.expect("create top/a", "modify top/a")
	must(t, os.Chmod(in("top/a"), 0o600))
	o.expect("modify top/a")
	must(t, os.Rename(in("top/a"), in("top/b")))
	o.expect("move top/b from top/a")
	must(t, os.Remove(in("top/b")))
	o.expect("delete top/b")
	must(t, os.Mkdir(in("top/d"), 0o755))
	o.expect("create top/d/")
	// Not recursive: this is not seen.
	must(t, os.WriteFile(in("top/d/unseen"), nil, 0o644))
	must(t, os.Rename(in("top/old"), in("other/old")))
	o.expect("delete top/old")
	must(t, os.Rename(in("other/old"), in("top/back")))
	o.expect("create top/back")
	must(t, os.Symlink("/", in("top/link")))
	o.expect("create top/link")
	must(t, os.WriteFile(in("top/not \xff UTF-8"), nil, 0o644))
	o.expect("create top/not \xff UTF-8")
	must(t, os.Rename(in("top/not \xff UTF-8"), in("top/\xfe")))
	o.expect("move top/\xfe from top/not \xff UTF-8")

	must(t, os.RemoveAll(in("top")))
	seen := make(map[string]bool)
	for c := o.next(); c.Type != ""; c = o.next() {
		seen[o.brief(c)] = true
	}
	for _, want := range []string{"delete top/sub/", "delete top/link", "delete top/d/", "end top/"} {
		if !seen[want] {
			t.Errorf("%q is missing in %v", want, seen)
		}
	}
}

func TestWatchRecursive(t *testing.T) {
	r := newRig(t)
	in := func(name string) string { return filepath.Join(r.dir, name) }
	must(t, os.MkdirAll(in("top/a/b"), 0o755))
	must(t, os.MkdirAll(in("other/x/y"), 0o755))
	must(t, os.WriteFile(in("other/x/y/f"), nil, 0o644))
	o := r.observe(t, "path=top&recursive=true")

	must(t, os.WriteFile(in("top/a/b/f"), nil, 0o644))
	o.expect("create top/a/b/f")
	// A directory that is moved in has its content reported, and is watched.
	must(t, os.Rename(in("other/x"), in("top/x")))
	o.expect("create top/x/", "create top/x/y/", "create top/x/y/f")
	must(t, os.Remove(in("top/x/y/f")))
	o.expect("delete top/x/y/f")
	// One that is moved about keeps being watched, by its new name.
	must(t, os.Rename(in("top/x"), in("top/a/z")))
	o.expect("move top/a/z/ from top/x")
	must(t, os.WriteFile(in("top/a/z/y/g"), nil, 0o644))
	o.expect("create top/a/z/y/g")
	// Another one under the old name is another one.
	must(t, os.Mkdir(in("top/x"), 0o755))
	o.expect("create top/x/")
	must(t, os.WriteFile(in("top/x/h"), nil, 0o644))
	o.expect("create top/x/h")
	// One that is moved out is not watched any more.
	must(t, os.Rename(in("top/a/z"), in("other/z")))
	o.expect("delete top/a/z/")
	must(t, os.WriteFile(in("other/z/y/unseen"), nil, 0o644))
	must(t, os.WriteFile(in("top/seen"), nil, 0o644))
	o.expect("create top/seen")
	must(t, os.RemoveAll(in("top/a")))
	o.expect("delete top/a/b/f", "delete top/a/b/", "delete top/a/")
	must(t, os.Rename(in("top"), in("moved")))
	o.expect("end top/")
	if c := o.next(); c.Type != "" {
		t.Errorf("after the end: %+v", c)
	}
}

// However fast directories are made, each file in them is reported once.
func TestWatchRace(t *testing.T) {
	r := newRig(t)
	o := r.observe(t, "path=.&recursive=1")
	const n = 200
	want := make(map[string]bool)
	for i := range n {
		d := fmt.Sprintf("d%d/e/f", i)
		must(t, os.MkdirAll(filepath.Join(r.dir, d), 0o755))
		must(t, os.WriteFile(filepath.Join(r.dir, d, "g"), []byte("x"), 0o644))
		for name := d; name != "."; name = filepath.Dir(name) {
			want["create "+name+"/"] = true
		}
		want["create "+d+"/g"] = true
	}
	got := make(map[string]int)
	for len(got) < len(want) {
		c := o.next()
		if c.Type == typeCreate {
			got[o.brief(c)]++
		} else if c.Type != typeModify {
			t.Fatalf("%+v", c)
		}
	}
	for name, times := range got {
		if !want[name] || times != 1 {
			t.Errorf("%q came %d times", name, times)
		}
	}
}

// Events that the kernel has lost are owned up to, and new directories found.
func TestWatchOverflow(t *testing.T) {
	if _, err := os.Stat("/dev/shm"); err == nil {
		// Some ten thousand files take a disk long.
		t.Setenv("TMPDIR", "/dev/shm")
	}
	r := newRig(t)
	root, err := tarball.OpenRoot(r.dir)
	must(t, err)
	defer root.Close()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	must(t, err)
	in := os.NewFile(uintptr(fd), "inotify")
	defer in.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	rec := &spy{ResponseRecorder: httptest.NewRecorder(), text: "/late/below/f", seen: make(chan struct{})}
	x := &watcher{
		set: watched{fd: fd, root: root, limit: 100, names: make(map[int32]string), wds: make(map[string]int32)},
		top: r.dir, recursive: true, in: in, out: newWriter(rec), buf: make([]byte, noticeSize), heartbeat: patience, found: make(map[string]bool),
	}
	must(t, x.begin(ctx))
	b, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	must(t, err)
	var most int
	_, err = fmt.Sscan(string(b), &most)
	must(t, err)
	if most > 1<<17 {
		t.Skipf("the kernel queues %d events, too many to overflow quickly", most)
	}
	must(t, os.Mkdir(r.dir+"/dir", 0o755))
	// Two events each, of alternating files so that the kernel merges none.
	for i := range most/2 + 10 {
		must(t, os.WriteFile(r.dir+"/"+[]string{"a", "b"}[i%2], []byte("x"), 0o644))
		must(t, os.Remove(r.dir+"/"+[]string{"a", "b"}[i%2]))
	}
	must(t, os.MkdirAll(r.dir+"/late/below", 0o755))
	go func() {
		// The making of this directory was lost, but it is found.
		for waiting := true; waiting && ctx.Err() == nil; {
			select {
			case <-rec.seen:
				waiting = false
			case <-time.After(time.Millisecond):
				if err := os.WriteFile(r.dir+"/late/below/f", []byte("x"), 0o644); err != nil {
					t.Error(err)
				}
			}
		}
		// Ends the run: the watched directory goes last.
		if err := os.RemoveAll(r.dir); err != nil {
			t.Error(err)
		}
	}()
	if err := x.run(ctx); err != errEnd {
		t.Errorf("%v", err)
	}
	body := rec.Body.String()
	for _, want := range []string{`"type":"overflow"`, rec.text, `"type":"end"`} {
		_, after, found := strings.Cut(body, want)
		if !found {
			t.Errorf("%q is missing, or out of order", want)
		}
		body = after
	}
}

// spy tells when a text is written.
type spy struct {
	*httptest.ResponseRecorder
	text string
	seen chan struct{}
}

func (s *spy) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(s.text)) {
		select {
		case <-s.seen:
		default:
			close(s.seen)
		}
	}
	return s.ResponseRecorder.Write(p)
}

func TestWatchLimits(t *testing.T) {
	r := newRig(t)
	r.api.watchLimit = 3
	in := func(name string) string { return filepath.Join(r.dir, name) }
	must(t, os.MkdirAll(in("top/a/b"), 0o755))
	must(t, os.MkdirAll(in("many/a/b/c"), 0o755))
	for query, want := range map[string]int{
		"path=many&recursive=true": 429, "path=missing": 404, "path=env": 404, "": 400, "path=top&recursive=maybe": 400,
	} {
		res, err := http.Get(r.url + "/directories/watch?" + query)
		must(t, err)
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%q: %d", query, res.StatusCode)
		}
	}
	o := r.observe(t, "path=top&recursive=true")
	must(t, os.Mkdir(in("top/a/c"), 0o755))
	o.expect("create top/a/c/", "overflow top/a/c/")
	must(t, os.WriteFile(in("top/a/b/f"), nil, 0o644))
	o.expect("create top/a/b/f")

	for range maxWatches - 1 {
		r.observe(t, "path=top")
	}
	res, err := http.Get(r.url + "/directories/watch?path=top")
	must(t, err)
	res.Body.Close()
	if res.StatusCode != http.StatusTooManyRequests || res.Header.Get("Retry-After") == "" {
		t.Errorf("one too many: %d", res.StatusCode)
	}
	// It ends with its client.
	o.stop()
	r.until("a slot", func() bool { return len(r.api.watches) == maxWatches-1 })
}

func TestWatchHeartbeat(t *testing.T) {
	r := newRig(t)
	r.api.heartbeat = time.Millisecond
	o := r.observe(t, "path=.")
	for range 3 {
		if line, err := o.body.ReadString('\n'); err != nil || line != ": still here\n" && line != "\n" {
			t.Fatalf("%q, %v", line, err)
		}
	}
	must(t, os.WriteFile(r.dir+"/f", nil, 0o644))
	o.expect("create f")
}

func FuzzNotices(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00name\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Add([]byte("\x01\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\xff\xff\xff\xffname"))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := parseNotices(b)
		if err == nil && len(b) < len(all)*unix.SizeofInotifyEvent {
			t.Errorf("%d events of %d bytes", len(all), len(b))
		}
		for _, n := range all {
			if strings.ContainsRune(n.name, 0) {
				t.Errorf("name %q", n.name)
			}
		}
	})
}
