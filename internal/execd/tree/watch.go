package tree

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/execd/web"
	"github.com/paddock-sandbox/paddock/internal/tarball"
)

const (
	// maxWatched is the most directories of one watch, which is also what many
	// kernels have for all of a user (fs.inotify.max_user_watches was 8192 up to
	// Linux 5.10).
	maxWatched = 8192
	// noticeSize is what is read from the kernel at one time, in bytes.
	noticeSize = 64 << 10
	// moveWait is how long the second half of a move may take to come. It is
	// next in the kernel's queue almost always (inotify(7)).
	moveWait = 20 * time.Millisecond
	// nameBatch is how many names of a directory are held at one time.
	nameBatch = 256
)

// Types of events.
const (
	// typeInit is the first: all changes from now on are seen.
	typeInit = "init"
	// typeCreate: a file or directory appeared, made or moved in from
	// elsewhere. Those in a new directory have events of their own.
	typeCreate = "create"
	// typeModify: content or attributes changed.
	typeModify = "modify"
	// typeDelete: it is gone, deleted or moved to elsewhere.
	typeDelete = "delete"
	// typeMove: its path changed.
	typeMove = "move"
	// typeOverflow: changes beneath path may have been missed; look anew.
	typeOverflow = "overflow"
	// typeEnd is the last: the watched directory is there no more.
	typeEnd = "end"
)

// change is one event of a watch.
type change struct {
	Type string `json:"type"`
	// Path is absolute; From is where it was before a move.
	Path string `json:"path"`
	From string `json:"from,omitempty"`
	// Directory is true when it is one.
	Directory bool `json:"directory,omitempty"`
	// Raw and RawFrom are the bytes of Path and From where those are not
	// UTF-8.
	Raw     []byte `json:"raw,omitempty"`
	RawFrom []byte `json:"raw_from,omitempty"`
	// Message explains overflow and end.
	Message string `json:"message,omitempty"`
	// Timestamp is in milliseconds since 1970.
	Timestamp int64 `json:"timestamp"`
}

// watcher is one watch.
type watcher struct {
	set       watched
	top       string
	recursive bool
	in        *os.File
	out       *writer
	buf       []byte
	heartbeat time.Duration
	// moved is the first half of a move whose second half has not come.
	moved *notice
	// found are paths in new directories that have been reported because they
	// were there; the kernel may report them as well.
	found map[string]bool
	// last is the newest event of those that were read together; it is not
	// repeated.
	last change
}

// errEnd ends a watch after its last event.
var errEnd = errors.New("the watch is over")

// watch is GET /directories/watch. It ends with its client, or with the
// directory.
func (a *API) watch(w http.ResponseWriter, r *http.Request, path string) error {
	recursive, err := boolean(r, "recursive")
	if err != nil {
		return err
	}
	root, err := tarball.OpenRoot(path)
	if err != nil {
		return refusal(err)
	}
	defer root.Close()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		if errors.Is(err, unix.EMFILE) {
			return web.Busy("the kernel allows no more watches of this user (fs.inotify.max_user_instances); end one")
		}
		return err
	}
	in := os.NewFile(uintptr(fd), "inotify")
	defer in.Close()
	out := newWriter(w)
	x := &watcher{
		set: watched{fd: fd, root: root, limit: a.watchLimit, names: make(map[int32]string), wds: make(map[string]int32)},
		top: path, recursive: recursive, in: in, out: out, heartbeat: a.heartbeat, found: make(map[string]bool),
	}
	if err := x.begin(r.Context()); err != nil {
		if errors.Is(err, errWatchLimit) {
			return web.Busy("%q has more than %d directories, or the kernel's limit (fs.inotify.max_user_watches) is reached; watch a smaller directory", path, a.watchLimit)
		}
		return refusal(err)
	}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Accel-Buffering", "no")
	x.buf = make([]byte, noticeSize)
	// Ends the read that waits for a change.
	stop := context.AfterFunc(r.Context(), func() { _ = in.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	// An error means that the client has gone, or that it was told the end.
	_ = x.run(r.Context())
	out.done()
	return nil
}

// begin watches the directory, and all in it when recursive.
func (x *watcher) begin(ctx context.Context) error {
	if err := x.descend(ctx, ".", func(string, bool) {}); err != nil {
		return err
	}
	return x.set.addHolder()
}

// descend watches a directory and, when recursive, those in it. Everything in
// it is reported to found, names before what is in them.
func (x *watcher) descend(ctx context.Context, top string, found func(name string, dir bool)) error {
	pending := []string{top}
	for len(pending) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		name := pending[len(pending)-1]
		pending = pending[:len(pending)-1]
		dir, err := x.set.add(name)
		// What the request's user may not read is not to be seen either.
		if (tarball.Vanished(err) || errors.Is(err, unix.EACCES)) && name != "." {
			continue
		}
		if err != nil {
			return err
		}
		below, err := x.scan(dir, name, found)
		dir.Close()
		if err != nil {
			return err
		}
		if len(pending)+len(below) > x.set.limit {
			return errWatchLimit
		}
		pending = append(pending, below...)
	}
	return nil
}

