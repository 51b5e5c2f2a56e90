package mcp

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/paddock-sandbox/paddock/client"
)

const (
	// maxWrite bounds the content of file_write, in bytes.
	maxWrite = 4 << 20
	// maxEdit bounds a file that file_edit looks through, in bytes.
	maxEdit = 8 << 20
	// maxEntries bounds the files of one answer.
	maxEntries = 500
)

type writeIn struct {
	on
	Path    string `json:"path" jsonschema:"the file; its directories are made, and what it holds is replaced"`
	Content string `json:"content" jsonschema:"what the file shall hold, at most 4 MiB"`
	Base64  bool   `json:"base64,omitempty" jsonschema:"content is binary data in base64"`
	Mode    string `json:"mode,omitempty" jsonschema:"permissions in octal, such as 755 for a program; default 644"`
}

type writeOut struct {
	SandboxID string `json:"sandbox_id"`
	Path      string `json:"path"`
	Bytes     int    `json:"bytes"`
}

type listDirIn struct {
	on
	Path  string `json:"path" jsonschema:"the directory"`
	Depth int    `json:"depth,omitempty" jsonschema:"1 (default) for its entries, 2 for theirs too, up to 10"`
}

type searchIn struct {
	on
	Path    string `json:"path" jsonschema:"the directory to search, with all below it"`
	Pattern string `json:"pattern,omitempty" jsonschema:"glob for the names of files, such as *.py; default all"`
	Text    string `json:"text,omitempty" jsonschema:"regular expression (POSIX extended) for lines in the files; answers with the lines that match"`
}

type entry struct {
	Path     string `json:"path"`
	Type     string `json:"type" jsonschema:"file, directory, symlink or other"`
	Size     int64  `json:"size"`
	Mode     int    `json:"mode" jsonschema:"permissions, the decimal digits of which are the octal mode"`
	Modified string `json:"modified_at"`
}

type entriesOut struct {
	Entries []entry `json:"entries"`
	Total   int     `json:"total" jsonschema:"how many there are; when more than are shown, choose a smaller directory or a pattern"`
}

type editIn struct {
	on
	Path string `json:"path" jsonschema:"the file"`
	Old  string `json:"old" jsonschema:"the exact text to replace, with its white space; enough of it to be unique"`
	New  string `json:"new" jsonschema:"what stands there afterwards; empty to remove it"`
	All  bool   `json:"replace_all,omitempty" jsonschema:"replace every occurrence, of which there may be several"`
}

type editOut struct {
	SandboxID string `json:"sandbox_id"`
	Path      string `json:"path"`
	Replaced  int    `json:"replaced"`
}

func (s *Server) addFileTools() {
	addText(s, "file_read", "Read a file", reads,
		"Read a file of a sandbox, or a range of its lines or bytes. Text comes as it is, pictures as pictures, other binary data in base64. Says how to go on when there is more.", s.readFile)
	add(s, "file_write", "Write a file", changes, "Write a file in a sandbox, whole. For a change in a large file file_edit is better.", s.writeFile)
	add(s, "file_list", "List a directory", reads, "List a directory of a sandbox.", s.listDir)
	addText(s, "file_search", "Search files", reads, "Find files below a directory by name, and lines in them by a regular expression.", s.search)
	add(s, "file_edit", "Edit a file", changes, "Replace text in a file. Fails when the text is not there, or is there several times and replace_all is not set.", s.edit)
}

func needPath(p string) error {
	if p == "" {
		return errors.New("path is empty; name a file or directory, such as /tmp/a.txt")
	}
	return nil
}

func (s *Server) writeFile(ctx context.Context, req *mcp.CallToolRequest, in writeIn) (writeOut, error) {
	if err := needPath(in.Path); err != nil {
		return writeOut{}, err
	}
	content := []byte(in.Content)
	if in.Base64 {
		var err error
		if content, err = base64.StdEncoding.DecodeString(strings.Join(strings.Fields(in.Content), "")); err != nil {
			return writeOut{}, fmt.Errorf("content is not base64: %w", err)
		}
	}
	if len(content) > maxWrite {
		return writeOut{}, fmt.Errorf("content is %d bytes; at most %d are taken: fetch it from inside the sandbox, or write it in pieces and join them with cat", len(content), maxWrite)
	}
	mode := client.Mode(644)
	if in.Mode != "" {
		var ok bool
		if mode, ok = parseMode(in.Mode); !ok {
			return writeOut{}, fmt.Errorf("mode is %q; it must be 3 or 4 octal digits, such as 644", client.Printable(in.Mode))
		}
	}
	t, err := s.act(ctx, req, in.on, func(id string) error {
		return s.o.Client.UploadFiles(ctx, id, client.UploadFile{Path: in.Path, Mode: mode, Content: bytes.NewReader(content), Size: int64(len(content))})
	})
	return writeOut{t.id, in.Path, len(content)}, err
}

