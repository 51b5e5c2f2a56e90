package tree

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/web"
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

// skipped is an entry that could not be made.
type skipped struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// summary is the answer to POST /directories/archive.
type summary struct {
	// Entries counts what was made, Bytes the sizes of files.
	Entries int64 `json:"entries"`
	Bytes   int64 `json:"bytes"`
	// Skipped are the first entries of kinds that can't be made here, such as
	// devices; SkippedTotal counts all.
	Skipped      []skipped `json:"skipped,omitempty"`
	SkippedTotal int64     `json:"skipped_total,omitempty"`
}

// extractor makes what one archive holds.
type extractor struct {
	ctx  context.Context
	root *os.Root
	// made is true when the directory itself did not exist before.
	made bool
	// privileged is true when owners can be set.
	privileged bool
	buf        []byte
	// parent is the open directory of the last entry.
	parent     *os.File
	parentName string
	later      []later
	sum        summary
}

// extract is POST /directories/archive. The directory is made when it is
// missing. What was made before a failure stays.
func (a *API) extract(w http.ResponseWriter, r *http.Request, path string) error {
	made := false
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return refusal(err)
		}
		made = true
	}
	root, err := openRoot(path)
	if err != nil {
		return refusal(err)
	}
	defer root.Close()
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	x := &extractor{ctx: r.Context(), root: root, made: made, privileged: os.Geteuid() == 0, buf: *buf}
	defer x.closeParent()
	control := http.NewResponseController(w)
	defer control.SetReadDeadline(time.Time{})
	body := bufio.NewReaderSize(&patient{r: r.Body, control: control}, copySize)
	if err := x.run(body); err != nil {
		return refusal(err)
	}
	web.JSON(w, http.StatusOK, &x.sum)
	return nil
}

// patient gives each piece of a request's body its own deadline.
type patient struct {
	r       io.Reader
	control *http.ResponseController
}

func (p *patient) Read(b []byte) (int, error) {
	// Where deadlines are not supported the connection's own limits hold.
	_ = p.control.SetReadDeadline(time.Now().Add(stall))
	return p.r.Read(b)
}

// run reads the archive. Directories get their modes and times in the end even
// when it fails, so that nothing stays closed.
func (x *extractor) run(body *bufio.Reader) error {
	if head, err := body.Peek(2); err == nil && head[0] == 0x1f && head[1] == 0x8b {
		return badArchive("the archive is compressed with gzip; send it uncompressed")
	}
	err := x.entries(tar.NewReader(body))
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
			if last == "" {
				return badArchive("the body is not a tar archive: %v", err)
			}
			return badArchive("the archive is broken after entry %q: %v", last, err)
		}
		last = clip(hdr.Name)
		if err := x.entry(hdr, tr); err != nil {
			return err
		}
	}
}

func badArchive(format string, args ...any) error {
	return web.Errorf(http.StatusBadRequest, web.CodeInvalidContent, format, args...)
}

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
			x.sum.Skipped = append(x.sum.Skipped, skipped{clip(hdr.Name), skip.reason})
		}
		return nil
	}
	return x.explain(hdr, err)
}

// explain says of an error which entry it is about, and whose fault it is.
func (x *extractor) explain(hdr *tar.Header, err error) error {
	var e *web.Error
	if errors.As(err, &e) || x.ctx.Err() != nil {
		return err
	}
	var pe *os.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrHeader) {
		return badArchive("the archive ends or is broken within entry %q: %v", clip(hdr.Name), err)
	}
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		// os.Root's refusal of what leads out of it.
		return badArchive("entry %q: %v", clip(hdr.Name), err)
	}
	if errno == syscall.EISDIR || errno == syscall.ENOTDIR || errno == syscall.ENOTEMPTY {
		return web.Errorf(http.StatusConflict, web.CodeInvalidFile, "entry %q: what is there already is in its way: %v", clip(hdr.Name), err)
	}
	return web.Errorf(http.StatusInternalServerError, web.CodeRuntime, "entry %q: %v", clip(hdr.Name), err)
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
