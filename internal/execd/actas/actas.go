package actas

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/execd/account"
)

// ErrNotMapped is returned for ids that the sandbox's user namespace does not
// have.
var ErrNotMapped = errors.New("not an id of this sandbox")

// ErrNotAllowed is returned when execd itself may not change its identity,
// because it was not started as root.
var ErrNotAllowed = errors.New("execd does not run as root and can't act as another user")

// Own reports whether execd has the identity already. Root's groups don't
// matter: it is let through everywhere without them.
func Own(id account.Identity) bool {
	return int(id.UID) == os.Geteuid() && int(id.GID) == os.Getegid() && (id.UID == 0 || len(id.Groups) == 0)
}

// Do calls f with the identity id and returns when f has returned. A panic of f
// goes through. An error means that f was not called. f must not start
// goroutines that touch files: they would do so as execd. It may be called in
// parallel; each call holds an operating system thread.
func Do(id account.Identity, f func()) error {
	if Own(id) {
		f()
		return nil
	}
	done := make(chan result, 1)
	go run(id, f, done)
	r := <-done
	if r.panicked {
		panic(r.value)
	}
	return r.err
}

type result struct {
	err      error
	panicked bool
	value    any
}

func run(id account.Identity, f func(), done chan<- result) {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// The main thread's identity is what others see of the process. While
		// this goroutine holds that thread, another one gets another.
		own := make(chan result, 1)
		go run(id, f, own)
		done <- <-own
		runtime.UnlockOSThread()
		return
	}
	// The thread is not unlocked and so ends with this goroutine: a thread that
	// was another user's, who may have lowered its priority, is not used again.
	var r result
	defer func() { done <- r }()
	before, err := take(id)
	defer before.restore()
	if err != nil {
		r.err = err
		return
	}
	r.panicked = true
	defer func() {
		if r.panicked {
			r.value = recover()
		}
	}()
	f()
	r.panicked = false
}

// identity is what a thread had before.
type identity struct {
	uid, gid int
	groups   []uint32
}

// take changes the calling thread's identity. What it returns undoes it, also
// when it failed half way.
func take(id account.Identity) (*identity, error) {
	// To the calls below this number means "keep", so they would not refuse it.
	if id.UID == math.MaxUint32 || id.GID == math.MaxUint32 {
		return nil, explain(syscall.EINVAL, "user or group", math.MaxUint32, "uid_map")
	}
	old, err := current()
	if err != nil {
		return nil, err
	}
	if err := setGroups(id.Groups); err != nil {
		return old, explain(err, "one of the supplementary groups of the user with the group", id.GID, "gid_map")
	}
	if err := setEffective(unix.SYS_SETRESGID, int(id.GID)); err != nil {
		return old, explain(err, "group", id.GID, "gid_map")
	}
	if err := setEffective(unix.SYS_SETRESUID, int(id.UID)); err != nil {
		return old, explain(err, "user", id.UID, "uid_map")
	}
	if id.UID != 0 {
		if err := powerless(); err != nil {
			return old, err
		}
	}
	return old, nil
}

func current() (*identity, error) {
	// unix.Getgroups asks for the calling thread.
	groups, err := unix.Getgroups()
	if err != nil {
		return nil, fmt.Errorf("reading the groups of execd: %w", err)
	}
	old := &identity{uid: unix.Geteuid(), gid: unix.Getegid()}
	for _, g := range groups {
		old.groups = append(old.groups, uint32(g))
	}
	return old, nil
}

// restore can't fail in a way that matters: the thread ends, and nobody looks at
// its groups in the meantime. The user id comes first, because the rest needs
// the capabilities that come back with it.
func (o *identity) restore() {
	if o == nil {
		return
	}
	_ = setEffective(unix.SYS_SETRESUID, o.uid)
	_ = setEffective(unix.SYS_SETRESGID, o.gid)
	_ = setGroups(o.groups)
}

// setEffective is setresuid(-1, id, -1) or setresgid for this thread alone; the
// functions of syscall change all threads. Both calls take 32-bit ids on the
// 64-bit architectures, which are the ones that paddock runs on.
func setEffective(call uintptr, id int) error {
	const keep = ^uintptr(0)
	if _, _, errno := syscall.RawSyscall(call, keep, uintptr(id), keep); errno != 0 {
		return errno
	}
	return nil
}

func setGroups(groups []uint32) error {
	var first unsafe.Pointer
	if len(groups) > 0 {
		first = unsafe.Pointer(&groups[0])
	}
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(first), 0); errno != 0 {
		return errno
	}
	return nil
}

// powerless makes sure that the kernel took the effective capabilities away,
// which a process can have switched off (SECBIT_NO_SETUID_FIXUP).
func powerless() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("reading capabilities: %w", err)
	}
	if data[0].Effective|data[1].Effective != 0 {
		return errors.New("capabilities remain after the change of identity; execd was started with secure bits that it does not support")
	}
	return nil
}

func explain(err error, what string, id uint32, idMap string) error {
	switch {
	case errors.Is(err, syscall.EINVAL):
		return fmt.Errorf("%s %d: %w%s", what, id, ErrNotMapped, mapped(idMap))
	case errors.Is(err, syscall.EPERM):
		return ErrNotAllowed
	}
	return fmt.Errorf("acting as %s %d: %w", what, id, err)
}

// mapped says which ids there are (user_namespaces(7)).
func mapped(idMap string) string {
	text, err := os.ReadFile("/proc/self/" + idMap)
	if err != nil {
		return ""
	}
	var ranges []string
	for line := range strings.Lines(string(text)) {
		var first, outside, count uint64
		if _, err := fmt.Sscan(line, &first, &outside, &count); err == nil && count > 0 {
			// The largest number is no id, though a map may have it.
			ranges = append(ranges, fmt.Sprintf("%d to %d", first, min(first+count, math.MaxUint32)-1))
		}
	}
	return ", which has " + strings.Join(ranges, " and ")
}
