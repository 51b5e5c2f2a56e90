package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
)

// UploadFile is one file on its way into a sandbox.
type UploadFile struct {
	// Path is where it will be; parents are made. What is there is replaced
	// once all of the content has arrived.
	Path  string
	Mode  Mode
	Owner string
	Group string
	// Content is read once, to its end.
	Content io.Reader
	// Size is the content's length; zero or less when it is not known. Content
	// that turns out shorter or longer than announced is an error.
	Size int64
}

type uploadMetadata struct {
	Path  string `json:"path"`
	Mode  Mode   `json:"mode,omitempty"`
	Owner string `json:"owner,omitempty"`
	Group string `json:"group,omitempty"`
}

// UploadFiles writes files into a sandbox in one request, streaming. Success
// means that all of them are there complete.
func (c *Client) UploadFiles(ctx context.Context, id string, files ...UploadFile) error {
	if len(files) == 0 {
		return nil
	}
	p, err := c.filesPath(id, "/files/upload")
	if err != nil {
		return err
	}
	body, size, contentType, err := multipartBody(files)
	if err != nil {
		return err
	}
	resp, err := c.attempt(ctx, &request{method: http.MethodPost, path: p, stream: body, size: size, contentType: contentType})
	if err != nil {
		var wrong *sizeError
		if errors.As(err, &wrong) {
			return wrong
		}
		return err
	}
	return resp.Body.Close()
}

// multipartBody is the form that holds the files, as one stream without a
// goroutine or a copy behind it: the framing between the contents is small and
// known beforehand. The size is -1 unless the size of every file is known.
func multipartBody(files []UploadFile) (body io.Reader, size int64, contentType string, err error) {
	var frame bytes.Buffer
	mw := multipart.NewWriter(&frame)
	var parts []io.Reader
	flush := func() {
		if frame.Len() == 0 {
			return
		}
		piece := bytes.Clone(frame.Bytes())
		frame.Reset()
		parts = append(parts, bytes.NewReader(piece))
		if size >= 0 {
			size += int64(len(piece))
		}
	}
	for i := range files {
		f := &files[i]
		if f.Path == "" || f.Content == nil {
			return nil, 0, "", fmt.Errorf("upload %d has no path or no content", i)
		}
		meta, err := json.Marshal(uploadMetadata{f.Path, f.Mode, f.Owner, f.Group})
		if err != nil {
			return nil, 0, "", err
		}
		// execd reads the metadata only from a part that has a file name
		// (OpenSandbox execd API).
		w, err := mw.CreatePart(partHeader("metadata", "metadata", "application/json"))
		if err == nil {
			_, err = w.Write(meta)
		}
		if err == nil {
			_, err = mw.CreatePart(partHeader("file", "file", "application/octet-stream"))
		}
		if err != nil {
			return nil, 0, "", err
		}
		flush()
		length := contentLength(f)
		if length < 0 {
			parts, size = append(parts, f.Content), -1
			continue
		}
		parts = append(parts, &exactReader{r: f.Content, left: length, path: f.Path})
		if size >= 0 {
			size += length
		}
	}
	if err := mw.Close(); err != nil {
		return nil, 0, "", err
	}
	flush()
	return io.MultiReader(parts...), size, mw.FormDataContentType(), nil
}

// contentLength is the announced length, or that of content in memory, or -1.
func contentLength(f *UploadFile) int64 {
	if f.Size > 0 {
		return f.Size
	}
	if inMemory, ok := f.Content.(interface{ Len() int }); ok {
		return int64(inMemory.Len())
	}
	return -1
}

func partHeader(field, file, contentType string) textproto.MIMEHeader {
	return textproto.MIMEHeader{
		"Content-Disposition": {`form-data; name="` + field + `"; filename="` + file + `"`},
		"Content-Type":        {contentType},
	}
}

// sizeError says that a file changed its length while it was read.
type sizeError struct {
	path string
	more bool
}

func (e *sizeError) Error() string {
	what := "shorter"
	if e.more {
		what = "longer"
	}
	return fmt.Sprintf("the content for %q is %s than announced: it changed while it was sent", e.path, what)
}

// exactReader reads exactly as many bytes as were announced, and otherwise
// fails, so that a log file that grows does not spoil the framing.
type exactReader struct {
	r    io.Reader
	left int64
	path string
}

func (e *exactReader) Read(p []byte) (int, error) {
	if e.left == 0 {
		var one [1]byte
		n, err := io.ReadFull(e.r, one[:])
		switch {
		case n > 0:
			return 0, &sizeError{path: e.path, more: true}
		case errors.Is(err, io.EOF):
			return 0, io.EOF
		}
		return 0, err
	}
	if int64(len(p)) > e.left {
		p = p[:e.left]
	}
	n, err := e.r.Read(p)
	e.left -= int64(n)
	if errors.Is(err, io.EOF) && e.left > 0 {
		return n, &sizeError{path: e.path}
	}
	if errors.Is(err, io.EOF) {
		err = nil // the next call looks for surplus and then ends
	}
	return n, err
}
