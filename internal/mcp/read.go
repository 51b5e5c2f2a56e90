package mcp

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strings"
	"unicode/utf8"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/paddock-sandbox/paddock/client"
)

const (
	// maxBinary bounds the bytes of one answer that are no text; base64 makes
	// four of three.
	maxBinary = 48 << 10
	// maxLines bounds the lines of one answer.
	maxLines = 5000
)

type readIn struct {
	on
	Path   string `json:"path" jsonschema:"the file; relative paths begin at the sandbox's working directory"`
	Line   int    `json:"line,omitempty" jsonschema:"first line to read, from 1 on"`
	Lines  int    `json:"lines,omitempty" jsonschema:"how many lines, at most 5000"`
	Offset int64  `json:"offset,omitempty" jsonschema:"first byte to read, from 0 on; instead of line"`
	Length int    `json:"length,omitempty" jsonschema:"how many bytes, at most 262144"`
}

// readFile is file_read.
func (s *Server) readFile(ctx context.Context, req *mcp.CallToolRequest, in readIn) (*mcp.CallToolResult, error) {
	if err := needPath(in.Path); err != nil {
		return nil, err
	}
	length, err := within("length", in.Length, 1, maxOutput, defaultOutput)
	if err != nil {
		return nil, err
	}
	lines, err := within("lines", in.Lines, 1, maxLines, maxLines)
	if err != nil {
		return nil, err
	}
	switch {
	case in.Offset < 0 || in.Line < 0:
		return nil, errors.New("line and offset must not be negative")
	case (in.Offset > 0 || in.Length > 0) && (in.Line > 0 || in.Lines > 0):
		return nil, errors.New("line and lines exclude offset and length: give one pair")
	}
	var res *mcp.CallToolResult
	_, err = s.act(ctx, req, in.on, func(id string) (err error) {
		if in.Line > 0 || in.Lines > 0 {
			res, err = s.readLines(ctx, id, in.Path, max(in.Line, 1), lines)
			return err
		}
		res, err = s.readBytes(ctx, id, in.Path, in.Offset, length)
		return err
	})
	return res, err
}

func (s *Server) readLines(ctx context.Context, id, name string, first, count int) (*mcp.CallToolResult, error) {
	d, err := s.o.Client.DownloadFile(ctx, id, name, client.DownloadOptions{FirstLine: first, Lines: count})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	data, err := io.ReadAll(io.LimitReader(d, maxOutput+1))
	if err != nil {
		return nil, err
	}
	if len(data) == 0 {
		return text(fmt.Sprintf("(nothing: %s has fewer than %d lines, or the line is empty)\n", client.Printable(name), first)), nil
	}
	if len(data) > maxOutput {
		return text(valid(wholeEnd(data[:maxOutput])) + "\n--- cut: these lines are too long to show all; read fewer, or use offset and length ---\n"), nil
	}
	return text(valid(data) + "\n"), nil
}

func (s *Server) readBytes(ctx context.Context, id, name string, offset int64, length int) (*mcp.CallToolResult, error) {
	info, err := s.o.Client.FileInfo(ctx, id, name)
	if err != nil {
		return nil, err
	}
	f := info[name]
	if f.Type == "directory" {
		return nil, fmt.Errorf("%s is a directory; use file_list", client.Printable(name))
	}
	if f.Type == "file" && offset > 0 && offset >= f.Size {
		return shown(nil, offset, f.Size), nil
	}
	// A link's size is not its target's, so only the transfer tells.
	d, err := s.o.Client.DownloadFile(ctx, id, name, client.DownloadOptions{Offset: offset})
	if err != nil {
		return nil, err
	}
	defer d.Close()
	size := int64(-1)
	if d.Size >= 0 {
		size = offset + d.Size
	}
	if offset == 0 {
		if res, err := picture(d, name, size); res != nil || err != nil {
			return res, err
		}
	}
	data, err := io.ReadAll(io.LimitReader(d, int64(length)))
	if err != nil {
		return nil, err
	}
	return shown(data, offset, size), nil
}

// picture is the answer for a picture, or nil for anything else. Nothing is read
// then.
func picture(d io.Reader, name string, size int64) (*mcp.CallToolResult, error) {
	mime := map[string]string{".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp"}[strings.ToLower(path.Ext(name))]
	if mime == "" || size <= 0 || size > maxImage {
		return nil, nil
	}
	data, err := io.ReadAll(io.LimitReader(d, maxImage))
	if err != nil {
		return nil, err
	}
	if http.DetectContentType(data) != mime { // the name may lie
		return shown(data[:min(len(data), defaultOutput)], 0, size), nil
	}
	return &mcp.CallToolResult{Content: []mcp.Content{&mcp.ImageContent{MIMEType: mime, Data: data}}}, nil
}

// shown is the answer for a range of a file, which is size bytes long, or of
// unknown length when that is negative.
func shown(data []byte, offset, size int64) *mcp.CallToolResult {
	part := wholeEnd(data)
	if offset > 0 {
		part = wholeStart(part)
	}
	isText := utf8.Valid(part) && bytes.IndexByte(part, 0) < 0
	var b strings.Builder
	if isText {
		data = data[:len(wholeEnd(data))]
		b.Write(part)
		if len(part) > 0 && part[len(part)-1] != '\n' {
			b.WriteByte('\n')
		}
	} else {
		data = data[:min(len(data), maxBinary)]
		b.WriteString("(binary data, in base64)\n" + base64.StdEncoding.EncodeToString(data) + "\n")
	}
	end := offset + int64(len(data))
	switch {
	case len(data) == 0 && size == 0:
		b.WriteString("(nothing: the file is 0 bytes long; those below /proc and /sys are read with run_command and cat)\n")
	case len(data) == 0 && size > 0:
		fmt.Fprintf(&b, "(nothing: the file is %d bytes long)\n", size)
	case size < 0:
		fmt.Fprintf(&b, "--- bytes %d to %d ---\n", offset, end)
	case end < size:
		fmt.Fprintf(&b, "--- bytes %d to %d of %d; go on with offset %d ---\n", offset, end, size, end)
	case offset > 0 || !isText:
		fmt.Fprintf(&b, "--- bytes %d to %d of %d: the end ---\n", offset, end, size)
	}
	return text(b.String())
}
