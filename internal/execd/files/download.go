package files

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/paddock-sandbox/paddock/internal/execd/answer"
)

// maxLine bounds a line in line mode, in bytes; a longer one is cut there and
// goes on as the next.
const maxLine = 1 << 20

// download sends a file, a range of its bytes, or a range of its lines.
func (a *API) download(w http.ResponseWriter, r *http.Request) {
	path, ok := a.queryPath(w, r)
	if !ok {
		return
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		fail(w, err)
		return
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		fail(w, err)
		return
	case st.IsDir():
		answer.Error(w, http.StatusBadRequest, answer.InvalidFile, "%s: is a directory", path)
		return
	case !st.Mode().IsRegular():
		answer.Error(w, http.StatusBadRequest, answer.InvalidFile, "%s: not a regular file", path)
		return
	}
	q := r.URL.Query()
	if q.Has("offset") || q.Has("limit") {
		downloadLines(w, r, f)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", disposition(filepath.Base(path)))
	rng := r.Header.Get("Range")
	if rng == "" {
		http.ServeContent(w, r, "", st.ModTime(), f)
		return
	}
	start, n, err := parseRange(rng, st.Size())
	if err != nil {
		w.Header().Del("Content-Disposition")
		w.Header().Set("Content-Range", "bytes */"+strconv.FormatInt(st.Size(), 10))
		answer.Error(w, http.StatusRequestedRangeNotSatisfiable, answer.Unknown, "Range %q: %v", rng, err)
		return
	}
	if _, err := f.Seek(start, io.SeekStart); err != nil {
		fail(w, err)
		return
	}
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, start+n-1, st.Size()))
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = io.CopyN(w, f, n) // an error is the client's going
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

// downloadLines sends lines: offset is the first, from 1, limit how many.
func downloadLines(w http.ResponseWriter, r *http.Request, f *os.File) {
	if r.Header.Get("Range") != "" {
		answer.Error(w, http.StatusBadRequest, answer.InvalidBody, "A Range header and offset or limit can't be combined.")
		return
	}
	offset, ok := positive(w, r, "offset", 1)
	if !ok {
		return
	}
	limit, ok := positive(w, r, "limit", 0)
	if !ok {
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	in := bufio.NewReaderSize(f, maxLine)
	out := bufio.NewWriterSize(w, writeBuffer)
	defer out.Flush()
	for number, sent := int64(1), int64(0); limit == 0 || sent < limit; number++ {
		line, err := in.ReadSlice('\n')
		if len(line) > 0 && number >= offset {
			if sent > 0 {
				out.WriteByte('\n')
			}
			line = trimEnd(line)
			if _, werr := out.Write(line); werr != nil {
				return
			}
			sent++
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
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

func positive(w http.ResponseWriter, r *http.Request, name string, absent int64) (int64, bool) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return absent, true
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 {
		answer.Error(w, http.StatusBadRequest, answer.InvalidBody, "%s is %q; it must be a whole number, 1 or more.", name, text)
		return 0, false
	}
	return n, true
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
