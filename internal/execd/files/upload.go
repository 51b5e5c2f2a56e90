package files

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"syscall"

	"github.com/paddock-sandbox/paddock/internal/execd/answer"
)

const (
	// maxMetadata bounds one metadata part, in bytes.
	maxMetadata = 64 << 10
	// maxUploads bounds the files of one request.
	maxUploads = 10_000
)

// metadata says where and how a file is to be written.
type metadata struct {
	Path string `json:"path"`
	Permission
}

// uploadError is a refused upload.
type uploadError struct {
	code string
	text string
}

func (e *uploadError) Error() string { return e.text }

func badUpload(code, format string, args ...any) error {
	return &uploadError{code, fmt.Sprintf(format, args...)}
}

// upload reads parts "metadata" and "file"; the n-th metadata describes the
// n-th file and comes before it. Files are written as they arrive.
func (a *API) upload(w http.ResponseWriter, r *http.Request) {
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/form-data" || params["boundary"] == "" {
		answer.Error(w, http.StatusBadRequest, answer.InvalidFile, "Content-Type is %q; multipart/form-data with a boundary is needed.", r.Header.Get("Content-Type"))
		return
	}
	// The server's own buffer is small; large reads save most system calls.
	body := bufio.NewReaderSize(r.Body, writeBuffer)
	err = a.receive(multipart.NewReader(body, params["boundary"]))
	var refused *uploadError
	switch {
	case err == nil:
		w.WriteHeader(http.StatusOK)
	case errors.As(err, &refused):
		answer.Error(w, http.StatusBadRequest, refused.code, "%s", refused.text)
	default:
		answer.Error(w, http.StatusInternalServerError, answer.RuntimeError, "%v", plain(err))
	}
}

func (a *API) receive(parts *multipart.Reader) error {
	var waiting []metadata
	files := 0
	for {
		part, err := parts.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return badUpload(answer.InvalidFile, "The multipart body can't be read: %v", err)
		}
		switch part.FormName() {
		case "metadata":
			m, err := readMetadata(part)
			if err != nil {
				return err
			}
			if len(waiting)+files >= maxUploads {
				return badUpload(answer.InvalidFile, "More than %d files in one request.", maxUploads)
			}
			waiting = append(waiting, m)
		case "file":
			files++
			if len(waiting) == 0 {
				return badUpload(answer.InvalidFileMetadata, "File %d has no metadata part before it.", files)
			}
			if err := a.receiveFile(waiting[0], part); err != nil {
				return err
			}
			waiting = waiting[1:]
		default:
			return badUpload(answer.InvalidFile, "Part %q is neither \"metadata\" nor \"file\".", part.FormName())
		}
	}
	if len(waiting) > 0 {
		return badUpload(answer.InvalidFileContent, "%s has metadata but no file part.", waiting[0].Path)
	}
	if files == 0 {
		return badUpload(answer.InvalidFile, "The request has no file: send pairs of the parts \"metadata\" and \"file\".")
	}
	return nil
}

func readMetadata(part *multipart.Part) (metadata, error) {
	var m metadata
	b, err := io.ReadAll(io.LimitReader(part, maxMetadata+1))
	if err != nil {
		return m, badUpload(answer.InvalidFileMetadata, "A metadata part can't be read: %v", err)
	}
	if len(b) > maxMetadata {
		return m, badUpload(answer.InvalidFileMetadata, "A metadata part is larger than %d bytes.", maxMetadata)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, badUpload(answer.InvalidFileMetadata, "A metadata part is not the JSON object {path, mode, owner, group}: %v", err)
	}
	if m.Path == "" {
		return m, badUpload(answer.InvalidFileMetadata, "A metadata part has no path.")
	}
	return m, nil
}

func (a *API) receiveFile(m metadata, part *multipart.Part) error {
	path, err := a.guest().Path(m.Path)
	if err != nil {
		return badUpload(answer.InvalidFileMetadata, "%v", err)
	}
	set, err := m.Permission.resolve(a.guest().Accounts)
	if errors.Is(err, errMode) {
		return badUpload(answer.InvalidFileMetadata, "%s: %v", m.Path, err)
	}
	if err != nil {
		return err
	}
	body := &bodyReader{r: part}
	err = write(path, body, set)
	switch {
	case body.err != nil:
		return badUpload(answer.InvalidFileContent, "%s: the upload ended before the file was complete: %v", m.Path, body.err)
	case errors.Is(err, syscall.EISDIR):
		return fmt.Errorf("%s: is a directory", path)
	}
	return err
}

// bodyReader remembers that reading, not writing, failed.
type bodyReader struct {
	r   io.Reader
	err error
}

func (b *bodyReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return n, err
}
