package local

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/paddock-sandbox/paddock/internal/egress"
	"github.com/paddock-sandbox/paddock/internal/egress/enforce"
)

// looks counts the searches for processes within a second. Its zero value is
// ready.
type looks struct {
	mu     sync.Mutex
	second int64
	total  int
	by     map[string]int
	// asking is how many answers wait for one.
	asking int
}

// take reports whether there may be another search, for this sandbox.
func (l *looks) take(id string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if now := time.Now().Unix(); now != l.second {
		l.second, l.total, l.by = now, 0, map[string]int{}
	}
	if l.total >= lookRate || l.by[id] >= lookShare {
		return false
	}
	l.total++
	l.by[id]++
	return true
}

// begin reports whether an answer may wait for a search, which then ends with
// end.
func (l *looks) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asking >= lookAsking {
		return false
	}
	l.asking++
	return true
}

func (l *looks) end() {
	l.mu.Lock()
	l.asking--
	l.mu.Unlock()
}

// askerOf names the program of a sandbox that asks for a name that is refused.
// The answer waits for it, because with it the socket goes by which the program
// is found.
func (e *Engine) askerOf(id string, from egress.Asker) string {
	if !e.looks.begin() {
		return ""
	}
	defer e.looks.end()
	if !e.looks.take(id) {
		return ""
	}
	flow := ends{from.At, netip.AddrPortFrom(e.network.Gateway(), dnsPort)}
	return e.processOf(id, !from.Stream, flow, lookTime)
}

// deniedProcess names the program whose connection or packet was refused.
func (e *Engine) deniedProcess(d enforce.Denial) string {
	flow := ends{netip.AddrPortFrom(d.Address, d.Source), d.To}
	if !d.To.Addr().Is4() {
		flow.local = netip.AddrPortFrom(e.network.Addr6(d.Address), d.Source)
	}
	return e.processOf(d.Sandbox, d.Protocol == "udp", flow, lookLong)
}

// processOf names the process in the sandbox that has the socket of a flow:
// "curl[17]", with its number inside. It is empty when that is not to be found
// out: the socket may be closed already, and a search takes not much longer than
// given. What it says comes from the sandbox.
func (e *Engine) processOf(id string, udp bool, flow ends, longest time.Duration) string {
	until := time.Now().Add(longest)
	s, err := e.find(id)
	if err != nil || s.group == nil {
		return ""
	}
	inode := socketInode(s.pid, udp, flow, until, longest > lookTime)
	if inode == "" {
		return ""
	}
	pids, err := s.group.Procs()
	if err != nil {
		return ""
	}
	// First the last one, which tends to go on trying, and then the newest: what is
	// refused something has often just been started.
	slices.SortFunc(pids, func(a, b int) int { return b - a })
	if last := int(s.denied.Load()); slices.Contains(pids, last) {
		pids = append([]int{last}, pids...)
	}
	for _, pid := range pids[:min(len(pids), maxLookProcs)] {
		if time.Now().After(until) {
			return ""
		}
		if hasSocket(pid, inode, until) {
			s.denied.Store(int64(pid))
			return processName(pid)
		}
	}
	return ""
}

func hasSocket(pid int, inode string, until time.Time) bool {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	d, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer d.Close()
	names, err := d.Readdirnames(maxLookFiles)
	if err != nil && err != io.EOF {
		return false
	}
	want := "socket:[" + inode + "]"
	for n, name := range names {
		if n%64 == 63 && time.Now().After(until) {
			return false
		}
		if to, err := os.Readlink(dir + "/" + name); err == nil && to == want {
			return true
		}
	}
	return false
}

// processName reads a process's name and its number in the innermost namespace.
func processName(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return ""
	}
	var name, inside string
	for l := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(l, ":")
		switch fields := strings.Fields(value); {
		case key == "Name":
			name = strings.TrimSpace(value)
		case key == "NSpid" && len(fields) > 0:
			inside = fields[len(fields)-1]
		}
	}
	return fmt.Sprintf("%s[%s]", printable(name), inside)
}

// printable replaces what would do something to a terminal or a log.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
