package image

import (
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/distribution/reference"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// maxReferenceLength is generous: the grammar allows 255 characters for the
// name, 128 for the tag and 135 for a sha512 digest.
const maxReferenceLength = 1024

// ref is an image reference in full form.
type ref struct {
	// name is "registry/repository:tag" or "registry/repository@digest", or a
	// bare digest, which names an image that is in the store.
	name string
	// repository is the name without tag and digest; empty for a bare digest.
	repository string
	// host is the registry's, as it stands in the reference.
	host string
	// digest is set when the reference has one. A tag beside it is dropped.
	digest string
}

var bareDigest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// parseRef reads a reference as Docker does: "python" is
// docker.io/library/python:latest.
func parseRef(s string) (ref, error) {
	if bareDigest.MatchString(s) {
		return ref{name: s, digest: s}, nil
	}
	if len(s) > maxReferenceLength {
		return ref{}, badReference(s[:64]+"…", fmt.Sprintf("it is longer than %d characters", maxReferenceLength))
	}
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return ref{}, badReference(s, strings.TrimPrefix(err.Error(), "invalid reference format: "))
	}
	r := ref{repository: named.Name(), host: reference.Domain(named)}
	if digested, ok := named.(reference.Digested); ok {
		r.digest = digested.Digest().String()
		r.name = r.repository + "@" + r.digest
		return r, nil
	}
	r.name = reference.TagNameOnly(named).String()
	return r, nil
}

func badReference(s, why string) error {
	return sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeImageInvalid,
		"image.uri %q is not an image reference: %s. Write [registry/]name[:tag] or [registry/]name@sha256:digest, with the name in lower case.", s, why)
}

// refCache remembers parsed references, since parsing costs more than the rest
// of a Lookup together.
type refCache struct {
	mu   sync.RWMutex
	refs map[string]ref
}

// refCacheSize bounds the cache; when it is full it starts over.
const refCacheSize = 1024

func (c *refCache) parse(s string) (ref, error) {
	c.mu.RLock()
	r, ok := c.refs[s]
	c.mu.RUnlock()
	if ok {
		return r, nil
	}
	r, err := parseRef(s)
	if err != nil {
		return ref{}, err
	}
	c.mu.Lock()
	if c.refs == nil || len(c.refs) >= refCacheSize {
		c.refs = make(map[string]ref)
	}
	c.refs[s] = r
	c.mu.Unlock()
	return r, nil
}
