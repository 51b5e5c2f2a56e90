package files

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// lineBuffer is how much of a file is held in line mode, in bytes.
const lineBuffer = 64 << 10

// download sends a file, a range of its bytes, or a range of its lines.
func download(c *call) error {
	path, err := c.queryPath()
	if err != nil {
		return err
	}
	f, st, err := openRegular(path)
	if err != nil {
		return err
	}
	defer f.Close()
	q := c.r.URL.Query()
	if q.Has("offset") || q.Has("limit") {
		return c.sendLines(f)
	}
	h := c.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", disposition(filepath.Base(path)))
	if c.r.Header.Get("Range") != "" {
		return c.sendRange(f, st.Size())
	}
	http.ServeContent(c.w, c.r, "", st.ModTime(), f)
	return nil
}

// openRegular opens a file for reading, and nothing else: opening a device may do
// something, and a FIFO's reader waits.
func openRegular(path string) (*os.File, fs.FileInfo, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if err := mustBeRegular(path, st); err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	// It may be another one by now.
	if st, err = f.Stat(); err == nil {
		err = mustBeRegular(path, st)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, st, nil
}

func mustBeRegular(path string, st fs.FileInfo) error {
	switch {
	case st.IsDir():
		return web.Errorf(http.StatusBadRequest, web.CodeInvalidFile, "%s: is a directory", path)
	case !st.Mode().IsRegular():
		return web.Errorf(http.StatusBadRequest, web.CodeInvalidFile, "%s: not a regular file", path)
	}
	return nil
}

// sendRange sends the first range that is asked for.
func (c *call) sendRange(f *os.File, size int64) error {
	h := c.w.Header()
	asked := c.r.Header.Get("Range")
	start, n, err := parseRange(asked, size)
	if err != nil {
		h.Del("Content-Disposition")
		h.Set("Content-Range", "bytes */"+strconv.FormatInt(size, 10))
		return web.Errorf(http.StatusRequestedRangeNotSatisfiable, web.CodeUnknown, "Range %q: %v", asked, err)
	}
	if _, err := f.Seek(start, io.SeekStart); err != nil {
		return err
	}
	h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, start+n-1, size))
	h.Set("Content-Length", strconv.FormatInt(n, 10))
	c.w.WriteHeader(http.StatusPartialContent)
	_, _ = io.CopyN(c.w, f, n) // an error is the client's going
	return nil
}

// parseRange reads the first range of a Range header (RFC 9110, 14.1.2).
func parseRange(header string, size int64) (start, n int64, err error) {
	ranges, ok := strings.CutPrefix(header, "bytes=")
	if !ok {
		return 0, 0, errors.New("only \"bytes=\" is known")
	}
	first, _, _ := strings.Cut(ranges, ",")
	from, to, ok := strings.Cut(strings.TrimSpace(first), "-")
	if !ok {
		return 0, 0, errors.New("it must be bytes=A-B, bytes=A- or bytes=-N")
	}
	from, to = strings.TrimSpace(from), strings.TrimSpace(to)
	if from == "" {
		last, err := strconv.ParseUint(to, 10, 63)
		if err != nil || last == 0 {
			return 0, 0, errors.New("it must be bytes=A-B, bytes=A- or bytes=-N")
		}
		n = min(int64(last), size)
		if n == 0 {
			return 0, 0, errors.New("the file is empty")
		}
		return size - n, n, nil
	}
	a, err := strconv.ParseUint(from, 10, 63)
	if err != nil {
		return 0, 0, errors.New("it must be bytes=A-B, bytes=A- or bytes=-N")
	}
	start = int64(a)
	end := size - 1
	if to != "" {
		b, err := strconv.ParseUint(to, 10, 63)
		if err != nil || int64(b) < start {
			return 0, 0, errors.New("it must be bytes=A-B, bytes=A- or bytes=-N")
		}
		end = min(end, int64(b))
	}
	if start >= size {
		return 0, 0, fmt.Errorf("it begins after the end of the file, which has %d bytes", size)
	}
	return start, end - start + 1, nil
}

// sendLines sends lines: offset is the first, from 1, limit how many.
func (c *call) sendLines(f *os.File) error {
	if c.r.Header.Get("Range") != "" {
		return web.BadBody("a Range header and offset or limit can't be combined")
	}
	offset, err := c.positive("offset", 1)
	if err != nil {
		return err
	}
	limit, err := c.positive("limit", 0)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	in := bufio.NewReaderSize(f, lineBuffer)
	out := bufio.NewWriterSize(c.w, lineBuffer)
	defer out.Flush()
	inLine, heldCR := false, false // within a line that is longer than the buffer
	for number, sent := int64(1), int64(0); inLine || limit == 0 || sent < limit; {
		piece, err := in.ReadSlice('\n')
		more := errors.Is(err, bufio.ErrBufferFull)
		if len(piece) > 0 && number >= offset {
			if !inLine {
				if sent > 0 {
					out.WriteByte('\n')
				}
				sent++
			} else if heldCR && piece[0] != '\n' {
				out.WriteByte('\r')
			}
			heldCR = more && piece[len(piece)-1] == '\r'
			if heldCR {
				piece = piece[:len(piece)-1]
			}
			if _, werr := out.Write(trimEnd(piece)); werr != nil {
				return nil // the client has gone
			}
		}
		if err != nil && !more {
			if heldCR {
				out.WriteByte('\r')
			}
			return nil
		}
		if inLine = more; !more {
			number++
		}
	}
	return nil
}

func trimEnd(line []byte) []byte {
	if n := len(line); n > 0 && line[n-1] == '\n' {
		line = line[:n-1]
		if n > 1 && line[n-2] == '\r' {
			line = line[:n-2]
		}
	}
	return line
}

// positive reads a query parameter that counts from 1.
func (c *call) positive(name string, absent int64) (int64, error) {
	text := c.query(name)
	if text == "" {
		return absent, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 {
		return 0, web.BadBody("%s is %q; it must be a whole number, 1 or more", name, text)
	}
	return n, nil
}

// disposition names the file for the receiver: in ASCII, and in UTF-8 as RFC
// 6266 has it where that does not suffice.
func disposition(name string) string {
	plain := true
	for _, c := range []byte(name) {
		if c < 0x20 || c > 0x7e || c == '"' || c == '\\' || c == '%' {
			plain = false
			break
		}
	}
	if plain {
		return `attachment; filename="` + name + `"`
	}
	escaped := url.PathEscape(name)
	return `attachment; filename="` + escaped + `"; filename*=UTF-8''` + escaped
}
