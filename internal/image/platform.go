package image

import (
	"fmt"
	"strings"

	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// platform returns p, or the store's default, in normal form.
func (s *Store) platform(p *sandbox.Platform) (sandbox.Platform, error) {
	if p == nil {
		return *s.opts.DefaultPlatform, nil
	}
	return normalPlatform(*p)
}

func normalPlatform(p sandbox.Platform) (sandbox.Platform, error) {
	n := platforms.Normalize(ocispec.Platform{OS: strings.ToLower(p.OS), Architecture: strings.ToLower(p.Arch)})
	if n.OS != "linux" {
		return sandbox.Platform{}, sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeInvalidParameter,
			"platform.os %q is not supported. Only linux images can be run.", p.OS)
	}
	if n.Architecture == "" {
		return sandbox.Platform{}, sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeInvalidParameter,
			"platform.arch is missing. Give the image's architecture, such as amd64 or arm64.")
	}
	return sandbox.Platform{OS: n.OS, Arch: n.Architecture}, nil
}

func formatPlatform(p sandbox.Platform) string { return p.OS + "/" + p.Arch }

// platformMatcher accepts exactly one platform: an amd64 sandbox does not run
// a 386 image just because the processor could.
type platformMatcher struct{ strict platforms.MatchComparer }

func matcher(p sandbox.Platform) platformMatcher {
	return platformMatcher{platforms.OnlyStrict(ocispec.Platform{OS: p.OS, Architecture: p.Arch})}
}

func (p platformMatcher) match(o ocispec.Platform) bool {
	// Images of the first years of Docker may say nothing about theirs.
	if o.OS == "" && o.Architecture == "" {
		return true
	}
	return p.strict.Match(o)
}

// choose returns the manifest of an index that was built for p.
func choose(index ocispec.Index, p sandbox.Platform) (ocispec.Descriptor, error) {
	m := matcher(p)
	var has []string
	for _, d := range index.Manifests {
		if d.Platform == nil || d.Platform.OS == "unknown" {
			continue // attestations are entered as unknown/unknown
		}
		if m.match(*d.Platform) {
			return d, nil
		}
		if name := platforms.Format(platforms.Normalize(*d.Platform)); len(has) < 16 {
			has = append(has, name)
		}
	}
	// An index without platforms, as simple tools write it, must have one image.
	if len(has) == 0 && len(index.Manifests) == 1 {
		return index.Manifests[0], nil
	}
	if len(has) == 0 {
		return ocispec.Descriptor{}, fmt.Errorf("its index names no image for any platform")
	}
	return ocispec.Descriptor{}, &wrongPlatformError{want: formatPlatform(p), has: strings.Join(has, ", ")}
}

// wrongPlatformError is returned for an image that was built for other
// platforms than the wanted one.
type wrongPlatformError struct{ want, has string }

func (e *wrongPlatformError) Error() string {
	return fmt.Sprintf("it is built for %s, not for %s", e.has, e.want)
}
