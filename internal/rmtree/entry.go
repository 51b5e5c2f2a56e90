package rmtree

import (
	"bytes"
	"encoding/binary"
)

// bufferSize is how many bytes of names one call reads, at least 29 names. Each
// level has such a buffer.
const bufferSize = 8 << 10

// What comes before the name in a struct linux_dirent64, in bytes (getdents(2)):
// d_ino 8, d_off 8, d_reclen 2, d_type 1.
const (
	lengthAt = 16
	kindAt   = 18
	nameAt   = 19
)

// entry is a name in a directory.
type entry struct {
	name string
	// kind is one of unix.DT_, DT_UNKNOWN where the filesystem doesn't tell.
	kind byte
}

// next takes the first entry from what getdents64 has written. An entry without
// a name is none.
func next(b []byte) (entry, []byte) {
	if len(b) < nameAt {
		return entry{}, nil
	}
	length := int(binary.NativeEndian.Uint16(b[lengthAt:]))
	if length < nameAt || length > len(b) {
		return entry{}, nil
	}
	name, _, _ := bytes.Cut(b[nameAt:length], []byte{0})
	return entry{name: string(name), kind: b[kindAt]}, b[length:]
}
