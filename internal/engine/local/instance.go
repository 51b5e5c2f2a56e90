package local

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/oci"
)

const (
	// slotBits is the prefix length of one instance's share of the subnet.
	slotBits = 20
	// maxIndex is how many sandboxes a slot has addresses for: a /20 less the
	// network, gateway and broadcast addresses and one in reserve.
	maxIndex = 1<<(32-slotBits) - 4
	// maxSlots keeps the user-id ranges within 32 bits: a slot has 2^28 ids
	// (4,096 sandboxes of 65,536), and the first 2^28 are the host's own.
	maxSlots = 14
	// slotsDir holds one lock file for each slot. It is the same for every
	// instance, whatever its run directory: addresses, user ids, interface names
	// and packet filter tables belong to the machine.
	slotsDir = "/run/paddock-slots"
)

// instance is one paddock on this machine: the owner of one data directory.
type instance struct {
	name    string // 8 hex digits of the data directory's hash
	slot    int
	runDir  string // <run dir>/<name>
	dataDir string
	lock    *os.File // held for the life of the process
	slotRef *os.File
	subnet  netip.Prefix
}

// errInstanceBusy is returned when another process owns the data directory.
var errInstanceBusy = errors.New("another paddock process uses this data directory")

// openInstance takes the data directory and a slot. A living sandbox depends on
// its slot, so the same one is taken again after a restart.
func openInstance(o *Options) (*instance, error) {
	sum := sha256.Sum256([]byte(o.DataDir))
	in := &instance{name: hex.EncodeToString(sum[:4]), dataDir: o.DataDir}
	in.runDir = filepath.Join(o.RunDir, in.name)
	for _, dir := range []string{
		o.RunDir, in.runDir, in.shellsDir(), slotsDir,
		o.DataDir, in.sandboxesDir(), in.trashDir(), in.volumesDir(),
	} {
		// 0700 throughout: layers and upper directories hold set-user-id
		// files and sockets that no other user of the host may reach.
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	spread(in.sandboxesDir())
	lock, err := lockFile(filepath.Join(in.runDir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.DataDir, err)
	}
	in.lock = lock
	if err := in.takeSlot(o); err != nil {
		in.close()
		return nil, err
	}
	return in, nil
}

// spread tells ext4 to put the directories in dir far apart (FS_TOPDIR_FL,
// ioctl_iflags(2)). They are made and removed all the time, and an ext4 without
// a journal looks at every inode that was freed in the same place within the
// last minutes before it takes one (recently_deleted, fs/ext4/ialloc.c). Other
// filesystems refuse, which is as well.
func spread(dir string) {
	const fsTopdir = 0x00020000 // FS_TOPDIR_FL, include/uapi/linux/fs.h
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		return
	}
	_ = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(flags|fsTopdir))
}

func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, errInstanceBusy
	}
	return f, nil
}

// takeSlot finds a slot: the one of an earlier run, else one that nobody holds
// and whose last owner has left nothing.
func (in *instance) takeSlot(o *Options) error {
	slots := min(maxSlots, 1<<(slotBits-o.Subnet.Bits()))
	var order []int
	if b, err := os.ReadFile(filepath.Join(in.runDir, "slot")); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n >= 0 && n < slots {
			order = append(order, n)
		}
	}
	for n := range slots {
		order = append(order, n)
	}
	for _, n := range order {
		f, err := lockFile(filepath.Join(slotsDir, strconv.Itoa(n)))
		if err != nil {
			continue
		}
		if !in.slotFree(f) {
			f.Close()
			continue
		}
		if err := rewrite(f, in.runDir); err != nil {
			f.Close()
			return err
		}
		in.slotRef, in.slot = f, n
		in.subnet = slotSubnet(o.Subnet, n)
		return writeFile(filepath.Join(in.runDir, "slot"), []byte(strconv.Itoa(n)))
	}
	return fmt.Errorf("all %d slots of the subnet %s are taken by other paddock instances on this machine", slots, o.Subnet)
}

// slotFree reports whether the locked slot's last owner, whose run directory the
// file names, is us or has no sandboxes left.
func (in *instance) slotFree(f *os.File) bool {
	b := make([]byte, unix.PathMax)
	n, _ := f.ReadAt(b, 0)
	owner := strings.TrimSpace(string(b[:n]))
	if !filepath.IsAbs(owner) || owner == in.runDir {
		return true
	}
	left, err := os.ReadDir(filepath.Join(owner, "s"))
	return errors.Is(err, os.ErrNotExist) || (err == nil && len(left) == 0)
}

func rewrite(f *os.File, s string) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(s), 0)
	return err
}

func slotSubnet(p netip.Prefix, slot int) netip.Prefix {
	a := p.Masked().Addr().As4()
	n := uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
	n += uint32(slot) << (32 - slotBits)
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}), slotBits)
}

func (in *instance) close() {
	for _, f := range []*os.File{in.slotRef, in.lock} {
		if f != nil {
			f.Close()
		}
	}
}

func (in *instance) shellsDir() string    { return filepath.Join(in.runDir, "s") }
func (in *instance) sandboxesDir() string { return filepath.Join(in.dataDir, "sandboxes") }
func (in *instance) trashDir() string     { return filepath.Join(in.dataDir, "trash") }
func (in *instance) volumesDir() string   { return filepath.Join(in.dataDir, "volumes") }
func (in *instance) run(id string) string { return filepath.Join(in.shellsDir(), id) }
func (in *instance) data(id string) string {
	return filepath.Join(in.sandboxesDir(), id)
}
func (in *instance) socket(id string) string { return filepath.Join(in.run(id), "execd.sock") }
func (in *instance) alias(id string) string  { return "paddock/" + in.name + "/" + id }
func (in *instance) cgroupName() string      { return "paddock-" + in.name }

// base is the host id of root in the sandbox with that index.
func (in *instance) base(index int) uint32 {
	return uint32(in.slot+1)<<28 + uint32(index)*oci.IDRange
}
