package seccomp

import "golang.org/x/sys/unix"

// group is a set of calls with one verdict and the reason for it.
type group struct {
	why   string
	what  decision
	calls []string
}

// table is the profile. Names are those of the kernel's syscall tables; a name
// that an architecture lacks is skipped there.
var table = []group{
	{
		why:  "reading and writing files, and waiting for them",
		what: allow,
		calls: []string{
			"open", "openat", "openat2", "creat", "close", "close_range",
			"read", "readv", "pread64", "preadv", "preadv2",
			"write", "writev", "pwrite64", "pwritev", "pwritev2",
			"lseek", "dup", "dup2", "dup3", "fcntl", "flock", "ioctl",
			"sendfile", "splice", "tee", "vmsplice", "copy_file_range",
			"sync", "syncfs", "fsync", "fdatasync", "sync_file_range",
			"truncate", "ftruncate", "fallocate", "fadvise64", "readahead",
			"pipe", "pipe2", "eventfd", "eventfd2",
			"poll", "ppoll", "select", "pselect6",
			"epoll_create", "epoll_create1", "epoll_ctl", "epoll_wait",
			"epoll_pwait", "epoll_pwait2",
			"inotify_init", "inotify_init1", "inotify_add_watch", "inotify_rm_watch",
			// The older asynchronous I/O: databases use it, and unlike
			// io_uring every operation passes the checks of its call.
			"io_setup", "io_submit", "io_getevents", "io_pgetevents",
			"io_cancel", "io_destroy",
		},
	},
	{
		why:  "names and attributes of files",
		what: allow,
		calls: []string{
			"stat", "lstat", "fstat", "newfstatat", "statx", "statfs", "fstatfs",
			"access", "faccessat", "faccessat2", "cachestat",
			"getdents", "getdents64", "getcwd", "chdir", "fchdir", "umask",
			"readlink", "readlinkat", "link", "linkat", "symlink", "symlinkat",
			"rename", "renameat", "renameat2", "unlink", "unlinkat",
			"mkdir", "mkdirat", "rmdir",
			"chmod", "fchmod", "fchmodat", "fchmodat2",
			"chown", "lchown", "fchown", "fchownat",
			"utime", "utimes", "futimesat", "utimensat",
			"getxattr", "lgetxattr", "fgetxattr", "getxattrat",
			"setxattr", "lsetxattr", "fsetxattr", "setxattrat",
			"listxattr", "llistxattr", "flistxattr", "listxattrat",
			"removexattr", "lremovexattr", "fremovexattr", "removexattrat",
			// Package managers and image builders need these two. In a user
			// namespace a device node made here opens nothing, and the root
			// to break out of by chroot is the sandbox's own.
			"mknod", "mknodat", "chroot",
		},
	},
	{
		why:  "memory of the process itself",
		what: allow,
		calls: []string{
			"brk", "mmap", "munmap", "mremap", "mprotect", "madvise", "msync",
			"mincore", "mlock", "mlock2", "munlock", "mlockall", "munlockall",
			"memfd_create", "memfd_secret", "membarrier", "mseal",
			"map_shadow_stack", "remap_file_pages",
			"pkey_alloc", "pkey_free", "pkey_mprotect", "process_madvise",
			"process_mrelease",
		},
	},
	{
		why:  "processes, threads, signals and waiting for them",
		what: allow,
		calls: []string{
			"fork", "vfork", "execve", "execveat", "exit", "exit_group",
			"wait4", "waitid", "getpid", "getppid", "gettid",
			"getpgid", "setpgid", "getpgrp", "getsid", "setsid",
			"kill", "tkill", "tgkill", "pause", "restart_syscall",
			"rt_sigaction", "rt_sigprocmask", "rt_sigpending", "rt_sigqueueinfo",
			"rt_tgsigqueueinfo", "rt_sigreturn", "rt_sigsuspend",
			"rt_sigtimedwait", "sigaltstack", "signalfd", "signalfd4",
			"pidfd_open", "pidfd_send_signal", "pidfd_getfd",
			"futex", "futex_wait", "futex_wake", "futex_requeue", "futex_waitv",
			"get_robust_list", "set_robust_list", "set_tid_address", "rseq",
			"arch_prctl", "prctl",
			// Sandboxed programs may narrow themselves further.
			"seccomp", "landlock_create_ruleset", "landlock_add_rule",
			"landlock_restrict_self",
		},
	},
	{
		why: "debuggers and tracers of processes inside the sandbox; " +
			"the kernel's own checks keep them off execd (see the package comment), and since " +
			"Linux 4.8 the filter runs after a tracer has changed a call",
		what:  allow,
		calls: []string{"ptrace", "process_vm_readv", "process_vm_writev"},
	},
	{
		why:  "users, groups, capabilities: all within the sandbox's user namespace",
		what: allow,
		calls: []string{
			"getuid", "geteuid", "getgid", "getegid", "getresuid", "getresgid",
			"getgroups", "setuid", "setgid", "setreuid", "setregid",
			"setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups",
			"capget", "capset",
		},
	},
	{
		why:  "scheduling and limits: they can only be lowered without privilege outside",
		what: allow,
		calls: []string{
			"sched_yield", "sched_getaffinity", "sched_setaffinity",
			"sched_getattr", "sched_setattr", "sched_getparam",
			"sched_setparam", "sched_getscheduler", "sched_setscheduler",
			"sched_get_priority_max", "sched_get_priority_min",
			"sched_rr_get_interval", "getpriority", "setpriority",
			"ioprio_get", "ioprio_set", "getcpu",
			"getrlimit", "setrlimit", "prlimit64", "getrusage", "times",
		},
	},
	{
		why:  "clocks and timers; adjtimex reads, the kernel refuses to set",
		what: allow,
		calls: []string{
			"clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep",
			"gettimeofday", "time", "adjtimex", "alarm", "getitimer", "setitimer",
			"timer_create", "timer_delete", "timer_getoverrun",
			"timer_gettime", "timer_settime",
			"timerfd_create", "timerfd_gettime", "timerfd_settime",
		},
	},
	{
		why:  "sockets once they are open",
		what: allow,
		calls: []string{
			"bind", "connect", "listen", "accept", "accept4", "shutdown",
			"getsockname", "getpeername", "getsockopt", "setsockopt",
			"sendto", "recvfrom", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg",
		},
	},
	{
		why:  "System V and POSIX inter-process communication, in the sandbox's IPC namespace",
		what: allow,
		calls: []string{
			"shmget", "shmat", "shmdt", "shmctl",
			"semget", "semop", "semtimedop", "semctl",
			"msgget", "msgsnd", "msgrcv", "msgctl",
			"mq_open", "mq_unlink", "mq_timedsend", "mq_timedreceive",
			"mq_notify", "mq_getsetattr",
		},
	},
	{
		why:   "facts about the machine",
		what:  allow,
		calls: []string{"uname", "sysinfo", "getrandom"},
	},

	{
		why: "threads and children, without a new namespace: inside one the caller would " +
			"hold every capability, which opens most of the kernel's privileged code to it",
		what: on(test{
			arg:       0,
			mask:      namespaceFlags,
			cases:     []branch{{[]uint32{0}, allow}},
			otherwise: deny,
		}),
		calls: []string{"clone"},
	},
	{
		why: "its flags are in memory, out of a filter's sight; libraries fall back to clone",
		// EPERM would be taken as final, ENOSYS makes them try clone.
		what:  fail(unix.ENOSYS),
		calls: []string{"clone3"},
	},
	{
		why:   "socket families and protocols that programs use; see socketFamilies",
		what:  socketFamilies,
		calls: []string{"socket"},
	},
	{
		why: "pairs exist for local sockets only; TIPC would offer them too",
		what: on(test{
			arg:       0,
			mask:      fullMask,
			cases:     []branch{{[]uint32{unix.AF_UNIX}, allow}},
			otherwise: fail(unix.EAFNOSUPPORT),
		}),
		calls: []string{"socketpair"},
	},
	{
		why: "the usual execution domain, queries, and what setarch, debuggers and sanitizers " +
			"ask for; the others change how the kernel parses and maps programs",
		what: on(test{
			arg:  0,
			mask: fullMask,
			cases: []branch{{[]uint32{
				perLinux,
				perLinux32,
				uname26,
				uname26 | perLinux32,
				addrNoRandomize,
				personalityQuery,
			}, allow}},
			otherwise: deny,
		}),
		calls: []string{"personality"},
	},

	{
		why:  "namespaces: nested ones give capabilities over kernel code that was written for root",
		what: deny, calls: []string{"setns", "unshare", "listns"},
	},
	{
		why:  "mounting, by every interface: the root filesystem is the host's work",
		what: deny, calls: []string{
			"mount", "umount2", "pivot_root", "open_tree", "open_tree_attr",
			"move_mount", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr",
		},
	},
	{
		why:   "opening files by handle goes around the directory tree (the way out of early Docker)",
		what:  deny,
		calls: []string{"name_to_handle_at", "open_by_handle_at"},
	},
	{
		why:   "keyrings are only partly namespaced, and have been a way around user namespaces",
		what:  deny,
		calls: []string{"add_key", "request_key", "keyctl"},
	},
	{
		why:   "programs in the kernel, and tracing of the kernel",
		what:  deny,
		calls: []string{"bpf", "perf_event_open", "lookup_dcookie", "syslog"},
	},
	{
		why:   "stops the kernel in the middle of a copy, which turns small races into exploits",
		what:  deny,
		calls: []string{"userfaultfd"},
	},
	{
		why: "its operations aren't calls, so the filter wouldn't see them; " +
			"libraries fall back as on a kernel without it",
		what:  fail(unix.ENOSYS),
		calls: []string{"io_uring_setup", "io_uring_enter", "io_uring_register"},
	},
	{
		why:   "code that runs as the kernel",
		what:  deny,
		calls: []string{"init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load"},
	},
	{
		why:  "settings of the whole machine",
		what: deny, calls: []string{
			"reboot", "swapon", "swapoff", "acct", "quotactl", "quotactl_fd",
			"settimeofday", "clock_settime", "clock_adjtime",
			"sethostname", "setdomainname", "vhangup", "iopl", "ioperm",
		},
	},
	{
		why:  "placement of memory on nodes, also of other processes; programs do without",
		what: deny, calls: []string{
			"mbind", "get_mempolicy", "set_mempolicy", "set_mempolicy_home_node",
			"migrate_pages", "move_pages",
		},
	},
	{
		why:   "watches whole mounts and filesystems; inotify stays",
		what:  deny,
		calls: []string{"fanotify_init", "fanotify_mark"},
	},
	{
		why:   "compares kernel objects of processes for checkpointing tools",
		what:  deny,
		calls: []string{"kcmp"},
	},
	{
		why:  "queries that few programs use yet, all with an older way to fall back to",
		what: fail(unix.ENOSYS), calls: []string{
			"statmount", "listmount", "lsm_get_self_attr", "lsm_set_self_attr",
			"lsm_list_modules", "file_getattr", "file_setattr", "rseq_slice_yield",
		},
	},
	{
		why:  "segment descriptors of 16- and 32-bit code, which doesn't run here anyway",
		what: fail(unix.ENOSYS), calls: []string{
			"modify_ldt", "set_thread_area", "get_thread_area",
		},
	},
	{
		why:  "removed from the kernel, or never there",
		what: fail(unix.ENOSYS), calls: []string{
			"_sysctl", "sysfs", "uselib", "ustat", "create_module",
			"get_kernel_syms", "query_module", "nfsservctl", "getpmsg",
			"putpmsg", "afs_syscall", "tuxcall", "security", "vserver",
			"epoll_ctl_old", "epoll_wait_old",
		},
	},
	{
		why: "return points of the kernel's own probes, which newer kernels exempt from " +
			"filters; anybody else who makes them gets SIGILL",
		what:  fail(unix.ENOSYS),
		calls: []string{"uretprobe", "uprobe"},
	},
}

