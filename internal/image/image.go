package image

import (
	"fmt"
	"time"

	"github.com/dustin/go-humanize"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Image is an image that is unpacked and ready to be mounted. Values are
// shared and must not be changed. An Image stays usable for as long as it is
// held; see Store.Hold.
type Image struct {
	// Name is the full reference, such as docker.io/library/python:3.11.
	Name string
	// Digest is that of the manifest for Platform.
	Digest   string
	Platform sandbox.Platform
	Config   Config
	// SizeBytes is what the unpacked layers occupy on disk, layers that are
	// shared with other images included.
	SizeBytes int64
	// CreatedAt is when the image was built, or when it was stored if it does
	// not say.
	CreatedAt time.Time
	// LayerDirs are the absolute paths of the unpacked layers, topmost first,
	// as overlayfs wants them in lowerdir: whiteouts are device nodes 0:0,
	// opaque directories carry trusted.overlay.opaque. At least one.
	LayerDirs []string

	// target describes the manifest.
	target ocispec.Descriptor
}

// Config is the part of an image's configuration that concerns running it.
type Config struct {
	Env              []string
	User, WorkingDir string
	Entrypoint, Cmd  []string
	Labels           map[string]string
	// ExposedPorts are as the image writes them ("8080/tcp"), sorted.
	ExposedPorts []string
	// Volumes are paths inside the image, sorted.
	Volumes    []string
	StopSignal string
}

// Resolved is an image that is known to exist.
type Resolved struct {
	// Digest is that of the manifest for the wanted platform.
	Digest string
	// Local is whether it can be used without a pull.
	Local bool
	// Image is set when Local.
	Image *Image
}

// Phases of a pull, in the order in which they come.
const (
	PhaseResolving   = "resolving"
	PhaseDownloading = "downloading"
	PhaseUnpacking   = "unpacking"
	PhaseDone        = "done"
)

// Progress is how far a pull has come.
type Progress struct {
	Phase string
	// LayersDone of LayersTotal layers are downloaded, or, in the phase after
	// that, unpacked.
	LayersDone, LayersTotal int
	// BytesDone of BytesTotal compressed bytes are downloaded.
	BytesDone, BytesTotal int64
}

// String is a sentence for people.
func (p Progress) String() string {
	switch p.Phase {
	case PhaseResolving:
		return "Looking up the image in its registry."
	case PhaseDownloading:
		return fmt.Sprintf("Downloading the image: %d of %d layers, %s of %s.", p.LayersDone, p.LayersTotal,
			humanize.Bytes(uint64(max(p.BytesDone, 0))), humanize.Bytes(uint64(max(p.BytesTotal, 0))))
	case PhaseUnpacking:
		return fmt.Sprintf("Unpacking the image: %d of %d layers.", p.LayersDone, p.LayersTotal)
	case PhaseDone:
		return "The image is ready."
	}
	return "The pull of the image has not started."
}