// scan reports what is in a directory and returns the directories among that.
// Filesystems that show the kernel are not entered.
func (x *watcher) scan(dir *os.File, name string, found func(name string, dir bool)) ([]string, error) {
	if !x.recursive || tarball.IsPseudo(int(dir.Fd())) {
		return nil, nil
	}
	var below []string
	for {
		entries, err := dir.ReadDir(nameBatch)
		for _, e := range entries {
			n := path.Join(name, e.Name())
			found(n, e.IsDir())
			if e.IsDir() {
				below = append(below, n)
			}
		}
		if errors.Is(err, io.EOF) || tarball.Vanished(err) {
			return below, nil
		}
		if err != nil {
			return nil, err
		}
		if len(below) > x.set.limit {
			return nil, errWatchLimit
		}
	}
}

// run passes changes on until the end. A client that reads slowly is waited
// for; the kernel's queue overflows then, which is passed on as well.
func (x *watcher) run(ctx context.Context) error {
	if err := x.send(change{Type: typeInit}, ".", ""); err != nil {
		return err
	}
	for {
		if err := x.out.control.Flush(); err != nil {
			return err
		}
		n, err := x.read(ctx)
		if err != nil {
			return err
		}
		if n == 0 {
			if err := x.silence(); err != nil {
				return err
			}
			continue
		}
		all, err := parseNotices(x.buf[:n])
		if err != nil {
			return x.end("the kernel's events can't be read: " + err.Error())
		}
		x.last = change{}
		for i := range all {
			if err := x.handle(ctx, &all[i]); err != nil {
				_ = x.out.control.Flush()
				return err
			}
		}
		if x.drained() {
			clear(x.found)
		}
	}
}

// read waits for changes. It returns 0 when the time for that is over.
func (x *watcher) read(ctx context.Context) (int, error) {
	wait := x.heartbeat
	if x.moved != nil {
		wait = moveWait
	}
	_ = x.in.SetReadDeadline(time.Now().Add(wait))
	// The context may have ended before the deadline was set, and set its own.
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n, err := x.in.Read(x.buf)
	if cause := ctx.Err(); cause != nil {
		return 0, cause
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, nil
	}
	return n, err
}

// drained reports whether the kernel has nothing more at present.
func (x *watcher) drained() bool {
	n, err := unix.IoctlGetInt(x.set.fd, unix.TIOCINQ)
	return err == nil && n == 0
}

// silence is what is to be done when nothing has come for a while.
func (x *watcher) silence() error {
	if x.moved != nil {
		return x.flushMove()
	}
	if x.set.removed() {
		return x.end("the watched directory was deleted")
	}
	_, err := io.WriteString(x.out, ": still here\n\n")
	return err
}

// handle passes one event of the kernel on.
func (x *watcher) handle(ctx context.Context, n *notice) error {
	if x.moved != nil {
		if n.mask&unix.IN_MOVED_TO != 0 && n.cookie == x.moved.cookie {
			return x.move(n)
		}
		if err := x.flushMove(); err != nil {
			return err
		}
	}
	if n.mask&unix.IN_Q_OVERFLOW != 0 {
		return x.overflow(ctx)
	}
	if n.wd == x.set.holder && x.set.removed() {
		return x.end("the watched directory was deleted")
	}
	dir, ok := x.set.names[n.wd]
	if !ok {
		return nil
	}
	if n.mask&unix.IN_IGNORED != 0 {
		x.set.forget(n.wd)
	}
	if dir == "." && n.name == "" {
		switch {
		case n.mask&(unix.IN_DELETE_SELF|unix.IN_IGNORED) != 0:
			return x.end("the watched directory was deleted")
		case n.mask&unix.IN_MOVE_SELF != 0:
			return x.end("the watched directory was moved")
		case n.mask&unix.IN_UNMOUNT != 0:
			return x.end("the filesystem of the watched directory was unmounted")
		}
	}
	if n.name == "" {
		// Of a directory that has an event in the one that holds it.
		return nil
	}
	return x.named(ctx, n, path.Join(dir, n.name))
}