// namespaceFlags are the flags of clone that make a namespace. CLONE_NEWTIME
// isn't among them: clone takes that bit as part of the exit signal.
const namespaceFlags = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS |
	unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// Execution domains (include/uapi/linux/personality.h).
const (
	perLinux         = 0x0
	perLinux32       = 0x8
	uname26          = 0x0020000
	addrNoRandomize  = 0x0040000
	personalityQuery = 0xffffffff
)

// socketTypeMask leaves the type and drops SOCK_CLOEXEC and SOCK_NONBLOCK
// (SOCK_TYPE_MASK in include/linux/net.h).
const socketTypeMask = 0xf

// socketFamilies allows local, internet and netlink sockets. Every other family
// is code that few use, that the kernel loads when somebody asks for it, and
// that has had more than its share of holes (AF_ALG, AF_VSOCK, AF_PACKET, TIPC,
// RDS, X.25 …). The answer is that of a kernel without the family, because
// libraries know what to do then: the audit library, for one, makes useradd
// give up on EPERM.
var socketFamilies = on(test{
	arg:  0,
	mask: fullMask,
	cases: []branch{
		{[]uint32{unix.AF_UNIX}, allow},
		{[]uint32{unix.AF_INET, unix.AF_INET6}, internetTypes},
		{[]uint32{unix.AF_NETLINK}, netlinkProtocols},
	},
	otherwise: fail(unix.EAFNOSUPPORT),
})