// parseMode reads octal digits as the API writes them: as decimal ones.
func parseMode(s string) (client.Mode, bool) {
	n := 0
	for _, c := range s {
		if c < '0' || c > '7' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return client.Mode(n), (len(s) == 3 || len(s) == 4) && n > 0
}

func (s *Server) listDir(ctx context.Context, req *mcp.CallToolRequest, in listDirIn) (entriesOut, error) {
	if err := needPath(in.Path); err != nil {
		return entriesOut{}, err
	}
	depth, err := within("depth", in.Depth, 1, 10, 1)
	if err != nil {
		return entriesOut{}, err
	}
	var list []client.FileInfo
	_, err = s.act(ctx, req, in.on, func(id string) (err error) {
		list, err = s.o.Client.ListDir(ctx, id, in.Path, depth)
		return err
	})
	return entriesOf(list), err
}

func entriesOf(list []client.FileInfo) entriesOut {
	out := entriesOut{Entries: []entry{}, Total: len(list)}
	for _, f := range list[:min(len(list), maxEntries)] {
		out.Entries = append(out.Entries, entry{Path: f.Path, Type: f.Type, Size: f.Size, Mode: int(f.Mode), Modified: stamp(f.ModifiedAt)})
	}
	return out
}

func (s *Server) search(ctx context.Context, req *mcp.CallToolRequest, in searchIn) (*mcp.CallToolResult, error) {
	if err := needPath(in.Path); err != nil {
		return nil, err
	}
	if in.Text != "" {
		return s.grep(ctx, req, in)
	}
	var list []client.FileInfo
	_, err := s.act(ctx, req, in.on, func(id string) (err error) {
		list, err = s.o.Client.SearchFiles(ctx, id, in.Path, in.Pattern)
		return err
	})
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	for _, f := range list[:min(len(list), maxEntries)] {
		fmt.Fprintf(&b, "%s (%d bytes)\n", client.Printable(f.Path), f.Size)
	}
	switch {
	case len(list) == 0:
		b.WriteString("no file matches\n")
	case len(list) > maxEntries:
		fmt.Fprintf(&b, "--- %d of %d files are shown; choose a smaller directory or a narrower pattern ---\n", maxEntries, len(list))
	}
	return text(b.String()), nil
}

// grep searches lines with the sandbox's own grep, which every image with a
// shell has.
func (s *Server) grep(ctx context.Context, req *mcp.CallToolRequest, in searchIn) (*mcp.CallToolResult, error) {
	script := `find "$1" -type f -name "$2" -exec grep -nIHE -e "$3" {} +`
	if in.Pattern == "" {
		in.Pattern = "*"
	}
	stdout, stderr := newExcerpt(defaultOutput), newExcerpt(minOutput)
	var res *client.Result
	_, err := s.act(ctx, req, in.on, func(id string) (err error) {
		if _, err = s.o.Client.FileInfo(ctx, id, in.Path); err != nil {
			return err
		}
		res, err = s.o.Client.Run(ctx, id, client.Command{Argv: []string{"sh", "-c", script, "sh", findPath(in.Path), in.Pattern, in.Text}, Timeout: defaultTimeout * time.Second},
			client.Output{Stdout: stdout, Stderr: stderr})
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case res.ExitCode < 0 || res.ExitCode == 127:
		return nil, fmt.Errorf("the search did not get to its end (exit code %d): %s", res.ExitCode, strings.TrimSpace(stderr.String()))
	case stdout.total == 0 && stderr.total > 0:
		return nil, fmt.Errorf("the search failed: %s", strings.TrimSpace(stderr.String()))
	case stdout.total == 0:
		return text("no line matches\n"), nil
	}
	var b strings.Builder
	b.WriteString(stdout.String())
	if stdout.cut() > 0 {
		b.WriteString("--- there are too many lines to show all; choose a smaller directory, a pattern or a narrower text ---\n")
	}
	return text(b.String()), nil
}

// findPath keeps find from taking a path for an option.
func findPath(p string) string {
	if strings.HasPrefix(p, "-") {
		return "./" + p
	}
	return p
}

func (s *Server) edit(ctx context.Context, req *mcp.CallToolRequest, in editIn) (editOut, error) {
	if err := needPath(in.Path); err != nil {
		return editOut{}, err
	}
	switch {
	case in.Old == "":
		return editOut{}, errors.New("old is empty; give the text to replace, or use file_write for a new file")
	case in.Old == in.New:
		return editOut{}, errors.New("old and new are the same")
	}
	var counts map[string]int
	t, err := s.act(ctx, req, in.on, func(id string) (err error) {
		if !in.All {
			if err := s.unique(ctx, id, in.Path, in.Old); err != nil {
				return err
			}
		}
		counts, err = s.o.Client.ReplaceInFiles(ctx, id, map[string]client.Replacement{in.Path: {Old: in.Old, New: in.New}})
		return err
	})
	if err != nil {
		return editOut{}, err
	}
	if counts[in.Path] == 0 {
		return editOut{}, notThere(in.Path)
	}
	return editOut{t.id, in.Path, counts[in.Path]}, nil
}

// unique is nil when a text is exactly once in a file.
func (s *Server) unique(ctx context.Context, id, name, old string) error {
	d, err := s.o.Client.DownloadFile(ctx, id, name, client.DownloadOptions{})
	if err != nil {
		return err
	}
	defer d.Close()
	content, err := io.ReadAll(io.LimitReader(d, maxEdit+1))
	if err != nil {
		return err
	}
	if len(content) > maxEdit {
		return fmt.Errorf("%s is larger than %d bytes; use replace_all, or sed with run_command", client.Printable(name), maxEdit)
	}
	switch n := bytes.Count(content, []byte(old)); {
	case n == 0:
		return notThere(name)
	case n > 1:
		return fmt.Errorf("old is %d times in %s; give more of the lines around it, or set replace_all", n, client.Printable(name))
	}
	return nil
}

func notThere(name string) error {
	return fmt.Errorf("old is not in %s; read it with file_read and copy the text exactly, with its white space", client.Printable(name))
}
