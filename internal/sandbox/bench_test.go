package sandbox_test

import (
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
	"github.com/paddock-sandbox/paddock/internal/store"
)

func benchRig(b *testing.B, n int) *sandbox.Manager {
	b.Helper()
	st, err := store.Open(filepath.Join(b.TempDir(), "records.db"))
	if err != nil {
		b.Fatal(err)
	}
	p := &process{}
	m, err := sandbox.NewManager(b.Context(), sandbox.Options{Engine: newEngine(newHost(), p), Store: st, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { m.Close(b.Context()); st.Close() })
	for i := range n {
		sp := spec()
		sp.Metadata = map[string]string{"n": fmt.Sprint(i), "kind": fmt.Sprint(i % 10)}
		sp.Env = map[string]string{"A": "b", "C": "d"}
		hour := time.Hour
		sp.Timeout = &hour
		s, _, err := m.Create(b.Context(), sandbox.CreateOptions{Spec: sp})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := m.Wait(b.Context(), s.ID); err != nil {
			b.Fatal(err)
		}
	}
	return m
}

func BenchmarkGet(b *testing.B) {
	m := benchRig(b, 10_000)
	items, _ := m.List(sandbox.Filter{PageSize: 1000})
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if _, err := m.Get(items[i%len(items)].ID); err != nil {
				b.Error(err)
			}
		}
	})
}

func BenchmarkListOf10000(b *testing.B) {
	m := benchRig(b, 10_000)
	for name, f := range map[string]sandbox.Filter{
		"page":     {Page: 50, PageSize: 100},
		"state":    {States: []string{"running"}, PageSize: 100},
		"metadata": {Metadata: map[string]string{"kind": "3"}, PageSize: 100},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if items, _ := m.List(f); len(items) != 100 {
					b.Fatal(len(items))
				}
			}
		})
	}
}

// BenchmarkLife is what the Manager and the store add to a create, a delete and
// what lies between.
func BenchmarkLife(b *testing.B) {
	m := benchRig(b, 1000)
	for _, name := range []string{"create to running", "and delete"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				s, _, err := m.Create(b.Context(), sandbox.CreateOptions{Spec: spec()})
				if err != nil {
					b.Fatal(err)
				}
				c, err := m.Dial(b.Context(), s.ID, 80)
				if err != nil {
					b.Fatal(err)
				}
				c.Close()
				if name == "and delete" {
					if err := m.Delete(b.Context(), s.ID); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
