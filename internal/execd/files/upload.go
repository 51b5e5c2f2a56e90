package files

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"syscall"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

const (
	// maxMetadata bounds one metadata part, in bytes.
	maxMetadata = 64 << 10
	// maxWaiting bounds metadata whose file has not come yet, in bytes of its
	// parts. Files are written as they come, so nothing else adds up.
	maxWaiting = 8 << 20
	// maxUploads bounds the files of one request.
	maxUploads = 100_000
	// uploadBuffer is read and written at a time, in bytes.
	uploadBuffer = 256 << 10
)

// metadata says where and how a file is to be written.
type metadata struct {
	Path string `json:"path"`
	Permission
	size int
}

func badUpload(code, format string, args ...any) error {
	return web.Errorf(http.StatusBadRequest, code, format, args...)
}

// upload reads parts "metadata" and "file"; the n-th metadata describes the
// n-th file and comes before it. Files are written as they arrive.
func upload(c *call) error {
	given := c.r.Header.Get("Content-Type")
	kind, params, err := mime.ParseMediaType(given)
	if err != nil || kind != "multipart/form-data" || params["boundary"] == "" {
		return badUpload(web.CodeInvalidFile, "Content-Type is %q; multipart/form-data with a boundary is needed", given)
	}
	buf := buffers.Get().(*[uploadBuffer]byte)
	defer buffers.Put(buf)
	p, err := newParts(c.r.Body, params["boundary"], buf[:])
	if err != nil {
		return badUpload(web.CodeInvalidFile, "%v", err)
	}
	u := &uploading{call: c}
	for {
		part, err := p.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return badUpload(web.CodeInvalidFile, "the multipart body can't be read: %v", err)
		}
		if err := u.part(part); err != nil {
			return err
		}
	}
	if len(u.waiting) > 0 {
		return badUpload(web.CodeInvalidContent, "%s has metadata but no file part", u.waiting[0].Path)
	}
	if u.files == 0 {
		return badUpload(web.CodeInvalidFile, "the request has no file: send pairs of the parts \"metadata\" and \"file\"")
	}
	return c.ok()
}

// uploading is an upload request under way.
type uploading struct {
	*call
	// waiting is metadata whose files have not come, and size that of its parts.
	waiting []metadata
	size    int
	files   int
}

func (u *uploading) part(p *part) error {
	switch p.name {
	case "metadata":
		m, err := readMetadata(p)
		if err != nil {
			return err
		}
		if u.files+len(u.waiting) >= maxUploads {
			return badUpload(web.CodeInvalidFile, "more than %d files in one request", maxUploads)
		}
		if u.size += m.size; u.size > maxWaiting {
			return badUpload(web.CodeInvalidMetadata, "more than %d bytes of metadata without their files; send each file after its metadata", maxWaiting)
		}
		u.waiting = append(u.waiting, m)
		return nil
	case "file":
		u.files++
		if len(u.waiting) == 0 {
			return badUpload(web.CodeInvalidMetadata, "file %d has no metadata part before it", u.files)
		}
		m := u.waiting[0]
		u.waiting = u.waiting[1:]
		u.size -= m.size
		return u.receive(&m, p)
	}
	return badUpload(web.CodeInvalidFile, "part %q is neither \"metadata\" nor \"file\"", p.name)
}

func readMetadata(p *part) (metadata, error) {
	var m metadata
	b, err := io.ReadAll(io.LimitReader(p, maxMetadata+1))
	if err != nil {
		return m, badUpload(web.CodeInvalidMetadata, "a metadata part can't be read: %v", err)
	}
	if len(b) > maxMetadata {
		return m, badUpload(web.CodeInvalidMetadata, "a metadata part is larger than %d bytes", maxMetadata)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, badUpload(web.CodeInvalidMetadata, "a metadata part is not the JSON object {path, mode, owner, group}: %v", err)
	}
	if !wellFormed(b) {
		return m, badUpload(web.CodeInvalidMetadata, "a metadata part is not well-formed Unicode, so its path can't be told")
	}
	if m.Path == "" {
		return m, badUpload(web.CodeInvalidMetadata, "a metadata part has no path")
	}
	m.size = len(b)
	return m, nil
}

// receive writes one file.
func (u *uploading) receive(m *metadata, p *part) error {
	path, err := u.guest.PathAs(u.as, m.Path)
	if err != nil {
		return badUpload(web.CodeInvalidMetadata, "%v", err)
	}
	set, err := m.resolve(u.guest.Accounts)
	switch {
	case errors.Is(err, errMode):
		return badUpload(web.CodeInvalidMetadata, "%s: %v", m.Path, err)
	case errors.Is(err, account.ErrUnknown):
		return web.Errorf(http.StatusInternalServerError, web.CodeRuntime, "%s: %v", m.Path, err)
	case err != nil:
		return err
	}
	err = write(path, p, set)
	switch {
	case p.err != nil:
		return badUpload(web.CodeInvalidContent, "%s: the upload ended before the file was complete: %v", m.Path, p.err)
	case errors.Is(err, syscall.EISDIR):
		return fmt.Errorf("%s: is a directory", path)
	}
	return err
}