// named handles an event about a name in a directory.
func (x *watcher) named(ctx context.Context, n *notice, name string) error {
	c := change{Directory: n.mask&unix.IN_ISDIR != 0}
	switch {
	case n.mask&unix.IN_MOVED_FROM != 0:
		held := *n
		held.name = name
		x.moved = &held
		return nil
	case n.mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0:
		return x.appeared(ctx, name, c.Directory)
	case n.mask&unix.IN_DELETE != 0:
		delete(x.found, name)
		c.Type = typeDelete
	case n.mask&(unix.IN_MODIFY|unix.IN_ATTRIB) != 0:
		c.Type = typeModify
	default:
		return nil
	}
	return x.send(c, name, "")
}

// appeared reports something new, and what is in it when it is a directory: it
// was there before it could be watched.
func (x *watcher) appeared(ctx context.Context, name string, dir bool) error {
	if x.found[name] {
		delete(x.found, name)
	} else if err := x.send(change{Type: typeCreate, Directory: dir}, name, ""); err != nil {
		return err
	}
	if !dir || !x.recursive {
		return nil
	}
	if _, known := x.set.wds[name]; known {
		return nil
	}
	var failed error
	err := x.descend(ctx, name, func(name string, dir bool) {
		if failed == nil && !x.found[name] {
			if len(x.found) < maxWatched {
				x.found[name] = true
			}
			failed = x.send(change{Type: typeCreate, Directory: dir}, name, "")
		}
	})
	if failed != nil {
		return failed
	}
	return x.incomplete(name, err)
}

// incomplete tells that a directory can't be watched as a whole.
func (x *watcher) incomplete(name string, err error) error {
	if err == nil {
		return nil
	}
	message := "changes in this directory are not seen: " + plain(err).Error()
	if errors.Is(err, errWatchLimit) {
		message = "this directory holds more directories than can be watched; changes in it may not be seen"
	}
	return x.send(change{Type: typeOverflow, Directory: true, Message: message}, name, "")
}

// move reports a move within the tree.
func (x *watcher) move(to *notice) error {
	from := x.moved
	x.moved = nil
	dir, ok := x.set.names[to.wd]
	if !ok {
		return x.gone(from)
	}
	name := path.Join(dir, to.name)
	isDir := to.mask&unix.IN_ISDIR != 0
	if isDir {
		x.set.renamed(from.name, name)
	}
	return x.send(change{Type: typeMove, Directory: isDir}, name, from.name)
}

// flushMove reports a move whose second half does not come, because it led out
// of the tree.
func (x *watcher) flushMove() error {
	from := x.moved
	x.moved = nil
	return x.gone(from)
}

func (x *watcher) gone(from *notice) error {
	isDir := from.mask&unix.IN_ISDIR != 0
	if isDir {
		x.set.leave(from.name)
	}
	return x.send(change{Type: typeDelete, Directory: isDir}, from.name, "")
}

// overflow reports lost events, and watches directories whose making was
// missed.
func (x *watcher) overflow(ctx context.Context) error {
	if x.set.removed() {
		return x.end("the watched directory was deleted")
	}
	clear(x.found)
	err := x.send(change{Type: typeOverflow, Directory: true, Message: "changes came faster than they were read, and some are lost"}, ".", "")
	if err != nil || !x.recursive {
		return err
	}
	sweep := x.set.reset()
	err = x.descend(ctx, ".", func(string, bool) {})
	sweep()
	return x.incomplete(".", err)
}

func (x *watcher) end(why string) error {
	if err := x.send(change{Type: typeEnd, Directory: true, Message: why}, ".", ""); err != nil {
		return err
	}
	return errEnd
}

// send writes an event. A change of what was changed just before is left out: a
// program that writes a file in pieces would fill the stream.
func (x *watcher) send(c change, name, from string) error {
	c.Path, c.Raw = x.absolute(name)
	if from != "" {
		c.From, c.RawFrom = x.absolute(from)
	}
	if c.Type == typeModify && x.last.Type == typeModify && c.Path == x.last.Path {
		return nil
	}
	x.last = c
	c.Timestamp = time.Now().UnixMilli()
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	_, err = x.out.Write(append(append([]byte("data: "), b...), "\n\n"...))
	return err
}

func (x *watcher) absolute(name string) (abs string, raw []byte) {
	abs = path.Join(x.top, name)
	if !utf8.ValidString(abs) {
		raw = []byte(abs)
	}
	return abs, raw
}
