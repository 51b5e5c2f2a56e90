package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// allowed is the device policy: character devices that any process may read
// and write (Documentation/admin-guide/devices.txt). No block device, and no
// device node may be made. The user namespace and nodev mounts already keep
// sandboxes from other devices; this holds even if one of them fails.
var allowed = []device{
	{major: 1, minor: 3, last: 3}, // null
	{major: 1, minor: 5, last: 5}, // zero
	{major: 1, minor: 7, last: 9}, // full, random, urandom
	{major: 5, minor: 0, last: 2}, // tty, console, ptmx
	{major: 136, minor: 0, last: anyMinor},
	{major: 137, minor: 0, last: anyMinor},
	{major: 138, minor: 0, last: anyMinor},
	{major: 139, minor: 0, last: anyMinor},
	{major: 140, minor: 0, last: anyMinor},
	{major: 141, minor: 0, last: anyMinor},
	{major: 142, minor: 0, last: anyMinor},
	{major: 143, minor: 0, last: anyMinor}, // 136 to 143: pts
}

// The greatest device numbers (include/linux/kdev_t.h).
const (
	maxMajor = 1<<12 - 1
	anyMinor = 1<<20 - 1
)

// device is a range of character devices.
type device struct{ major, minor, last int32 }

// Device names a character device of the host.
type Device struct{ Major, Minor uint32 }

// denyDevices installs the policy on the parent.
func (p *Parent) denyDevices() error { return p.setPolicy(".", allowed) }

// grant installs the policy on a group, with more devices that it may read and
// write.
func (p *Parent) grant(id string, devices []Device) error {
	list := slices.Clone(allowed)
	for _, d := range devices {
		if d.Major > maxMajor || d.Minor > anyMinor {
			return fmt.Errorf("device %d:%d: there is none of these numbers", d.Major, d.Minor)
		}
		list = append(list, device{major: int32(d.Major), minor: int32(d.Minor), last: int32(d.Minor)})
	}
	return p.setPolicy(id, list)
}

// setPolicy lets the processes in and below a group ("." for the parent) use
// the listed devices only.
func (p *Parent) setPolicy(group string, list []device) error {
	var err error
	switch {
	case p.devices != nil:
		err = p.denyDevicesV1(group, list)
	case p.unified != nil:
		err = p.denyDevicesV2(group, list)
	default:
		err = fmt.Errorf("the host has no cgroup controller devices: %w", ErrUnsupported)
	}
	if err != nil {
		return fmt.Errorf("denying access to devices: %w", err)
	}
	return nil
}

// rules are the lines of a v1 devices.list file that say what devices says.
func rules(devices []device) []string {
	var list []string
	for _, d := range devices {
		if d.last == anyMinor {
			list = append(list, fmt.Sprintf("c %d:* rw", d.major))
			continue
		}
		for minor := d.minor; minor <= d.last; minor++ {
			list = append(list, fmt.Sprintf("c %d:%d rw", d.major, minor))
		}
	}
	return list
}

// denyDevicesV1 changes only what differs, so that living sandboxes notice
// nothing when a restarted server comes by.
func (p *Parent) denyDevicesV1(group string, devices []device) error {
	deny, allow := filepath.Join(group, "devices.deny"), filepath.Join(group, "devices.allow")
	b, err := p.devices.read(filepath.Join(group, "devices.list"))
	if err != nil {
		return err
	}
	want, have := rules(devices), strings.FieldsFunc(string(b), func(r rune) bool { return r == '\n' })
	if slices.Contains(have, "a *:* rwm") {
		have = nil
		if err := p.devices.write(deny, "a"); err != nil {
			return err
		}
	}
	for _, rule := range have {
		if !slices.Contains(want, rule) {
			if err := p.devices.write(deny, rule); err != nil {
				return err
			}
		}
	}
	for _, rule := range want {
		if !slices.Contains(have, rule) {
			if err := p.devices.write(allow, rule); err != nil {
				return err
			}
		}
	}
	return nil
}

// denyDevicesV2 attaches an eBPF program. Attached without flags it replaces
// the one of an earlier process in one step, and stays until the cgroup is
// removed.
func (p *Parent) denyDevicesV2(group string, devices []device) error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:         "paddock_devices",
		Type:         ebpf.CGroupDevice,
		License:      "Apache-2.0",
		Instructions: deviceProgram(devices),
	})
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("loading an eBPF program needs CAP_BPF or CAP_SYS_ADMIN: %w", err)
	}
	if err != nil {
		return fmt.Errorf("loading the eBPF program: %w", err)
	}
	defer prog.Close()
	target, err := retry(func() (int, error) {
		return unix.Openat(p.unified.fd, group, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Join(p.unified.path, group), Err: err}
	}
	defer unix.Close(target)
	err = link.RawAttachProgram(link.RawAttachProgramOptions{
		Target:  target,
		Program: prog,
		Attach:  ebpf.AttachCGroupDevice,
	})
	if err != nil {
		return fmt.Errorf("attaching the eBPF program: %w", err)
	}
	return nil
}

// deviceProgram decides on an access to a device. Its context is struct
// bpf_cgroup_dev_ctx of include/uapi/linux/bpf.h: access_type (the kind of
// device in the low half, the kind of access in the high half), major, minor.
// It returns 1 to allow.
func deviceProgram(devices []device) asm.Instructions {
	const (
		charDevice = 2      // BPF_DEVCG_DEV_CHAR
		mknod      = 1 << 0 // BPF_DEVCG_ACC_MKNOD
	)
	prog := asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.Word),
		asm.LoadMem(asm.R3, asm.R1, 4, asm.Word),
		asm.LoadMem(asm.R4, asm.R1, 8, asm.Word),
		asm.Mov.Reg(asm.R5, asm.R2),
		asm.And.Imm(asm.R5, 0xffff),
		asm.JNE.Imm(asm.R5, charDevice, "deny"),
		asm.RSh.Imm(asm.R2, 16),
		asm.And.Imm(asm.R2, mknod),
		asm.JNE.Imm(asm.R2, 0, "deny"),
	}
	for i, d := range devices {
		next := fmt.Sprintf("next%d", i)
		prog = append(prog,
			asm.JNE.Imm(asm.R3, d.major, next),
			asm.JLT.Imm(asm.R4, d.minor, next),
			asm.JLE.Imm(asm.R4, d.last, "allow"),
			asm.Mov.Reg(asm.R5, asm.R5).WithSymbol(next),
		)
	}
	return append(prog,
		asm.Mov.Imm(asm.R0, 0).WithSymbol("deny"),
		asm.Return(),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("allow"),
		asm.Return(),
	)
}
