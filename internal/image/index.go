package image

import (
	"slices"
	"strings"
	"sync"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// index is what the store knows in memory: which image each name means, and
// who holds which image. The database is its source; records.go keeps the two
// in step.
type index struct {
	mu     sync.RWMutex
	names  map[nameKey]*named
	images map[string]*state              // by manifest digest
	held   map[string]map[string]struct{} // holder → digests
}

// nameKey is a name in its full form, for one platform.
type nameKey struct {
	name     string
	platform sandbox.Platform
}

type named struct {
	image *Image
	// source is the digest that the name resolved to, which is that of an
	// index for an image of several platforms.
	source string
}

// state is what is known of one manifest.
type state struct {
	image *Image
	names int
	holds int
	// kept: it has a record without a name, because it lost a name and may
	// have been in use at that time.
	kept bool
}

func newIndex() *index {
	return &index{
		names:  make(map[nameKey]*named),
		images: make(map[string]*state),
		held:   make(map[string]map[string]struct{}),
	}
}

// lookup returns nil when there is no such image.
func (x *index) lookup(r ref, p sandbox.Platform) *Image {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if r.repository == "" {
		if st := x.images[r.digest]; st != nil && st.image.Platform == p {
			return st.image
		}
		return nil
	}
	if n := x.names[nameKey{r.name, p}]; n != nil {
		return n.image
	}
	if r.digest == "" {
		return nil
	}
	// A digest may be that of an image pulled by tag.
	for key, n := range x.names {
		if key.platform == p && repositoryOf(key.name) == r.repository &&
			(n.source == r.digest || n.image.Digest == r.digest) {
			return n.image
		}
	}
	return nil
}

// repositoryOf strips tag and digest from a full name.
func repositoryOf(name string) string {
	if i := strings.IndexByte(name, '@'); i >= 0 {
		return name[:i]
	}
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[:i]
	}
	return name
}

// keys returns the names that a reference means, for all platforms.
func (x *index) keys(r ref) []nameKey {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var keys []nameKey
	for key, n := range x.names {
		if key.name == r.name || (r.repository == "" && n.image.Digest == r.digest) {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, compareKeys)
	return keys
}

func compareKeys(a, b nameKey) int {
	if c := strings.Compare(a.name, b.name); c != 0 {
		return c
	}
	return strings.Compare(formatPlatform(a.platform), formatPlatform(b.platform))
}

// list returns every named image, sorted by name and platform.
func (x *index) list() []*Image {
	x.mu.RLock()
	defer x.mu.RUnlock()
	keys := make([]nameKey, 0, len(x.names))
	for key := range x.names {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, compareKeys)
	out := make([]*Image, len(keys))
	for i, key := range keys {
		out[i] = x.names[key].image
	}
	return out
}

// unused returns the names of images that nobody holds, sorted.
func (x *index) unused() []nameKey {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var keys []nameKey
	for key, n := range x.names {
		if x.images[n.image.Digest].holds == 0 {
			keys = append(keys, key)
		}
	}
	slices.SortFunc(keys, compareKeys)
	return keys
}

// setName makes a name mean an image.
func (x *index) setName(key nameKey, n *named) {
	x.mu.Lock()
	defer x.mu.Unlock()
	st := x.images[n.image.Digest]
	if st == nil {
		st = &state{image: n.image}
		x.images[n.image.Digest] = st
	}
	st.names++
	if old := x.names[key]; old != nil {
		x.unname(old.image.Digest)
	}
	x.names[key] = n
}

// dropName takes a name away.
func (x *index) dropName(key nameKey) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if old := x.names[key]; old != nil {
		delete(x.names, key)
		x.unname(old.image.Digest)
	}
}

// unname takes one name from an image, which is then kept until releaseKept
// finds it unused.
func (x *index) unname(digest string) {
	st := x.images[digest]
	st.names--
	st.kept = true
}

// addKept enters an image that has a record without a name.
func (x *index) addKept(img *Image) {
	x.mu.Lock()
	defer x.mu.Unlock()
	st := x.images[img.Digest]
	if st == nil {
		st = &state{image: img}
		x.images[img.Digest] = st
	}
	st.kept = true
}

// releaseKept forgets the images which are kept though nobody holds them, and
// those which still have a name, and returns their digests: the records that
// kept them can go. From then on nobody can hold a forgotten image any more.
func (x *index) releaseKept() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var out []string
	for digest, st := range x.images {
		if !st.kept || (st.names == 0 && st.holds > 0) {
			continue
		}
		st.kept = false
		out = append(out, digest)
		if st.names == 0 {
			delete(x.images, digest)
		}
	}
	slices.Sort(out)
	return out
}

// hold reports false when the image is not in the store.
func (x *index) hold(holder, digest string) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	st := x.images[digest]
	if st == nil {
		return false
	}
	if x.held[holder] == nil {
		x.held[holder] = make(map[string]struct{})
	}
	if _, ok := x.held[holder][digest]; !ok {
		x.held[holder][digest] = struct{}{}
		st.holds++
	}
	return true
}

// unhold reports whether an image lost its last holder that has no name.
func (x *index) unhold(holder string) (free bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for digest := range x.held[holder] {
		st := x.images[digest]
		st.holds--
		free = free || (st.holds == 0 && st.kept)
	}
	delete(x.held, holder)
	return free
}

func (x *index) inUse(digest string) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	st := x.images[digest]
	return st != nil && st.holds > 0
}
