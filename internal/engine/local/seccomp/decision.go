package seccomp

import "golang.org/x/sys/unix"

// action is what the filter answers, as the value of a seccomp return
// (include/uapi/linux/seccomp.h).
type action uint32

const (
	actAllow action = unix.SECCOMP_RET_ALLOW
	actKill  action = unix.SECCOMP_RET_KILL_PROCESS
	actEPERM        = action(unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM))
)

// actErrno answers a call with an error number without running it.
func actErrno(e unix.Errno) action {
	return action(unix.SECCOMP_RET_ERRNO | uint32(e)&unix.SECCOMP_RET_DATA)
}

// errno is the error number of an errno action, 0 for the others.
func (a action) errno() uint {
	if uint32(a)&unix.SECCOMP_RET_ACTION_FULL != unix.SECCOMP_RET_ERRNO {
		return 0
	}
	return uint(uint32(a) & unix.SECCOMP_RET_DATA)
}

// decision is what to do about one call. It is either final (test is nil) or
// looks at one argument and goes on.
type decision struct {
	act  action
	test *test
}

// test looks at the low 32 bits of one argument. Every argument tested here is
// an int or unsigned int to the kernel, or (clone's flags) has all the bits that
// matter in its low half, so the low half is exactly what the kernel will act
// on. Comparing 64 bits would let a caller change the outcome with bits that
// the kernel ignores.
type test struct {
	arg       int    // 0 to 5
	mask      uint32 // applied before comparing
	cases     []branch
	otherwise decision
}

// branch goes on with then if the masked argument is one of the values.
type branch struct {
	values []uint32
	then   decision
}

const fullMask = ^uint32(0)

var (
	allow = decision{act: actAllow}
	deny  = decision{act: actEPERM}
)

// fail answers with the given error number.
func fail(e unix.Errno) decision { return decision{act: actErrno(e)} }

// on builds a decision that depends on an argument.
func on(t test) decision { return decision{test: &t} }

// at evaluates the decision for the given arguments. It is the reference that
// the compiled program is tested against.
func (d decision) at(args [6]uint64) action {
	for d.test != nil {
		v := uint32(args[d.test.arg]) & d.test.mask
		next := d.test.otherwise
	search:
		for _, b := range d.test.cases {
			for _, want := range b.values {
				if v == want {
					next = b.then
					break search
				}
			}
		}
		d = next
	}
	return d.act
}
