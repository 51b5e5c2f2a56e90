package image

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"

	"github.com/paddock-sandbox/paddock/internal/rmtree"
)

// layers is containerd's overlay snapshotter, but for how directories are
// removed: its own way takes an open descriptor for each level, of which a layer
// can have thousands, and a removal that ran out of them would never be done.
type layers struct {
	snapshots.Snapshotter
	root string
	log  *slog.Logger
	// making is held for reading while a directory is made that no layer in the
	// database has yet.
	making sync.RWMutex
	// cleaning is held by the one who removes.
	cleaning sync.Mutex
}

func openLayers(root string, log *slog.Logger) (*layers, error) {
	// Directories of removed layers are deleted by the collector, outside of
	// the database's transactions.
	s, err := overlay.NewSnapshotter(root, overlay.AsynchronousRemove, overlay.WithUpperdirLabel)
	if err != nil {
		return nil, err
	}
	return &layers{Snapshotter: s, root: root, log: log}, nil
}

// Prepare implements snapshots.Snapshotter.
func (l *layers) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	l.making.RLock()
	defer l.making.RUnlock()
	return l.Snapshotter.Prepare(ctx, key, parent, opts...)
}

// View implements snapshots.Snapshotter.
func (l *layers) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	l.making.RLock()
	defer l.making.RUnlock()
	return l.Snapshotter.View(ctx, key, parent, opts...)
}

// Cleanup implements snapshots.Cleaner: it removes the directories of layers that
// are no more. What can't be removed is tried again by the next one.
func (l *layers) Cleanup(ctx context.Context) error {
	l.cleaning.Lock()
	defer l.cleaning.Unlock()
	dirs, err := l.orphans(ctx)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		err := rmtree.Remove(ctx, dir)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			l.log.Warn("removing the files of a layer", "error", err)
		}
	}
	return nil
}

// orphans returns the directories that belong to no layer. A layer's number is
// never used again, so they stay so.
func (l *layers) orphans(ctx context.Context) ([]string, error) {
	l.making.Lock()
	defer l.making.Unlock()
	in := filepath.Join(l.root, "snapshots")
	names, err := os.ReadDir(in)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	used := make(map[string]bool)
	unknown := ""
	err = l.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		dir := filepath.Dir(info.Labels[labelLayerDir])
		if filepath.Dir(dir) != in {
			unknown = info.Name
		}
		used[dir] = true
		return nil
	})
	if err != nil {
		return nil, err
	}
	if unknown != "" {
		return nil, errors.New("it is not known where the files of the layer " + unknown + " are, so none are removed")
	}
	var list []string
	for _, name := range names {
		if dir := filepath.Join(in, name.Name()); !used[dir] {
			list = append(list, dir)
		}
	}
	return list, nil
}
