package local

import (
	"context"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Smallest limits with which execd and a shell still work.
const (
	minMemoryBytes = 16 << 20
	minPIDs        = 16
	minCPUMillis   = 10
)

// reservedMounts are directories of a sandbox that a volume may not cover.
var reservedMounts = []string{"/proc", "/sys", "/dev"}

// Check refuses what this engine can't honour.
func (e *Engine) Check(_ context.Context, spec *sandbox.Spec) error {
	if err := checkPlatform(spec.Platform); err != nil {
		return err
	}
	if err := checkLimits(&spec.Limits); err != nil {
		return err
	}
	if err := e.checkDisk(spec.Limits.EphemeralBytes); err != nil {
		return err
	}
	if err := e.checkIsolation(spec); err != nil {
		return err
	}
	if err := e.checkGPUs(spec.Limits.GPUs); err != nil {
		return err
	}
	for i := range spec.Volumes {
		if err := e.checkVolume(&spec.Volumes[i]); err != nil {
			return err
		}
	}
	return nil
}

func checkPlatform(p *sandbox.Platform) error {
	if p == nil || (p.OS == "linux" && p.Arch == runtime.GOARCH) {
		return nil
	}
	return sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeInvalidParameter,
		"platform: this server runs linux/%s sandboxes, not %s/%s. Leave `platform` out, or use a server of that kind.", runtime.GOARCH, p.OS, p.Arch)
}

func checkLimits(l *sandbox.Limits) error {
	invalid := func(format string, args ...any) error {
		return sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeInvalidParameter, format, args...)
	}
	switch {
	case l.MemoryBytes > 0 && l.MemoryBytes < minMemoryBytes:
		return invalid("resourceLimits.memory: %d bytes is less than a sandbox needs; give at least 16Mi.", l.MemoryBytes)
	case l.PIDs > 0 && l.PIDs < minPIDs:
		return invalid("resourceLimits.pids: %d is less than a sandbox needs; give at least %d.", l.PIDs, minPIDs)
	case l.CPUMillis > 0 && l.CPUMillis < minCPUMillis:
		return invalid("resourceLimits.cpu: %dm is less than the kernel can hand out; give at least %dm.", l.CPUMillis, minCPUMillis)
	}
	return nil
}

func (e *Engine) checkVolume(m *sandbox.VolumeMount) error {
	if path.Clean(m.MountPath) == "/" {
		return sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeInvalidMountPath,
			"Volume %q: mountPath %q is the root directory, which is the image's.", m.Name, m.MountPath)
	}
	for _, r := range reservedMounts {
		if p := path.Clean(m.MountPath); p == r || strings.HasPrefix(p, r+"/") {
			return sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeInvalidMountPath,
				"Volume %q: mountPath %q lies in %s, which belongs to the kernel's filesystems.", m.Name, m.MountPath, r)
		}
	}
	if m.HostPath != "" {
		if _, _, ok := e.allowedRoot(m.HostPath); !ok {
			return e.notAllowed(m)
		}
		return e.checkLinks(m)
	}
	if _, err := os.Lstat(filepath.Join(e.in.volumesDir(), m.Claim)); err != nil && !m.CreateIfMissing {
		return volumeMissing(m)
	}
	return nil
}

// checkLinks refuses at once a host path that a link leads astray. The mount
// itself checks again: the path may have changed by then.
func (e *Engine) checkLinks(m *sandbox.VolumeMount) error {
	root, rel, _ := e.allowedRoot(m.HostPath)
	at, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil // said with its reason when it is opened to be mounted
	}
	defer func() { unix.Close(at) }()
	if rel != "" {
		fd, err := unix.Openat2(at, rel, beneath)
		if astray(err) {
			return e.linkRefused(m, root)
		}
		if err != nil {
			return nil
		}
		unix.Close(at)
		at = fd
	}
	if m.SubPath == "" {
		return nil
	}
	sub, err := unix.Openat2(at, m.SubPath, beneath)
	if astray(err) {
		return subPathRefused(m, err)
	}
	if err == nil {
		unix.Close(sub)
	}
	return nil
}

// Resolve asks the image store.
func (e *Engine) Resolve(ctx context.Context, spec *sandbox.Spec) (*sandbox.ResolvedImage, error) {
	r, err := e.images.Resolve(ctx, spec.Image, spec.Platform, spec.Auth)
	if err != nil {
		return nil, err
	}
	out := &sandbox.ResolvedImage{Digest: r.Digest, Local: r.Local}
	if r.Image == nil {
		return out, nil
	}
	if _, err := entrypoint(spec, &r.Image.Config); err != nil {
		return nil, err
	}
	out.Entrypoint = imageCommand(&r.Image.Config)
	return out, nil
}
