package main

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const crunRuns = 100

// crun measures `crun run` of the same command on the same image, unpacked. It
// runs in a mount namespace of its own, because crun refuses a host that has
// cgroup v1 and v2 mixed with a controller on the latter.
func (b *bench) crun(archive string) error {
	if _, err := exec.LookPath("crun"); err != nil {
		return nil
	}
	bundle := filepath.Join(b.work, "bundle")
	if err := unpack(archive, bundle); err != nil {
		return fmt.Errorf("unpacking %s: %w", archive, err)
	}
	if err := writeSpec(bundle); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(b.ctx, self, "-crun-runs", fmt.Sprint(crunRuns), bundle)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	var d []time.Duration
	if err := json.Unmarshal(out, &d); err != nil {
		return err
	}
	t := b.report.timing("crun run true", d)
	for _, ours := range b.report.Timings {
		if ours.Name == "create → first command finished" && t.P50 > 0 {
			b.report.value("create → first command / crun run, p50", ours.P50/t.P50, "")
			b.report.value("create → first command / crun run, p99", ours.P99/t.P99, "")
		}
	}
	return nil
}

// measureCrun runs in the private mount namespace.
func measureCrun(bundle string, n int, out io.Writer) error {
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := syscall.Unmount("/sys/fs/cgroup/unified", syscall.MNT_DETACH); err != nil && !errors.Is(err, syscall.ENOENT) && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	state, err := os.MkdirTemp("/run", "paddock-bench-crun-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(state)
	var d []time.Duration
	for i := range n {
		began := time.Now()
		cmd := exec.Command("crun", "--root", state, "--cgroup-manager=disabled", "run", "--bundle", bundle, fmt.Sprintf("bench-%d", i))
		if msg, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("crun run: %w: %s", err, msg)
		}
		d = append(d, time.Since(began))
	}
	return json.NewEncoder(out).Encode(d)
}

// writeSpec writes what `crun spec` proposes, with the command.
func writeSpec(bundle string) error {
	cmd := exec.Command("crun", "spec")
	cmd.Dir = bundle
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("crun spec: %w: %s", err, out)
	}
	path := filepath.Join(bundle, "config.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return err
	}
	spec.Process.Args = []string{"/bin/true"}
	spec.Process.Terminal = false
	if data, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// unpack puts the layers of an OCI archive with one image into bundle/rootfs.
func unpack(archive, bundle string) error {
	layout, rootfs := filepath.Join(bundle, "layout"), filepath.Join(bundle, "rootfs")
	for _, dir := range []string{layout, rootfs} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	defer os.RemoveAll(layout)
	if err := untar(archive, layout); err != nil {
		return err
	}
	var index ocispec.Index
	if err := readJSON(filepath.Join(layout, ocispec.ImageIndexFile), &index); err != nil {
		return err
	}
	if len(index.Manifests) == 0 {
		return errors.New("the archive holds no image")
	}
	blob := func(d ocispec.Descriptor) string {
		return filepath.Join(layout, ocispec.ImageBlobsDir, d.Digest.Algorithm().String(), d.Digest.Encoded())
	}
	var manifest ocispec.Manifest
	if err := readJSON(blob(index.Manifests[0]), &manifest); err != nil {
		return err
	}
	for _, layer := range manifest.Layers {
		if out, err := exec.Command("tar", "-xf", blob(layer), "-C", rootfs).CombinedOutput(); err != nil {
			return fmt.Errorf("unpacking a layer: %w: %s", err, out)
		}
	}
	return nil
}

func readJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// untar unpacks the regular files of a layout.
func untar(archive, dir string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg || !filepath.IsLocal(h.Name) {
			continue
		}
		path := filepath.Join(dir, h.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		// A layer that is compressed is recognised by tar from its content.
		if err := copyTo(path, r); err != nil {
			return fmt.Errorf("%s: %w", strings.TrimSpace(h.Name), err)
		}
	}
}

func copyTo(path string, r io.Reader) error {
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, r); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
