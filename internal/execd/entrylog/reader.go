package entrylog

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Options choose a part of a log.
type Options struct {
	// Tail is the number of last lines; 0 means all that is kept.
	Tail int
	// Since drops what is older; zero means from the beginning.
	Since time.Time
	// Timestamps prefixes each line with its RFC 3339 time in UTC. Lines are
	// then put together per stream, so that output of the two streams never
	// shares a line.
	Timestamps bool
	// Follow keeps the stream open until Ended is closed and all was read.
	Follow bool
	// Ended tells a following reader that nothing more will be written. Nil
	// means that only the context ends it.
	Ended <-chan struct{}
}

// recheck is how often a following reader looks without having been told. The
// kernel's notices usually come first; they are lost when the user's limit of
// inotify instances is reached.
const recheck = 250 * time.Millisecond

// Reader streams a log. Read must not be called in parallel; Close may be
// called at any time.
type Reader struct {
	ctx    context.Context
	cancel context.CancelFunc
	files  [2]*os.File
	scan   *scanner
	opts   Options
	// skip is the number of lines to leave out at the beginning.
	skip   int
	render *renderer
	out    bytes.Buffer
	watch  *watcher
	ended  bool
}

// Open reads the log in the two segment files, which must be regular. The
// files' owner is the host; only their content is not trusted.
func Open(ctx context.Context, paths [2]string, opts Options) (*Reader, error) {
	if opts.Tail < 0 {
		return nil, fmt.Errorf("tail is %d; it must be 0 (all) or more", opts.Tail)
	}
	var files [2]*os.File
	for i, p := range paths {
		f, err := openSegment(p)
		if err != nil {
			if i == 1 {
				files[0].Close()
			}
			return nil, err
		}
		files[i] = f
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &Reader{ctx: ctx, cancel: cancel, files: files, opts: opts}
	r.scan = newScanner(files, !opts.Follow)
	r.render = &renderer{out: &r.out, timestamps: opts.Timestamps}
	if opts.Follow {
		// Before the first look, so that no write goes unnoticed.
		r.watch = newWatcher(paths)
	}
	if opts.Tail > 0 {
		r.skip = max(0, r.countLines()-opts.Tail)
	}
	return r, nil
}

func newScanner(files [2]*os.File, bounded bool) *scanner {
	return &scanner{
		segments: [2]io.ReaderAt{files[0], files[1]},
		bounded:  bounded,
		left:     2 * maxSegment,
	}
}

func openSegment(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("opening the log: %w", err)
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(fmt.Errorf("the log segment %q is not a regular file", path), err)
	}
	return f, nil
}

// countLines counts the lines that Read would give without a limit.
func (r *Reader) countLines() int {
	s := newScanner(r.files, true)
	var c lineCounter
	for {
		rec, ok := s.next()
		if !ok || r.ctx.Err() != nil {
			return c.lines()
		}
		if !rec.time.Before(r.opts.Since) {
			c.add(rec, r.opts.Timestamps)
		}
	}
}

// Read implements io.Reader. A following reader blocks until there is more. It
// returns the context's error when the context ends.
func (r *Reader) Read(p []byte) (int, error) {
	for r.out.Len() == 0 {
		if err := r.ctx.Err(); err != nil {
			return 0, err
		}
		rec, ok := r.scan.next()
		if ok {
			if !rec.time.Before(r.opts.Since) {
				r.skip = r.render.record(rec, r.skip)
			}
			continue
		}
		if r.ended || !r.opts.Follow {
			r.render.flush(r.skip)
			if r.out.Len() == 0 {
				return 0, io.EOF
			}
			break
		}
		r.wait()
	}
	return r.out.Read(p)
}

// wait returns when there may be more to read.
func (r *Reader) wait() {
	timer := time.NewTimer(recheck)
	defer timer.Stop()
	select {
	case <-r.opts.Ended:
		// One more look: it was written before it ended.
		r.ended = true
	case <-r.watch.changed():
	case <-timer.C:
	case <-r.ctx.Done():
	}
}

// Close ends a blocked Read and closes the files.
func (r *Reader) Close() error {
	r.cancel()
	r.watch.close()
	return errors.Join(r.files[0].Close(), r.files[1].Close())
}

// notice is what a reader sees in place of output that was lost.
func notice(data []byte) []byte {
	n := uint64(0)
	if len(data) == 8 {
		n = binary.LittleEndian.Uint64(data)
	}
	return fmt.Appendf(nil, "[%d bytes of output were lost: the disk was full]\n", n)
}
