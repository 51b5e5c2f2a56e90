package code

import (
	"slices"
	"strings"
	"sync"

	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// maxContexts bounds contexts at one time: each may be a process of a few to
// some hundred MiB.
const maxContexts = 64

// registry knows all contexts. Its methods may be called in parallel.
type registry struct {
	mu   sync.Mutex
	byID map[string]*codeContext
	// defaults are the contexts of runs that name none, by language.
	defaults map[string]*codeContext
	// made numbers the contexts in the order of their making.
	made   uint64
	closed bool
}

func (r *registry) find(id string) *codeContext {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byID[id]
}

func (r *registry) add(c *codeContext) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.addLocked(c)
}

func (r *registry) addLocked(c *codeContext) error {
	if r.closed {
		return web.Busy("this sandbox is ending")
	}
	if len(r.byID) >= maxContexts {
		return web.Busy("this sandbox has %d code contexts, which is the limit; delete one with DELETE /code/contexts/ID", maxContexts)
	}
	r.made++
	c.order = r.made
	r.byID[c.id] = c
	return nil
}

// defaultOf returns the default context of a language, and makes it if need be.
func (r *registry) defaultOf(lang *language, make func() (*codeContext, error)) (*codeContext, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.defaults[lang.name]; c != nil {
		return c, nil
	}
	c, err := make()
	if err != nil {
		return nil, err
	}
	if err := r.addLocked(c); err != nil {
		return nil, err
	}
	r.defaults[lang.name] = c
	return c, nil
}

// list returns the contexts of a language, or all for nil, the oldest first.
func (r *registry) list(lang *language) []*codeContext {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []*codeContext
	for _, c := range r.byID {
		if lang == nil || c.lang.name == lang.name {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b *codeContext) int { return int(int64(a.order) - int64(b.order)) })
	return list
}

// take removes a context, so that it is closed once.
func (r *registry) take(id string) *codeContext {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.byID[id]
	if c == nil {
		return nil
	}
	delete(r.byID, id)
	if r.defaults[c.lang.name] == c {
		delete(r.defaults, c.lang.name)
	}
	return c
}

// takeAll removes all and lets no new one in.
func (r *registry) takeAll() []*codeContext {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	var all []*codeContext
	for _, c := range r.byID {
		all = append(all, c)
	}
	r.byID, r.defaults = make(map[string]*codeContext), make(map[string]*codeContext)
	return all
}

// known lists the languages for messages.
func known() string {
	var names []string
	for _, l := range languages {
		names = append(names, l.name)
	}
	return strings.Join(names, ", ")
}
