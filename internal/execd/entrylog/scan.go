package entrylog

import (
	"encoding/binary"
	"io"
	"time"
)

// record is one decoded record. data is valid until the next call of next.
type record struct {
	time   time.Time
	stream Stream
	data   []byte
}

// scanner walks through the records of two segments, oldest first. At the end
// next answers false; called again later it goes on with what was written
// meanwhile. When the writer has overtaken it, it goes on with the oldest
// record that is still there.
type scanner struct {
	segments [2]io.ReaderAt
	// number is that of the segment being read, 0 before the first. It only
	// rises, which is what bounds the walk.
	number uint64
	offset int64
	// left, when bounded, is how many bytes may still be read. It ends a walk
	// that does not follow, even if the entrypoint writes faster than it reads.
	bounded bool
	left    int64
	buf     [recordStart + maxRecord]byte
}

// hops bounds how many segments one call of next passes over. An honest log has
// two.
const hops = 8

// next returns the next record, and false when there is none now.
func (s *scanner) next() (record, bool) {
	for range hops {
		index := s.locate()
		if index < 0 || s.bounded && s.left <= 0 {
			return record{}, false
		}
		if r, ok := s.read(index); ok {
			return r, true
		}
		// Nothing more here. The writer finishes a segment before it begins
		// the next, but may have done both since the read above.
		if !s.newer() {
			return record{}, false
		}
		if r, ok := s.read(index); ok {
			return r, true
		}
		if !s.advance() {
			return record{}, false
		}
	}
	return record{}, false
}

// locate returns the index of the segment with the current number. If it has
// been overwritten, or none was chosen yet, it moves to the oldest newer one.
func (s *scanner) locate() int {
	if s.number > 0 {
		for i := range s.segments {
			if s.header(i) == s.number {
				return i
			}
		}
	}
	if !s.advance() {
		return -1
	}
	for i := range s.segments {
		if s.header(i) == s.number {
			return i
		}
	}
	return -1
}

// newer reports whether a segment with a higher number exists.
func (s *scanner) newer() bool {
	return s.header(0) > s.number || s.header(1) > s.number
}

// advance moves to the lowest number above the current one.
func (s *scanner) advance() bool {
	best := uint64(0)
	for i := range s.segments {
		if n := s.header(i); n > s.number && (best == 0 || n < best) {
			best = n
		}
	}
	if best == 0 {
		return false
	}
	s.number, s.offset = best, segmentStart
	return true
}

// header returns a segment's number, 0 when it has none.
func (s *scanner) header(i int) uint64 {
	var b [segmentStart]byte
	if n, _ := s.segments[i].ReadAt(b[:], 0); n < len(b) || string(b[:8]) != magic {
		return 0
	}
	return binary.LittleEndian.Uint64(b[8:])
}

// read decodes the record at the current offset.
func (s *scanner) read(i int) (record, bool) {
	head := s.buf[:recordStart]
	if n, _ := s.segments[i].ReadAt(head, s.offset); n < len(head) {
		return record{}, false
	}
	size := int64(binary.LittleEndian.Uint32(head))
	if size == 0 || size > maxRecord || s.offset+recordStart+size > maxSegment {
		return record{}, false
	}
	data := s.buf[recordStart : recordStart+size]
	if n, _ := s.segments[i].ReadAt(data, s.offset+recordStart); int64(n) < size {
		return record{}, false
	}
	if binary.LittleEndian.Uint32(head[4:]) != checksum(s.number, s.buf[8:recordStart+size]) {
		return record{}, false
	}
	s.offset += recordStart + size
	s.left -= recordStart + size
	r := record{
		time:   time.Unix(0, int64(binary.LittleEndian.Uint64(head[8:]))),
		stream: Stream(head[16]),
		data:   data,
	}
	return r, true
}
