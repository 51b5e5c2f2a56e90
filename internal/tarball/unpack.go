package tarball

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"syscall"
)

const (
	// maxName is PATH_MAX of Linux, in bytes.
	maxName = 4096
	// maxFile bounds one file, in bytes. Content that is not there (holes)
	// costs time only, but that without end.
	maxFile = 1 << 40
	// maxSkipped bounds the names of skipped entries in the answer.
	maxSkipped = 100
	// maxLater bounds the directories whose mode and time are set last; further
	// ones get theirs at once.
	maxLater = 1 << 16
	// maxTrailer bounds what is read of the padding after an archive, in bytes.
	maxTrailer = 1 << 20
)

// Skipped is an entry that could not be made.
type Skipped struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// Result is what an archive has become.
type Result struct {
	// Entries counts what was made, Bytes the sizes of files.
	Entries int64 `json:"entries"`
	Bytes   int64 `json:"bytes"`
	// Skipped are the first entries of kinds that can't be made here, such as
	// devices; SkippedTotal counts all.
	Skipped      []Skipped `json:"skipped,omitempty"`
	SkippedTotal int64     `json:"skipped_total,omitempty"`
}

// UnpackOptions say how an archive is unpacked. The zero value keeps everything
// that the caller's privileges allow.
type UnpackOptions struct {
	// Made is set when the directory did not exist before; it then gets the
	// mode and owner of the archive's own entry "./".
	Made bool
	// Foreign is set when the archive comes from somebody who has no say here:
	// files belong to the caller, set-user-id, set-group-id and sticky bits are
	// dropped, devices and FIFOs are skipped, and directories that are there
	// keep their modes.
	Foreign bool
	// Name, when not empty, is for an archive of one file, which gets this name
	// whatever its own is. Any other archive is an error.
	Name string
}

// extractor makes what one archive holds.
type extractor struct {
	ctx  context.Context
	root *os.Root
	opts UnpackOptions
	// privileged is true when owners can be set.
	privileged bool
	buf        []byte
	// parent is the open directory of the last entry.
	parent     *os.File
	parentName string
	later      []later
	sum        Result
}

// Unpack makes what an uncompressed tar archive holds, beneath root. Each file
// appears under its name at once and complete, in place of whatever is there but
// a directory; what was made before a failure stays. The error is a *FormatError
// when the archive is at fault, a *ConflictError when something is in its way,
// and an *EntryError when the system refuses an entry.
func Unpack(ctx context.Context, r io.Reader, root *os.Root, o UnpackOptions) (*Result, error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	x := &extractor{ctx: ctx, root: root, opts: o, privileged: os.Geteuid() == 0, buf: *buf}
	defer x.closeParent()
	if err := x.run(bufio.NewReaderSize(r, copySize)); err != nil {
		return nil, err
	}
	return &x.sum, nil
}

// run reads the archive. Directories get their modes and times in the end even
// when it fails, so that nothing stays closed.
func (x *extractor) run(body *bufio.Reader) error {
	if head, err := body.Peek(2); err == nil && head[0] == 0x1f && head[1] == 0x8b {
		return badArchive("the archive is compressed with gzip; send it uncompressed")
	}
	err := x.entries(tar.NewReader(body))
	if err == nil && x.opts.Name != "" && x.sum.Entries == 0 {
		err = badArchive("the archive is empty")
	}
	if settled := x.settle(); err == nil {
		err = settled
	}
	if err == nil {
		// Padding to the archive's record size, so that the connection can be
		// used again.
		_, _ = io.CopyN(io.Discard, body, maxTrailer)
	}
	return err
}

func (x *extractor) entries(tr *tar.Reader) error {
	last := ""
	for {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			if x.ctx.Err() != nil {
				return x.ctx.Err()
			}
			if last == "" {
				return badArchive("the body is not a tar archive: %v", err)
			}
			return badArchive("the archive is broken after entry %q: %v", last, err)
		}
		if x.opts.Name != "" {
			if last != "" || hdr.Typeflag != tar.TypeReg {
				return badArchive("the archive holds more or other than one file")
			}
			hdr.Name = x.opts.Name
		}
		last = clip(hdr.Name)
		if err := x.entry(hdr, tr); err != nil {
			return err
		}
	}
}

// FormatError says what is wrong with an archive.
type FormatError struct{ message string }

func (e *FormatError) Error() string { return e.message }

func badArchive(format string, args ...any) error {
	return &FormatError{fmt.Sprintf(format, args...)}
}

// ConflictError is returned when something that is there already, such as a
// directory where a file should be, is in the way of an entry.
type ConflictError struct {
	Entry string
	Err   error
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("entry %q: what is there already is in its way: %v", e.Entry, e.Err)
}

// Unwrap returns the cause.
func (e *ConflictError) Unwrap() error { return e.Err }

// EntryError is returned when the system does not let an entry be made, for want
// of space, say.
type EntryError struct {
	Entry string
	Err   error
}

func (e *EntryError) Error() string { return fmt.Sprintf("entry %q: %v", e.Entry, e.Err) }

// Unwrap returns the cause.
func (e *EntryError) Unwrap() error { return e.Err }

// entry makes one entry.
func (x *extractor) entry(hdr *tar.Header, content io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := local(hdr.Name)
	if err != nil {
		return badArchive("entry %q: %v", clip(hdr.Name), err)
	}
	err = x.place(hdr, name, content)
	var skip *skipError
	switch {
	case err == nil:
		x.sum.Entries++
		return nil
	case errors.As(err, &skip):
		x.sum.SkippedTotal++
		if len(x.sum.Skipped) < maxSkipped {
			x.sum.Skipped = append(x.sum.Skipped, Skipped{clip(hdr.Name), skip.reason})
		}
		return nil
	}
	return x.explain(hdr, err)
}

// explain says of an error which entry it is about, and whose fault it is.
func (x *extractor) explain(hdr *tar.Header, err error) error {
	var bad *FormatError
	if errors.As(err, &bad) || x.ctx.Err() != nil {
		return err
	}
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrHeader) {
		return badArchive("the archive ends or is broken within entry %q: %v", clip(hdr.Name), err)
	}
	var source *sourceError
	if errors.As(err, &source) {
		return source.err
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		// os.Root's refusal of what leads out of it.
		return badArchive("entry %q: %v", clip(hdr.Name), err)
	}
	switch errno {
	case syscall.EISDIR, syscall.ENOTDIR, syscall.ENOTEMPTY:
		return &ConflictError{clip(hdr.Name), err}
	}
	return &EntryError{clip(hdr.Name), err}
}

// skipError is returned for an entry that is left out.
type skipError struct{ reason string }

func (e *skipError) Error() string { return e.reason }

// local turns the name of an entry into a clean path beneath the directory,
// "." for the directory itself. It refuses names that lead out of it.
func local(name string) (string, error) {
	switch {
	case name == "":
		return "", errors.New("the name is empty")
	case len(name) > maxName:
		return "", fmt.Errorf("the name is %d bytes long; Linux takes at most %d", len(name), maxName)
	case strings.ContainsRune(name, 0):
		return "", errors.New("the name contains a NUL byte")
	case name[0] == '/':
		return "", errors.New("the name is absolute; names must be relative to the directory")
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", errors.New("the name contains \"..\"; names must stay beneath the directory")
		}
	}
	return path.Clean(name), nil
}

// clip keeps an archive's names from making an answer long.
func clip(s string) string {
	const longest = 256
	if len(s) > longest {
		return s[:longest] + "…"
	}
	return s
}
