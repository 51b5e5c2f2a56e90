package seccomp

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// verdicts is what each call answers when it is made with all-zero arguments.
// The list is written out on purpose: a change of the profile has to be made
// twice, once by its reason and once by its effect.
var verdicts = map[action][]string{
	actEPERM: {
		"setns", "unshare", "listns",
		"mount", "umount2", "pivot_root", "open_tree", "open_tree_attr",
		"move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr",
		"name_to_handle_at", "open_by_handle_at",
		"add_key", "request_key", "keyctl",
		"bpf", "perf_event_open", "lookup_dcookie", "syslog", "userfaultfd",
		"init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load",
		"reboot", "swapon", "swapoff", "acct", "quotactl", "quotactl_fd",
		"settimeofday", "clock_settime", "clock_adjtime",
		"sethostname", "setdomainname", "vhangup", "iopl", "ioperm",
		"mbind", "get_mempolicy", "set_mempolicy", "set_mempolicy_home_node",
		"migrate_pages", "move_pages",
		"fanotify_init", "fanotify_mark", "kcmp",
	},
	actErrno(unix.ENOSYS): {
		"clone3", "io_uring_setup", "io_uring_enter", "io_uring_register",
		"statmount", "listmount", "lsm_get_self_attr", "lsm_set_self_attr", "lsm_list_modules",
		"file_getattr", "file_setattr", "rseq_slice_yield",
		"modify_ldt", "set_thread_area", "get_thread_area",
		"_sysctl", "sysfs", "uselib", "ustat", "create_module", "get_kernel_syms",
		"query_module", "nfsservctl", "getpmsg", "putpmsg", "afs_syscall", "tuxcall",
		"security", "vserver", "epoll_ctl_old", "epoll_wait_old", "uretprobe", "uprobe",
	},
	// Family and domain 0 don't exist.
	actErrno(unix.EAFNOSUPPORT): {"socket", "socketpair"},
}

// program is a compiled filter for one machine, with the machine to run it on.
type program struct {
	machine
	code []bpf.Instruction
	vm   *bpf.VM
}

func programs(t testing.TB) []program {
	t.Helper()
	var out []program
	for _, m := range machines {
		code, err := compile(table, m)
		if err != nil {
			t.Fatal(err)
		}
		vm, err := bpf.NewVM(code)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, program{m, code, vm})
	}
	return out
}

// run evaluates the program the way the kernel would. The interpreter reads
// big-endian packets, so each word of the call is laid out that way, with the
// low half of an argument first as on the real, little-endian machines.
func (p program) run(t testing.TB, audit, number uint32, args [6]uint64) action {
	t.Helper()
	data := make([]byte, offsetArgs+6*argSize)
	binary.BigEndian.PutUint32(data[offsetNumber:], number)
	binary.BigEndian.PutUint32(data[offsetArch:], audit)
	for i, a := range args {
		binary.BigEndian.PutUint32(data[offsetArgs+i*argSize:], uint32(a))
		binary.BigEndian.PutUint32(data[offsetArgs+i*argSize+4:], uint32(a>>32))
	}
	got, err := p.vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return action(uint32(got))
}

func (p program) call(t testing.TB, name string, args ...uint64) action {
	t.Helper()
	nr, ok := p.number[name]
	if !ok {
		t.Fatalf("%s has no call %q", p.name, name)
	}
	var all [6]uint64
	copy(all[:], args)
	return p.run(t, p.audit, nr, all)
}

// Every call of the kernel's tables must have been thought about, once.
func TestTableIsComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, g := range table {
		if g.why == "" {
			t.Errorf("group of %v has no reason", g.calls)
		}
		for _, name := range g.calls {
			if seen[name] {
				t.Errorf("%s is in the table twice", name)
			}
			seen[name] = true
		}
	}
	known := map[string]bool{}
	for _, m := range machines {
		for name := range m.number {
			known[name] = true
			if !seen[name] {
				t.Errorf("%s (%s) is not in the table", name, m.name)
			}
		}
	}
	for name := range seen {
		if !known[name] {
			t.Errorf("%s is in the table but no architecture has it", name)
		}
	}
}

func TestVerdictOfEveryCall(t *testing.T) {
	want := map[string]action{}
	for act, names := range verdicts {
		for _, name := range names {
			want[name] = act
		}
	}
	for _, p := range programs(t) {
		t.Run(p.name, func(t *testing.T) {
			for name := range p.number {
				w, ok := want[name]
				if !ok {
					w = actAllow
				}
				if got := p.call(t, name); got != w {
					t.Errorf("%s: got %#x, want %#x", name, uint32(got), uint32(w))
				}
			}
		})
	}
}