// internetTypes keeps out SOCK_PACKET, which the kernel turns into an AF_PACKET
// socket. Raw sockets pass: they need CAP_NET_RAW over the sandbox's own network
// namespace, and the packet filter is outside it.
var internetTypes = on(test{
	arg:  1,
	mask: socketTypeMask,
	cases: []branch{
		{[]uint32{unix.SOCK_STREAM, unix.SOCK_DGRAM}, internetProtocols},
		{[]uint32{unix.SOCK_RAW}, allow},
	},
	otherwise: fail(unix.ESOCKTNOSUPPORT),
})

// internetProtocols keeps out SCTP, DCCP, L2TP and what else the kernel would
// load a module for.
var internetProtocols = on(test{
	arg:  2,
	mask: fullMask,
	cases: []branch{{[]uint32{
		unix.IPPROTO_IP, // the usual one of the type
		unix.IPPROTO_ICMP,
		unix.IPPROTO_TCP,
		unix.IPPROTO_UDP,
		unix.IPPROTO_ICMPV6,
		unix.IPPROTO_MPTCP, // Go's listeners ask for it first
	}, allow}},
	otherwise: fail(unix.EPROTONOSUPPORT),
})

// netlinkProtocols allows to look at interfaces, sockets and device events.
// Packet filters, transforms, generic netlink and auditing are for root outside.
var netlinkProtocols = on(test{
	arg:  2,
	mask: fullMask,
	cases: []branch{{[]uint32{
		unix.NETLINK_ROUTE,
		unix.NETLINK_SOCK_DIAG,
		unix.NETLINK_KOBJECT_UEVENT,
	}, allow}},
	otherwise: fail(unix.EPROTONOSUPPORT),
})
