package entrylog

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"time"
)

// Writer records output. Its methods may be called in parallel.
//
// It never fails towards its caller: what can't be written, because the disk
// is full, is dropped and counted, and the count is recorded once writing works
// again. The entrypoint must not stop because nobody can keep what it says.
type Writer struct {
	mu       sync.Mutex
	segments [2]*os.File
	current  int
	number   uint64
	offset   int64
	limit    int64
	buf      []byte
	dropped  uint64
	now      func() time.Time
}

// NewWriter starts an empty log in two files, whose content it discards. limit
// is the size at which a segment is full; 0 means DefaultSegment. The files
// stay the caller's to close, after the last Write.
func NewWriter(a, b *os.File, limit int64) (*Writer, error) {
	if limit == 0 {
		limit = DefaultSegment
	}
	if limit < segmentStart+recordStart+1 || limit > maxSegment-maxRecord {
		return nil, fmt.Errorf("log segment size %d is not between %d and %d bytes", limit, segmentStart+recordStart+1, maxSegment-maxRecord)
	}
	w := &Writer{segments: [2]*os.File{a, b}, current: 1, limit: limit, now: time.Now}
	if err := b.Truncate(0); err != nil {
		return nil, fmt.Errorf("emptying the log: %w", err)
	}
	if err := w.rotate(); err != nil {
		return nil, fmt.Errorf("starting the log: %w", err)
	}
	return w, nil
}

// Write records output of a stream, now.
func (w *Writer) Write(s Stream, p []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(p) > 0 {
		n := min(len(p), maxRecord)
		w.record(s, p[:n])
		p = p[n:]
	}
}

// Dropped is the number of bytes that could not be written so far and are not
// yet mentioned in the log.
func (w *Writer) Dropped() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dropped
}

func (w *Writer) record(s Stream, p []byte) {
	if w.offset >= w.limit {
		if err := w.rotate(); err != nil {
			w.dropped += uint64(len(p))
			return
		}
	}
	w.buf = w.buf[:0]
	t := w.now().UnixNano()
	if w.dropped > 0 {
		var count [8]byte
		binary.LittleEndian.PutUint64(count[:], w.dropped)
		w.buf = appendRecord(w.buf, w.number, t, lost, count[:])
	}
	w.buf = appendRecord(w.buf, w.number, t, s, p)
	// At an explicit offset: what a failed write left behind is overwritten by
	// the next one, so that the records before and after it stay readable.
	if _, err := w.segments[w.current].WriteAt(w.buf, w.offset); err != nil {
		w.dropped += uint64(len(p))
		return
	}
	w.offset += int64(len(w.buf))
	w.dropped = 0
}

// rotate goes on in the other segment. Nothing changes when it fails.
func (w *Writer) rotate() error {
	next := 1 - w.current
	f := w.segments[next]
	if err := f.Truncate(0); err != nil {
		return err
	}
	head := binary.LittleEndian.AppendUint64([]byte(magic), w.number+1)
	if _, err := f.WriteAt(head, 0); err != nil {
		return err
	}
	w.current, w.number, w.offset = next, w.number+1, segmentStart
	return nil
}