func TestUnknownCallsAndForeignArchitectures(t *testing.T) {
	enosys := actErrno(unix.ENOSYS)
	for _, p := range programs(t) {
		known := map[uint32]bool{}
		for _, nr := range p.number {
			known[nr] = true
		}
		for nr := uint32(0); nr < 2000; nr++ {
			if !known[nr] {
				if got := p.run(t, p.audit, nr, [6]uint64{}); got != enosys {
					t.Errorf("%s: unknown call %d: got %#x", p.name, nr, uint32(got))
				}
			}
		}
		// x32 calls carry bit 30; -1 is what a tracer sets to skip a call.
		for _, nr := range []uint32{1 << 30, 1<<30 | 1, 1<<30 | 272, 1<<31 - 1, 1 << 31, fullMask} {
			if got := p.run(t, p.audit, nr, [6]uint64{}); got != enosys {
				t.Errorf("%s: call %#x: got %#x", p.name, nr, uint32(got))
			}
		}
		for _, audit := range []uint32{0, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_ARM, unix.AUDIT_ARCH_RISCV64} {
			if got := p.run(t, audit, 0, [6]uint64{}); got != actKill {
				t.Errorf("%s: architecture %#x: got %#x", p.name, audit, uint32(got))
			}
		}
	}
}

func TestArguments(t *testing.T) {
	const high = 1 << 32 // bits that the kernel drops
	thread := uint64(unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND |
		unix.CLONE_THREAD | unix.CLONE_SYSVSEM | unix.CLONE_SETTLS |
		unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_CLEARTID)
	tests := []struct {
		call string
		args []uint64
		want action
	}{
		{"clone", []uint64{thread}, actAllow},
		{"clone", []uint64{unix.CLONE_VM | unix.CLONE_VFORK | unix.CLONE_PIDFD | uint64(unix.SIGCHLD)}, actAllow},
		{"clone", []uint64{unix.CLONE_NEWUSER | uint64(unix.SIGCHLD)}, actEPERM},
		{"clone", []uint64{high | unix.CLONE_NEWUSER}, actEPERM},
		{"clone", []uint64{thread | unix.CLONE_NEWNS}, actEPERM},
		{"clone", []uint64{unix.CLONE_NEWPID}, actEPERM},
		{"clone", []uint64{unix.CLONE_NEWNET}, actEPERM},
		{"clone", []uint64{unix.CLONE_NEWIPC}, actEPERM},
		{"clone", []uint64{unix.CLONE_NEWUTS}, actEPERM},
		{"clone", []uint64{unix.CLONE_NEWCGROUP}, actEPERM},
		{"clone", []uint64{^uint64(0)}, actEPERM},

		{"personality", []uint64{0}, actAllow},
		{"personality", []uint64{0xffffffff}, actAllow},
		{"personality", []uint64{^uint64(0)}, actAllow},
		{"personality", []uint64{0x40000}, actAllow},
		{"personality", []uint64{0x400000}, actEPERM}, // READ_IMPLIES_EXEC
		{"personality", []uint64{0x440000}, actEPERM},
		{"personality", []uint64{4}, actEPERM},

		{"socket", []uint64{unix.AF_UNIX, unix.SOCK_STREAM}, actAllow},
		{"socket", []uint64{unix.AF_UNIX, unix.SOCK_SEQPACKET | unix.SOCK_CLOEXEC}, actAllow},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_STREAM | unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK, 0}, actAllow},
		{"socket", []uint64{unix.AF_INET6, unix.SOCK_DGRAM, unix.IPPROTO_UDP}, actAllow},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP}, actAllow},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP}, actAllow},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP}, actAllow},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW}, actAllow},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_SEQPACKET, unix.IPPROTO_SCTP}, actErrno(unix.ESOCKTNOSUPPORT)},
		{"socket", []uint64{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP}, actErrno(unix.EPROTONOSUPPORT)},
		{"socket", []uint64{unix.AF_INET6, unix.SOCK_DGRAM, 115}, actErrno(unix.EPROTONOSUPPORT)}, // L2TP
		{"socket", []uint64{unix.AF_INET, 6, 33}, actErrno(unix.ESOCKTNOSUPPORT)},                 // DCCP
		{"socket", []uint64{unix.AF_INET, unix.SOCK_PACKET, 0x300}, actErrno(unix.ESOCKTNOSUPPORT)},
		{"socket", []uint64{unix.AF_INET, high | unix.SOCK_PACKET | unix.SOCK_NONBLOCK, 0x300}, actErrno(unix.ESOCKTNOSUPPORT)},
		{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, actAllow},
		{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_SOCK_DIAG}, actAllow},
		{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}, actErrno(unix.EPROTONOSUPPORT)},
		{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT}, actErrno(unix.EPROTONOSUPPORT)},
		{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_GENERIC}, actErrno(unix.EPROTONOSUPPORT)},
		{"socket", []uint64{unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_XFRM}, actErrno(unix.EPROTONOSUPPORT)},
		{"socket", []uint64{unix.AF_PACKET, unix.SOCK_RAW}, actErrno(unix.EAFNOSUPPORT)},
		{"socket", []uint64{high | unix.AF_PACKET, unix.SOCK_RAW}, actErrno(unix.EAFNOSUPPORT)},
		{"socket", []uint64{unix.AF_ALG, unix.SOCK_SEQPACKET}, actErrno(unix.EAFNOSUPPORT)},
		{"socket", []uint64{unix.AF_VSOCK, unix.SOCK_STREAM}, actErrno(unix.EAFNOSUPPORT)},
		{"socket", []uint64{unix.AF_XDP, unix.SOCK_RAW}, actErrno(unix.EAFNOSUPPORT)},
		{"socket", []uint64{unix.AF_TIPC, unix.SOCK_RDM}, actErrno(unix.EAFNOSUPPORT)},
		{"socket", []uint64{0xffffffff, unix.SOCK_STREAM}, actErrno(unix.EAFNOSUPPORT)},

		{"socketpair", []uint64{unix.AF_UNIX, unix.SOCK_STREAM}, actAllow},
		{"socketpair", []uint64{unix.AF_TIPC, unix.SOCK_SEQPACKET}, actErrno(unix.EAFNOSUPPORT)},
	}
	for _, p := range programs(t) {
		for _, tt := range tests {
			if got := p.call(t, tt.call, tt.args...); got != tt.want {
				t.Errorf("%s: %s(%#x): got %#x, want %#x", p.name, tt.call, tt.args, uint32(got), uint32(tt.want))
			}
		}
	}
}

