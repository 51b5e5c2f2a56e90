package server

import (
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/api"
	"github.com/paddock-sandbox/paddock/internal/image"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// instant is a time as it goes out: UTC, in microseconds, which is as fine as
// the clients' own types are.
func instant(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

// sandboxAnswer never holds the token or registry credentials.
func sandboxAnswer(s *sandbox.Sandbox) api.Sandbox {
	a := api.Sandbox{
		ID:         s.ID,
		Image:      api.ImageRef{URI: s.Spec.Image},
		Status:     statusAnswer(&s.Status),
		Metadata:   s.Spec.Metadata,
		Entrypoint: s.Entrypoint,
		CreatedAt:  instant(s.CreatedAt),
		Extensions: shownExtensions(&s.Spec),
	}
	if len(a.Metadata) == 0 {
		a.Metadata = nil
	}
	if a.Entrypoint == nil {
		a.Entrypoint = []string{} // clients require the member
	}
	if p := s.Spec.Platform; p != nil {
		a.Platform = api.Platform{Os: p.OS, Arch: p.Arch}
	}
	if s.ExpiresAt != nil {
		a.ExpiresAt = instant(*s.ExpiresAt)
	}
	return a
}

func createAnswer(s *sandbox.Sandbox) api.CreateSandboxResponse {
	a := sandboxAnswer(s)
	return api.CreateSandboxResponse{
		ID: a.ID, Status: a.Status, Metadata: a.Metadata, Platform: a.Platform, Entrypoint: a.Entrypoint,
		CreatedAt: a.CreatedAt, ExpiresAt: a.ExpiresAt, Extensions: a.Extensions,
	}
}

func statusAnswer(s *sandbox.Status) api.Status {
	return api.Status{State: string(s.State), Reason: s.Reason, Message: s.Message, LastTransitionAt: instant(s.LastTransitionAt)}
}

// shownExtensions are those that the contract returns, and the isolation unless
// nobody chose it; nil for none.
func shownExtensions(spec *sandbox.Spec) map[string]string {
	shown := make(map[string]string)
	for k, v := range spec.Extensions {
		if strings.HasPrefix(k, extensionKept) {
			shown[k] = v
		}
	}
	if spec.Isolation != "" {
		shown[sandbox.ExtensionIsolation] = string(spec.Isolation)
	}
	if len(shown) == 0 {
		return nil
	}
	return shown
}

func imageAnswer(i *image.Image) api.Image {
	return api.Image{
		Name: i.Name, Digest: i.Digest, Platform: api.Platform{Os: i.Platform.OS, Arch: i.Platform.Arch},
		SizeBytes: i.SizeBytes, CreatedAt: instant(i.CreatedAt),
	}
}

func imageList(images []*image.Image) api.ImageList {
	l := api.ImageList{Items: make([]api.Image, len(images))}
	for i, img := range images {
		l.Items[i] = imageAnswer(img)
	}
	return l
}
