package tarball

import (
	"archive/tar"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	// block is the unit of tar, in bytes.
	block = 512
	// maxExtents keeps a file's map within the megabyte that archive/tar reads
	// of one.
	maxExtents = 16 << 10
)

// extent is a part of a file, in bytes.
type extent struct{ offset, size int64 }

// extents returns the parts of a file that hold data; nil when the file can't
// be asked or has no hole.
func extents(f *os.File, size int64) []extent {
	fd := int(f.Fd())
	var data []extent
	for at := int64(0); at < size; {
		start, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			// The rest is a hole.
			break
		}
		if err != nil || start < at {
			return nil
		}
		if start >= size {
			break
		}
		end, err := unix.Seek(fd, start, unix.SEEK_HOLE)
		if err != nil || end <= start {
			return nil
		}
		end = min(end, size)
		if len(data) == maxExtents {
			end = size
		}
		data = append(data, extent{start, end - start})
		at = end
	}
	if len(data) == 1 && data[0].size == size {
		return nil
	}
	// An empty last part says where a hole at the end ends.
	return append(data, extent{size, 0})
}

// sparse writes a file with holes in the PAX format 1.0 of GNU tar (its manual,
// "Storing Sparse Files"), which archive/tar reads but does not write.
func (a *archiver) sparse(f *os.File, hdr *tar.Header, data []extent) error {
	// Ends the entry before.
	if err := a.tw.Flush(); err != nil {
		return err
	}
	table := strconv.AppendInt(nil, int64(len(data)), 10)
	table = append(table, '\n')
	total := int64(0)
	for _, d := range data {
		table = strconv.AppendInt(table, d.offset, 10)
		table = append(table, '\n')
		table = strconv.AppendInt(table, d.size, 10)
		table = append(table, '\n')
		total += d.size
	}
	table = pad(table)
	total += int64(len(table))
	head := sparseHeader(hdr, total)
	if _, err := a.out.Write(append(head, table...)); err != nil {
		return err
	}
	for _, d := range data {
		if err := a.copy(a.out, f, hdr.Name, d); err != nil {
			return err
		}
	}
	_, err := a.out.Write(make([]byte, -total&(block-1)))
	return err
}

// sparseHeader encodes the two headers of a sparse file that takes stored bytes
// in the archive.
func sparseHeader(hdr *tar.Header, stored int64) []byte {
	var records []byte
	add := func(key, value string) { records = append(records, record(key, value)...) }
	add("GNU.sparse.major", "1")
	add("GNU.sparse.minor", "0")
	add("GNU.sparse.name", hdr.Name)
	add("GNU.sparse.realsize", strconv.FormatInt(hdr.Size, 10))
	add("mtime", fmt.Sprintf("%d.%09d", hdr.ModTime.Unix(), hdr.ModTime.Nanosecond()))
	add("uid", strconv.Itoa(hdr.Uid))
	add("gid", strconv.Itoa(hdr.Gid))
	add("size", strconv.FormatInt(stored, 10))
	for _, key := range slices.Sorted(maps.Keys(hdr.PAXRecords)) {
		add(key, hdr.PAXRecords[key])
	}
	base := path.Base(hdr.Name)
	out := ustar("PaxHeaders.0/"+base, 'x', 0o644, &tar.Header{}, int64(len(records)))
	out = append(out, pad(records)...)
	return append(out, ustar("GNUSparseFile.0/"+base, '0', hdr.Mode, hdr, stored)...)
}

// record encodes one record of an extended header: its own length, in decimal,
// comes first (pax(1)).
func record(key, value string) string {
	rest := " " + key + "=" + value + "\n"
	size := len(rest)
	for n := size + len(strconv.Itoa(size)); ; n = size + len(strconv.Itoa(n)) {
		if s := strconv.Itoa(n) + rest; len(s) == n {
			return s
		}
	}
}

// ustar encodes a header block. Numbers that don't fit are left at zero: the
// extended header has them.
func ustar(name string, kind byte, mode int64, hdr *tar.Header, size int64) []byte {
	b := make([]byte, block)
	copy(b[0:100], name)
	octal := func(at, width int, n int64) {
		if n < 0 || n >= 1<<(3*(width-1)) {
			n = 0
		}
		copy(b[at:], fmt.Sprintf("%0*o", width-1, n))
	}
	octal(100, 8, mode)
	octal(108, 8, int64(hdr.Uid))
	octal(116, 8, int64(hdr.Gid))
	octal(124, 12, size)
	octal(136, 12, hdr.ModTime.Unix())
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	octal(329, 8, 0)
	octal(337, 8, 0)
	// The sum of all bytes, with spaces in place of itself.
	copy(b[148:], "        ")
	sum := int64(0)
	for _, c := range b {
		sum += int64(c)
	}
	octal(148, 7, sum)
	b[154], b[155] = 0, ' '
	return b
}

// pad fills b to a whole number of blocks.
func pad(b []byte) []byte {
	return append(b, make([]byte, -len(b)&(block-1))...)
}
