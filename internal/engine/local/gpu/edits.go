package gpu

import (
	"debug/elf"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	specs "tags.cncf.io/container-device-interface/specs-go"
)

// Edits are what a sandbox needs to use its GPUs.
type Edits struct {
	// Env are variables of the sandbox's environment.
	Env map[string]string
	// Devices are device nodes.
	Devices []Device
	// Mounts are files and directories of the host, to be mounted read-only,
	// outer ones first.
	Mounts []Mount
	// Links are symbolic links by path.
	Links map[string]string
	// LibraryDirs are directories in the sandbox in which its dynamic linker
	// has to look, too.
	LibraryDirs []string
}

// Device is a character device of the host.
type Device struct {
	// Path is where it is to be in the sandbox.
	Path         string
	Major, Minor uint32
}

// Mount is a file or directory of the host.
type Mount struct{ Host, Path string }

// edits adds up what the named devices and their specifications say.
func (inv *inventory) edits(names []string) (*Edits, error) {
	e := &Edits{Env: map[string]string{}, Links: map[string]string{}}
	specsSeen := map[*cdi.Spec]bool{}
	for _, name := range names {
		d := inv.cache.GetDevice(parserName(inv.kind, name))
		if d == nil {
			return nil, fmt.Errorf("the CDI specification of %s=%s has just changed; try again", inv.kind, name)
		}
		spec := d.GetSpec()
		if !specsSeen[spec] {
			specsSeen[spec] = true
			if err := e.add(&spec.ContainerEdits); err != nil {
				return nil, fmt.Errorf("%s: %w", spec.GetPath(), err)
			}
		}
		if err := e.add(&d.ContainerEdits); err != nil {
			return nil, fmt.Errorf("%s, device %q: %w", spec.GetPath(), name, err)
		}
	}
	e.settle()
	return e, nil
}

func (e *Edits) add(c *specs.ContainerEdits) error {
	switch {
	case len(c.NetDevices) > 0:
		return fmt.Errorf("it moves network interfaces into containers, which is not supported")
	case c.IntelRdt != nil:
		return fmt.Errorf("it asks for Intel RDT, which is not supported")
	}
	// Additional groups are for device nodes that only a group may open. Here
	// a node belongs to the sandbox, and everybody in it may open it.
	for _, kv := range c.Env {
		name, value, _ := strings.Cut(kv, "=")
		e.Env[name] = value
	}
	for _, n := range c.DeviceNodes {
		if err := e.addDevice(n); err != nil {
			return err
		}
	}
	for _, m := range c.Mounts {
		if err := e.addMount(m); err != nil {
			return err
		}
	}
	for _, h := range c.Hooks {
		if err := e.addHook(h); err != nil {
			return err
		}
	}
	return nil
}

func (e *Edits) addDevice(n *specs.DeviceNode) error {
	if err := checkPath(n.Path); err != nil {
		return fmt.Errorf("device node: %w", err)
	}
	d := Device{Path: path.Clean(n.Path), Major: uint32(n.Major), Minor: uint32(n.Minor)}
	kind := n.Type
	if kind == "" || n.Major == 0 {
		host := n.HostPath
		if host == "" {
			host = n.Path
		}
		var st unix.Stat_t
		if err := unix.Stat(host, &st); err != nil {
			return fmt.Errorf("device node %s: %w", host, err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFCHR {
			return fmt.Errorf("device node %s is not a character device; others are not supported", host)
		}
		kind, d.Major, d.Minor = "c", unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	if kind != "c" && kind != "u" {
		return fmt.Errorf("device node %s is of type %q; only character devices are supported", n.Path, kind)
	}
	e.Devices = append(e.Devices, d)
	return nil
}

func (e *Edits) addMount(m *specs.Mount) error {
	if err := checkPath(m.ContainerPath); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	if m.Type != "" && m.Type != "bind" {
		return fmt.Errorf("the mount at %s is of type %q; only bind mounts are supported", m.ContainerPath, m.Type)
	}
	info, err := os.Stat(m.HostPath)
	if err != nil {
		return fmt.Errorf("the mount at %s: %w", m.ContainerPath, err)
	}
	if info.Mode()&os.ModeSocket != 0 {
		// It would lead to a service of the host, which a sandbox must not
		// reach. Drivers do without (nvidia-persistenced, MPS).
		return nil
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return fmt.Errorf("the mount of %s: only files and directories are supported", m.HostPath)
	}
	e.Mounts = append(e.Mounts, Mount{Host: m.HostPath, Path: path.Clean(m.ContainerPath)})
	return nil
}

// checkPath refuses a place in the sandbox that is none.
func checkPath(p string) error {
	if !path.IsAbs(p) || path.Clean(p) == "/" || strings.ContainsRune(p, 0) {
		return fmt.Errorf("%q is not an absolute path below /", p)
	}
	return nil
}

// settle drops what is there twice, sorts outer mounts first, and makes the
// links that the dynamic linker's configuration tool would make: a library is
// looked for by the name in it, such as libcuda.so.1, whatever its file's name
// is.
func (e *Edits) settle() {
	devices := map[string]Device{}
	for _, d := range e.Devices {
		devices[d.Path] = d
	}
	e.Devices = e.Devices[:0]
	for _, p := range slices.Sorted(maps.Keys(devices)) {
		e.Devices = append(e.Devices, devices[p])
	}
	mounts := map[string]Mount{}
	for _, m := range e.Mounts {
		mounts[m.Path] = m
	}
	e.Mounts = e.Mounts[:0]
	for _, p := range slices.Sorted(maps.Keys(mounts)) {
		e.Mounts = append(e.Mounts, mounts[p])
	}
	slices.Sort(e.LibraryDirs)
	e.LibraryDirs = slices.Compact(e.LibraryDirs)
	for _, m := range e.Mounts {
		dir := path.Dir(m.Path)
		if !slices.Contains(e.LibraryDirs, dir) {
			continue
		}
		if name := soname(m.Host); name != "" && name != path.Base(m.Path) {
			link := path.Join(dir, name)
			if _, mounted := mounts[link]; !mounted {
				e.Links[link] = path.Base(m.Path)
			}
		}
	}
}

// soname is the name by which programs ask for the shared library in the file;
// empty for anything else.
func soname(file string) string {
	f, err := elf.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	names, err := f.DynString(elf.DT_SONAME)
	if err != nil || len(names) == 0 || strings.ContainsAny(names[0], "/\x00") {
		return ""
	}
	return names[0]
}
