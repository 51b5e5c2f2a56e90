package files

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	// maxHeld bounds the entries that a walk holds, over all directories that
	// it is in. A directory with more comes in several parts, each of which is
	// sorted.
	maxHeld = 50_000
	// minPart is the least number of entries that are read of a directory.
	minPart = 64
)

// walker visits the entries below a directory.
type walker struct {
	ctx   context.Context
	visit func(path string, d fs.DirEntry) error
	held  int
}

// walk calls visit for the entries below dir, down to depth levels: parents
// before children, siblings by name. Symlinks are not followed. What can't be
// read below dir, or is gone, is left out, as find(1) does. An error of visit
// ends it.
func walk(ctx context.Context, dir string, depth int, visit func(path string, d fs.DirEntry) error) error {
	w := &walker{ctx: ctx, visit: visit}
	return w.directory(dir, depth)
}

// unreadable marks an error as one of a directory, not of visit.
type unreadable struct{ error }

func (u unreadable) Unwrap() error { return u.error }

func (w *walker) directory(dir string, depth int) error {
	if depth <= 0 {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return unreadable{err}
	}
	defer f.Close()
	for {
		want := max(minPart, maxHeld-w.held)
		entries, err := f.ReadDir(want)
		last := len(entries) < want
		if last {
			// So that going deeper does not take more and more descriptors.
			f.Close()
		}
		if err := w.part(dir, entries, depth); err != nil {
			return err
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return unreadable{err}
		}
		if last {
			return nil
		}
	}
}

func (w *walker) part(dir string, entries []fs.DirEntry, depth int) error {
	w.held += len(entries)
	defer func() { w.held -= len(entries) }()
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, d := range entries {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		path := filepath.Join(dir, d.Name())
		if err := w.visit(path, d); err != nil {
			return err
		}
		if !d.IsDir() {
			continue
		}
		err := w.directory(path, depth-1)
		if _, ok := errors.AsType[unreadable](err); err != nil && !ok {
			return err
		}
	}
	return nil
}
