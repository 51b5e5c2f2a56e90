package local

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/durable"
	"github.com/paddock-sandbox/paddock/internal/egress/intercept"
	"github.com/paddock-sandbox/paddock/internal/engine/local/rootfs"
	"github.com/paddock-sandbox/paddock/internal/image"
	"github.com/paddock-sandbox/paddock/internal/policy"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// A sandbox whose connections may be looked into must trust the authority that
// speaks for its destinations. Its programs find that beside the roots of the
// image in files that are mounted, read-only, from the data directory: nothing
// of the image is changed, and nothing is written beneath the sandbox's root.
// Environment variables say where they are. For a sandbox that was made before
// its connections were to be looked into see trustlate.go.

const (
	// maxRoots bounds what is read of an image's roots, in bytes. Those of
	// Mozilla are 220 KiB.
	maxRoots = 4 << 20
	// maxTrustStores bounds the files that are kept; they are made anew when one
	// is needed.
	maxTrustStores = 512
	// javaOptions is a variable to which others add theirs.
	javaOptions = "JAVA_TOOL_OPTIONS"
)

// rootsPaths are where distributions keep their roots, without symbolic links:
// Debian and Alpine, Red Hat (two), SUSE (two), BSD and Alpine.
var rootsPaths = []string{
	"etc/ssl/certs/ca-certificates.crt",
	"etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	"etc/pki/tls/certs/ca-bundle.crt",
	"var/lib/ca-certificates/ca-bundle.pem",
	"etc/ssl/ca-bundle.pem",
	"etc/ssl/cert.pem",
}

// javaPaths are where images have a Java virtual machine.
var javaPaths = []string{"usr/lib/jvm", "opt/java", "usr/java", "opt/jdk", "usr/bin/java", "usr/local/openjdk-8", "usr/local/openjdk-11"}

// trusts reports whether connections of a sandbox may be looked into.
func (e *Engine) trusts(spec *sandbox.Spec) bool {
	if len(e.opts.Authority) == 0 || spec.NetworkPolicy == nil {
		return false
	}
	return spec.CredentialProxy || policy.Compile(*spec.NetworkPolicy).NeedsContent()
}

// openTrust returns the files that make a sandbox trust the authority, and the
// environment that tells of them. It returns nothing where that is not needed.
func (e *Engine) openTrust(spec *sandbox.Spec, img *image.Image) ([]rootfs.Volume, map[string]string, error) {
	if !e.trusts(spec) {
		return nil, nil, nil
	}
	java := inLayers(img.LayerDirs, javaPaths)
	files, err := e.trustFiles(img, java)
	if err != nil {
		return nil, nil, fmt.Errorf("making the sandbox's list of trusted authorities: %w", err)
	}
	var opened []rootfs.Volume
	for _, f := range files {
		fd, err := unix.Open(f.host, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			closeVolumes(opened)
			return nil, nil, fmt.Errorf("opening %s for the sandbox: %w", f.host, err)
		}
		opened = append(opened, rootfs.Volume{Source: fd, Target: f.target, ReadOnly: true})
	}
	return opened, intercept.TrustEnvironment(java), nil
}

type trustFile struct{ host, target string }

// trustFiles makes the files for an image where they are missing. Their names say
// what went into them, so that finding them again costs next to nothing.
func (e *Engine) trustFiles(img *image.Image, java bool) ([]trustFile, error) {
	dir := filepath.Join(e.opts.DataDir, "trust")
	name := sha256.Sum256(fmt.Appendf(nil, "%s %s %s", img.Digest, e.opts.Authority, hostRootsStamp()))
	base := filepath.Join(dir, hex.EncodeToString(name[:16]))
	files := []trustFile{{base + "-ca.crt", intercept.CertPath}, {base + "-bundle.crt", intercept.BundlePath}}
	if java {
		files = append(files, trustFile{base + "-java.p12", intercept.JavaPath})
	}
	if !slices.ContainsFunc(files, func(f trustFile) bool { _, err := os.Lstat(f.host); return err != nil }) {
		return files, nil
	}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	if err := pruneTrust(dir); err != nil {
		return nil, err
	}
	bundle := intercept.Bundle(rootsOf(img.LayerDirs), e.opts.Authority)
	contents := [][]byte{e.opts.Authority, bundle}
	if java {
		store, err := intercept.JavaStore(bundle)
		if err != nil {
			return nil, err
		}
		contents = append(contents, store)
	}
	for i, content := range contents {
		// Two who write a file at once write the same: its name stands for its
		// content. After a crash of the host a file of that name is a whole one.
		if err := durable.Write(files[i].host, content, 0o644); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// hostRootsStamp changes when the host's roots do, which stand in for those of
// images without any.
func hostRootsStamp() string {
	for _, path := range rootsPaths {
		if st, err := os.Stat("/" + path); err == nil {
			return fmt.Sprintf("%s %d %s", path, st.Size(), st.ModTime())
		}
	}
	return ""
}

// pruneTrust removes all files when there are many. Sandboxes that run keep
// theirs, which are mounted.
func pruneTrust(dir string) error {
	list, err := os.ReadDir(dir)
	if err != nil || len(list) < maxTrustStores {
		return err
	}
	for _, f := range list {
		if !strings.HasPrefix(f.Name(), ".") {
			if err := os.Remove(filepath.Join(dir, f.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// rootsOf reads the roots that the image comes with, else those of the host: a
// sandbox whose programs bring roots of their own is told to use these instead,
// and they must not be fewer.
func rootsOf(layers []string) []byte {
	for _, path := range rootsPaths {
		if b := readInLayers(layers, path); b != nil {
			return b
		}
	}
	for _, path := range rootsPaths {
		b, err := readSome("/"+path, maxRoots)
		if err == nil {
			return b
		}
	}
	return nil
}

// readInLayers reads a regular file of an image, or returns nil. Layers are
// topmost first, and a layer that has removed the file hides those below it. The
// content of a layer is whatever somebody put into an image.
func readInLayers(layers []string, path string) []byte {
	for _, layer := range layers {
		fd, err := openInLayer(layer, path, unix.O_RDONLY|unix.O_NONBLOCK)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil // hidden, a symbolic link, or something else
		}
		f := os.NewFile(uintptr(fd), path)
		defer f.Close()
		st, err := f.Stat()
		if err != nil || !st.Mode().IsRegular() || st.Size() > maxRoots {
			return nil
		}
		b, err := io.ReadAll(io.LimitReader(f, maxRoots))
		if err != nil {
			return nil
		}
		return b
	}
	return nil
}

// inLayers reports whether an image has one of these paths.
func inLayers(layers, paths []string) bool {
	for _, path := range paths {
		for _, layer := range layers {
			fd, err := openInLayer(layer, path, unix.O_PATH|unix.O_NOFOLLOW)
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				break
			}
			var st unix.Stat_t
			err = unix.Fstat(fd, &st)
			unix.Close(fd)
			if err == nil && st.Mode&unix.S_IFMT != unix.S_IFCHR { // a whiteout is one
				return true
			}
			break
		}
	}
	return false
}

func openInLayer(layer, path string, flags uint64) (int, error) {
	dir, err := unix.Open(layer, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	how := &unix.OpenHow{Flags: flags | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}
	return unix.Openat2(dir, path, how)
}

// addTrust adds what tells of the files, where the request says nothing else.
func addTrust(env, trust, asked map[string]string) {
	for k, v := range trust {
		if _, own := asked[k]; own {
			continue
		}
		if k == javaOptions && env[k] != "" {
			v = env[k] + " " + v // the image's own options
		}
		env[k] = v
	}
}