// The compiled program and the plain evaluation of the table must agree on
// every call, whatever the arguments.
func TestProgramAgreesWithTable(t *testing.T) {
	for _, p := range programs(t) {
		byNumber := map[uint32]decision{}
		for _, g := range table {
			for _, name := range g.calls {
				if nr, ok := p.number[name]; ok {
					byNumber[nr] = g.what
				}
			}
		}
		rapid.Check(t, func(rt *rapid.T) {
			nr := rapid.OneOf(rapid.Uint32Range(0, 600), rapid.Uint32(),
				rapid.SampledFrom([]uint32{p.number["socket"], p.number["clone"],
					p.number["personality"], p.number["socketpair"]})).Draw(rt, "number")
			var args [6]uint64
			for i := range args {
				args[i] = rapid.OneOf(rapid.Uint64Range(0, 64), rapid.Uint64(),
					rapid.SampledFrom([]uint64{262, 0x40000, 0x20008, 0xffffffff, 1 << 32, 1<<32 | 2, 0x80802, 0x80003})).Draw(rt, fmt.Sprint("arg", i))
			}
			d, ok := byNumber[nr]
			if !ok {
				d = unknown
			}
			if got, want := p.run(t, p.audit, nr, args), d.at(args); got != want {
				rt.Fatalf("%s: call %d(%#x): program says %#x, table says %#x", p.name, nr, args, uint32(got), uint32(want))
			}
		})
	}
}

func TestCompile(t *testing.T) {
	a, err := Compile()
	if err != nil {
		t.Fatal(err)
	}
	b, err := Compile()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(a, b) {
		t.Error("two compilations differ")
	}
	if len(a) == 0 || len(a)%8 != 0 {
		t.Errorf("program of %d bytes", len(a))
	}
	t.Logf("%d instructions", len(a)/8)
}

func TestCompileRefuses(t *testing.T) {
	if _, err := machineOf("mips"); err == nil {
		t.Error("mips: no error")
	}
	m := machines[0]
	if _, err := compile(nil, m); err == nil {
		t.Error("empty profile: no error")
	}
	twice := []group{{what: allow, calls: []string{"read"}}, {what: deny, calls: []string{"read"}}}
	if _, err := compile(twice, m); err == nil {
		t.Error("call in two groups: no error")
	}
}

// A long decision needs jumps beyond the 255 instructions of a conditional one.
func TestLongJumps(t *testing.T) {
	values := make([]uint32, 0, 100)
	for v := uint32(0); v < 100; v++ {
		values = append(values, v*2)
	}
	var cases []branch
	for v := uint32(1000); v < 1400; v++ {
		cases = append(cases, branch{[]uint32{v}, fail(unix.Errno(v - 900))})
	}
	inner := on(test{arg: 1, mask: fullMask, cases: cases, otherwise: deny})
	long := []group{
		{what: allow, calls: []string{"read"}},
		{what: on(test{arg: 0, mask: fullMask, cases: []branch{{values, inner}}, otherwise: allow}), calls: []string{"write"}},
		{what: allow, calls: []string{"close"}},
	}
	code, err := compile(long, machines[0])
	if err != nil {
		t.Fatal(err)
	}
	vm, err := bpf.NewVM(code)
	if err != nil {
		t.Fatal(err)
	}
	p := program{machines[0], code, vm}
	for _, tt := range []struct {
		call string
		args []uint64
		want action
	}{
		{"read", nil, actAllow},
		{"close", nil, actAllow},
		{"open", nil, actErrno(unix.ENOSYS)},
		{"write", []uint64{1}, actAllow},
		{"write", []uint64{0, 1}, actEPERM},
		{"write", []uint64{198, 1000}, actErrno(100)},
		{"write", []uint64{0, 1399}, actErrno(499)},
	} {
		if got := p.call(t, tt.call, tt.args...); got != tt.want {
			t.Errorf("%s(%d): got %#x, want %#x", tt.call, tt.args, uint32(got), uint32(tt.want))
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	for b.Loop() {
		if _, err := Compile(); err != nil {
			b.Fatal(err)
		}
	}
}
