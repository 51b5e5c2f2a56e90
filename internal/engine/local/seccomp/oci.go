package seccomp

import (
	"runtime"
	"sort"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Profile returns the filter in the OCI form for the architecture that paddock
// runs on, for runtimes that compile it themselves. The caller owns the answer.
//
// It allows exactly what Compile's program allows. Error numbers can differ
// where the form can't express them: what depends on an argument and isn't
// spelt out answers EPERM, and so do calls that the table doesn't know (runc
// makes ENOSYS of those by itself).
//
// On an architecture without a table the answer allows nothing.
func Profile() *specs.LinuxSeccomp {
	eperm := actEPERM.errno()
	out := &specs.LinuxSeccomp{
		DefaultAction:   specs.ActErrno,
		DefaultErrnoRet: &eperm,
	}
	m, err := machineOf(runtime.GOARCH)
	if err != nil {
		return out
	}
	out.Architectures = []specs.Arch{specs.Arch(m.oci)}
	for _, g := range table {
		var names []string
		for _, name := range g.calls {
			if _, ok := m.number[name]; ok {
				names = append(names, name)
			}
		}
		if len(names) == 0 {
			continue
		}
		sort.Strings(names)
		out.Syscalls = append(out.Syscalls, rules(names, g.what, nil)...)
	}
	return out
}

// rules spells a decision out: one rule for each way through it whose end isn't
// the default action. No two of them match the same call, because libseccomp
// leaves open which one would win.
func rules(names []string, d decision, args []specs.LinuxSeccompArg) []specs.LinuxSyscall {
	if d.test == nil {
		if d.act == actEPERM {
			return nil
		}
		rule := specs.LinuxSyscall{Names: names, Action: specs.ActAllow, Args: args}
		if d.act != actAllow {
			e := d.act.errno()
			rule.Action, rule.ErrnoRet = specs.ActErrno, &e
		}
		return []specs.LinuxSyscall{rule}
	}
	var out []specs.LinuxSyscall
	named := map[uint32]bool{}
	for _, b := range d.test.cases {
		for _, v := range b.values {
			named[v] = true
			out = append(out, rules(names, b.then, with(args, d.test, v))...)
		}
	}
	for v := range d.test.domain {
		if !named[v] {
			out = append(out, rules(names, d.test.otherwise, with(args, d.test, v))...)
		}
	}
	return out
}

// with adds the condition that the tested argument has this value.
func with(args []specs.LinuxSeccompArg, t *test, value uint32) []specs.LinuxSeccompArg {
	return append(args[:len(args):len(args)], specs.LinuxSeccompArg{
		Index:    uint(t.arg),
		Value:    uint64(t.mask),
		ValueTwo: uint64(value),
		Op:       specs.OpMaskedEqual,
	})
}
