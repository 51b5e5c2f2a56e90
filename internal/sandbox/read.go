package sandbox

import (
	"context"
	"strings"
)

const (
	defaultPageSize = 20
	maxPageSize     = 1000
)

// Filter chooses sandboxes for List.
type Filter struct {
	// States are compared without regard to case and joined by or; empty means
	// every state. An unknown one matches nothing.
	States []string
	// Metadata pairs must all be there with exactly that value.
	Metadata map[string]string
	// Page counts from 1; less means 1.
	Page int
	// PageSize is at most 1000; 20 when less than 1.
	PageSize int
}

// Get returns a copy of one sandbox.
func (m *Manager) Get(id string) (*Sandbox, error) {
	e, err := m.lookup(id)
	if err != nil {
		return nil, err
	}
	return e.load().Clone(), nil
}

// List returns one page of the sandboxes that match, newest first and then by
// id, and how many match in all.
func (m *Manager) List(f Filter) (items []*Sandbox, total int) {
	if f.PageSize < 1 {
		f.PageSize = defaultPageSize
	}
	size := min(f.PageSize, maxPageSize)
	from := 0
	if f.Page > 1 {
		// A page beyond any possible one is empty, not an overflow.
		from = min(f.Page-1, maxRecords) * size
	}
	if len(f.States) == 0 && len(f.Metadata) == 0 {
		entries, total := m.index.page(from, size)
		items = make([]*Sandbox, len(entries))
		for i, e := range entries {
			items[i] = e.load().Clone()
		}
		return items, total
	}
	all := m.index.all()
	items = []*Sandbox{}
	for i := len(all) - 1; i >= 0; i-- {
		s := all[i].load()
		if !f.matches(s) {
			continue
		}
		if total >= from && len(items) < size {
			items = append(items, s.Clone())
		}
		total++
	}
	return items, total
}

func (f *Filter) matches(s *Sandbox) bool {
	if len(f.States) > 0 && !f.matchesState(s.Status.State) {
		return false
	}
	for k, v := range f.Metadata {
		if got, ok := s.Spec.Metadata[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func (f *Filter) matchesState(state State) bool {
	for _, want := range f.States {
		if strings.EqualFold(want, string(state)) {
			return true
		}
	}
	return false
}

// Wait returns the sandbox as soon as it is not Pending any more; a sandbox that
// could not be made is an answer, not an error. It returns the context's error
// when that ends first.
func (m *Manager) Wait(ctx context.Context, id string) (*Sandbox, error) {
	e, err := m.lookup(id)
	if err != nil {
		return nil, err
	}
	s, err := m.await(ctx, e, func(s *Sandbox) bool { return s.Status.State != Pending })
	if err != nil {
		return nil, err
	}
	return s.Clone(), nil
}
