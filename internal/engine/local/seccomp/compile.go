package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sort"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// CrunAnnotation is the annotation of a container's configuration that makes
// crun install a ready program. Its value is the program in standard base64.
// It works alone: with a seccomp section in the configuration crun would
// compile that as well.
const CrunAnnotation = "run.oci.seccomp_bpf_data"

// Where struct seccomp_data (include/uapi/linux/seccomp.h) holds what the
// program looks at. Arguments are 64 bits each; on the little-endian machines
// supported here the low half comes first.
const (
	offsetNumber = 0
	offsetArch   = 4
	offsetArgs   = 16
	argSize      = 8
)

// maxInstructions is the most that the kernel takes in one program (BPF_MAXINSNS
// in include/uapi/linux/bpf_common.h).
const maxInstructions = 4096

// machine is an architecture that programs are made for.
type machine struct {
	name   string // as Go calls it
	audit  uint32 // AUDIT_ARCH_…, what the kernel reports for its calls
	number map[string]uint32
}

//go:generate go run gen.go

var machines = []machine{
	{"amd64", unix.AUDIT_ARCH_X86_64, amd64Numbers},
	{"arm64", unix.AUDIT_ARCH_AARCH64, arm64Numbers},
}

func machineOf(goarch string) (machine, error) {
	for _, m := range machines {
		if m.name == goarch {
			return m, nil
		}
	}
	return machine{}, fmt.Errorf("seccomp: no table of system calls for architecture %q, only for amd64 and arm64", goarch)
}

// Compile returns the filter for the architecture that paddock runs on: an array
// of struct sock_filter in the byte order of the machine, as seccomp(2) takes
// it. The answer is the same every time; it takes about a tenth of a
// millisecond, so a caller makes it once and keeps it. Safe for use in parallel.
func Compile() ([]byte, error) {
	m, err := machineOf(runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	prog, err := compile(table, m)
	if err != nil {
		return nil, err
	}
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return nil, fmt.Errorf("seccomp: assembling the filter: %w", err)
	}
	out := make([]byte, 0, 8*len(raw))
	for _, ins := range raw {
		out = binary.NativeEndian.AppendUint16(out, ins.Op)
		out = append(out, ins.Jt, ins.Jf)
		out = binary.NativeEndian.AppendUint32(out, ins.K)
	}
	return out, nil
}

// span is a run of consecutive call numbers with one decision, from its first
// number to the one before the next span's.
type span struct {
	first uint32
	what  decision
}

// unknown is the decision for call numbers that the table doesn't have. Among
// them are those of the x32 variant of amd64, which start at 1<<30.
var unknown = fail(unix.ENOSYS)

// compile makes the program: refuse foreign architectures, then find the call's
// span by binary search, then apply its decision. Calls whose decision doesn't
// depend on arguments are also found by the kernel itself when it loads the
// filter (since Linux 5.11), and pass later without running it.
func compile(groups []group, m machine) ([]bpf.Instruction, error) {
	spans, err := spansOf(groups, m)
	if err != nil {
		return nil, err
	}
	prog := []bpf.Instruction{
		bpf.LoadAbsolute{Off: offsetArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: m.audit, SkipTrue: 1},
		// 32-bit programs: another table of calls, and a different layout of
		// their arguments. Nothing in them could go on after an error.
		bpf.RetConstant{Val: uint32(actKill)},
		bpf.LoadAbsolute{Off: offsetNumber, Size: 4},
	}
	prog = append(prog, search(spans)...)
	if len(prog) > maxInstructions {
		return nil, fmt.Errorf("seccomp: the filter has %d instructions, the kernel takes %d", len(prog), maxInstructions)
	}
	return prog, nil
}

// spansOf lays the groups out by number. The first span begins at 0.
func spansOf(groups []group, m machine) ([]span, error) {
	byNumber := map[uint32]decision{}
	for _, g := range groups {
		for _, name := range g.calls {
			nr, ok := m.number[name]
			if !ok {
				continue
			}
			if _, twice := byNumber[nr]; twice {
				return nil, fmt.Errorf("seccomp: call %q is in the profile twice", name)
			}
			byNumber[nr] = g.what
		}
	}
	if len(byNumber) == 0 {
		return nil, errors.New("seccomp: the profile is empty")
	}
	numbers := make([]uint32, 0, len(byNumber))
	for nr := range byNumber {
		numbers = append(numbers, nr)
	}
	sort.Slice(numbers, func(i, j int) bool { return numbers[i] < numbers[j] })

	var spans []span
	add := func(first uint32, what decision) {
		if n := len(spans); n > 0 && spans[n-1].what == what {
			return
		}
		spans = append(spans, span{first, what})
	}
	next := uint32(0)
	for _, nr := range numbers {
		if nr > next {
			add(next, unknown)
		}
		add(nr, byNumber[nr])
		next = nr + 1
	}
	add(next, unknown)
	return spans, nil
}

// search is the code that finds the span of the number in the accumulator and
// applies its decision.
func search(spans []span) []bpf.Instruction {
	if len(spans) == 1 {
		return apply(spans[0].what)
	}
	mid := len(spans) / 2
	below, above := search(spans[:mid]), search(spans[mid:])
	code := jumpOver(bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: spans[mid].first}, below)
	return append(code, above...)
}

// apply is the code that carries out a decision. It loads arguments as it needs
// them, so nothing can rely on the accumulator afterwards.
func apply(d decision) []bpf.Instruction {
	if d.test == nil {
		return []bpf.Instruction{bpf.RetConstant{Val: uint32(d.act)}}
	}
	t := d.test
	// From the last branch backwards: "if none of these values, go past the
	// branch to what follows".
	code := apply(t.otherwise)
	for i := len(t.cases) - 1; i >= 0; i-- {
		then := apply(t.cases[i].then)
		code = append(matchAny(t.cases[i].values, then), code...)
	}
	load := []bpf.Instruction{bpf.LoadAbsolute{Off: uint32(offsetArgs + argSize*t.arg), Size: 4}}
	if t.mask != fullMask {
		load = append(load, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: t.mask})
	}
	return append(load, code...)
}

// matchAny runs then (which ends in a return) if the accumulator is one of the
// values, and falls behind it if not.
func matchAny(values []uint32, then []bpf.Instruction) []bpf.Instruction {
	code := jumpOver(bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: values[len(values)-1]}, then)
	for i := len(values) - 2; i >= 0; i-- {
		// Past the tests of the remaining values, which are everything
		// in code but then.
		rest := len(code) - len(then)
		code = append([]bpf.Instruction{
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: values[i], SkipTrue: uint8(rest)},
		}, code...)
	}
	return code
}

// jumpOver puts the condition before the block, so that the block is skipped
// when the condition holds. A conditional jump reaches 255 instructions; an
// unconditional one helps out beyond that.
func jumpOver(cond bpf.JumpIf, block []bpf.Instruction) []bpf.Instruction {
	if len(block) <= 255 {
		cond.SkipTrue = uint8(len(block))
		return append([]bpf.Instruction{cond}, block...)
	}
	cond.SkipFalse = 1
	head := []bpf.Instruction{cond, bpf.Jump{Skip: uint32(len(block))}}
	return append(head, block...)
}
