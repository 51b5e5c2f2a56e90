package local

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/cgroup"
	"github.com/paddock-sandbox/paddock/internal/engine/local/gpu"
	"github.com/paddock-sandbox/paddock/internal/engine/local/rootfs"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// A sandbox with GPUs differs from others in this: its cgroup is under a second
// parent, where it has a device policy of its own; so its shell is made for it
// and doesn't come from the pool. Device nodes, files and links are mounted and
// made with the image, by package rootfs.

// checkGPUs refuses a request for GPUs that can never be granted.
func (e *Engine) checkGPUs(asked string) error {
	if asked == "" {
		return nil
	}
	return gpuError(e.gpus.Check(asked))
}

// takeGPUs gives a sandbox the GPUs that it asks for, if any.
func (e *Engine) takeGPUs(id string, spec *sandbox.Spec) error {
	if spec.Limits.GPUs == "" {
		return nil
	}
	return gpuError(e.gpus.Take(id, spec.Limits.GPUs))
}

func gpuError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, gpu.ErrBusy):
		return sandbox.Errorf(sandbox.KindBusy, sandbox.CodeCapacity,
			"resourceLimits.gpu: %v. Delete sandboxes that have some, or try again later.", err)
	case errors.Is(err, gpu.ErrNone):
		return sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeInvalidParameter, "resourceLimits.gpu: %v. Leave it out.", err)
	}
	return sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeInvalidParameter, "resourceLimits.gpu: %v.", err)
}

// checkGPU is doctor's look at GPUs. Most machines have none, and lack nothing.
func checkGPU(o DoctorOptions) Check {
	found, err := gpu.NewAllocator(o.CDIDirs, o.GPUKind).Found()
	if err != nil {
		found = err.Error() + "; sandboxes that ask for resourceLimits.gpu are refused"
	}
	return Check{Name: "GPUs", OK: true, Detail: found}
}

// parent is the cgroup parent of a sandbox with those GPUs.
func (e *Engine) parent(gpus []string) *cgroup.Parent {
	if len(gpus) > 0 {
		return e.gpuCgroups
	}
	return e.cgroups
}

// makeGroup makes the shell's cgroup.
func (e *Engine) makeGroup(s *shell) (*cgroup.Group, error) {
	if s.gpus == nil {
		return e.cgroups.Create(s.id)
	}
	var devices []cgroup.Device
	for _, d := range s.gpus.Edits.Devices {
		devices = append(devices, cgroup.Device{Major: d.Major, Minor: d.Minor})
	}
	return e.gpuCgroups.CreateWith(s.id, devices)
}

// gpuNames are for the state.
func (s *shell) gpuNames() []string {
	if s.gpus == nil {
		return nil
	}
	return s.gpus.Names
}

// openGPUs opens what is to be mounted for the shell's GPUs. It returns what it
// opened also with an error.
func (e *Engine) openGPUs(s *shell) ([]rootfs.Volume, error) {
	if s.gpus == nil {
		return nil, nil
	}
	dir := filepath.Join(e.in.run(s.id), "dev")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	var opened []rootfs.Volume
	for i, d := range s.gpus.Edits.Devices {
		fd, err := makeNode(filepath.Join(dir, strconv.Itoa(i)), d, s.base)
		if err != nil {
			return opened, fmt.Errorf("making the device node %s: %w", d.Path, err)
		}
		opened = append(opened, rootfs.Volume{Source: fd, Target: d.Path, Device: true})
	}
	for _, m := range s.gpus.Edits.Mounts {
		fd, err := unix.Open(m.Host, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return opened, fmt.Errorf("opening %s for the sandbox's GPU: %w", m.Host, err)
		}
		opened = append(opened, rootfs.Volume{Source: fd, Target: m.Path, ReadOnly: true})
	}
	return opened, nil
}

// makeNode makes a device node that belongs to the sandbox, whoever the host's
// own belongs to, and that everybody in the sandbox may use.
func makeNode(path string, d gpu.Device, owner uint32) (int, error) {
	if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(d.Major, d.Minor))); err != nil {
		return -1, err
	}
	// Against the umask.
	if err := unix.Chmod(path, 0o666); err != nil {
		return -1, err
	}
	if err := unix.Lchown(path, int(owner), int(owner)); err != nil {
		return -1, err
	}
	return unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// gpuLinks are made after everything is mounted.
func (s *shell) gpuLinks() []rootfs.Link {
	if s.gpus == nil {
		return nil
	}
	var links []rootfs.Link
	for path, target := range s.gpus.Edits.Links {
		links = append(links, rootfs.Link{Path: path, Target: target})
	}
	slices.SortFunc(links, func(a, b rootfs.Link) int { return strings.Compare(a.Path, b.Path) })
	return links
}

// addGPUEnv adds what the GPUs need to the environment; what the request asked
// for wins.
func (s *shell) addGPUEnv(env, asked map[string]string) {
	if s.gpus == nil {
		return
	}
	for k, v := range s.gpus.Edits.Env {
		if _, ok := asked[k]; !ok {
			env[k] = v
		}
	}
	const search = "LD_LIBRARY_PATH"
	dirs := s.gpus.Edits.LibraryDirs
	if have := env[search]; have != "" {
		dirs = append([]string{have}, dirs...)
	}
	if len(dirs) > 0 {
		env[search] = strings.Join(dirs, ":")
	}
}
