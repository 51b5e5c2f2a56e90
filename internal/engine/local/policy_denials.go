package local

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/internal/egress/enforce"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

const (
	// denialBuffer is how many denials may wait for the Manager.
	denialBuffer = 256
	// Looking for the process of a connection goes through at most so many
	// processes, descriptors of each, and lines of the list of sockets; and
	// happens so many times a second for all sandboxes.
	maxLookProcs   = 1024
	maxLookFiles   = 512
	maxLookSockets = 8192
	lookRate       = 20
)

// Denials delivers what policies refused.
func (e *Engine) Denials() <-chan sandbox.Denial { return e.denials }

// reportDenials hands on what policies refused until the engine closes. When
// nobody takes them, some are lost.
func (e *Engine) reportDenials() {
	var l look
	for {
		select {
		case <-e.ctx.Done():
			return
		case d := <-e.enforcer.Denials():
			out := sandbox.Denial{ID: d.Sandbox, At: time.Now(), Protocol: d.Protocol, Name: d.Name, To: d.To,
				Rule: d.Rule, Target: d.Target, Reason: d.Reason, Audit: d.Audit}
			if l.take() {
				out.Process = e.processOf(d)
			}
			select {
			case e.denials <- out:
			default:
			}
		}
	}
}

// look counts the searches for processes within a second.
type look struct {
	second int64
	count  int
}

func (l *look) take() bool {
	if now := time.Now().Unix(); now != l.second {
		l.second, l.count = now, 0
	}
	l.count++
	return l.count <= lookRate
}

// processOf names the process in the sandbox to which a connection belongs:
// "curl[17]", with its number inside. It is empty when that is not to be found
// out: the connection may have ended. What it says comes from the sandbox.
func (e *Engine) processOf(d enforce.Denial) string {
	if d.Source == 0 {
		return ""
	}
	s, err := e.find(d.Sandbox)
	if err != nil || s.group == nil {
		return ""
	}
	inode := socketInode(s.pid, d.Protocol, d.Source)
	if inode == "" {
		return ""
	}
	pids, err := s.group.Procs()
	if err != nil {
		return ""
	}
	for _, pid := range pids[:min(len(pids), maxLookProcs)] {
		if hasSocket(pid, inode) {
			return processName(pid)
		}
	}
	return ""
}

// socketInode finds the socket with that local port in the network namespace of a
// process (proc_pid_net(5)). Sockets of IPv6 may be used for IPv4.
func socketInode(pid int, protocol string, local uint16) string {
	table := "tcp"
	if protocol == "udp" {
		table = "udp"
	}
	for _, name := range []string{table, table + "6"} {
		if inode := inodeIn(fmt.Sprintf("/proc/%d/net/%s", pid, name), local); inode != "" {
			return inode
		}
	}
	return ""
}

func inodeIn(path string, local uint16) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	port := fmt.Sprintf(":%04X", local)
	lines := bufio.NewScanner(f)
	for range maxLookSockets {
		if !lines.Scan() {
			return ""
		}
		if fields := strings.Fields(lines.Text()); len(fields) > 9 && strings.HasSuffix(fields[1], port) {
			return fields[9]
		}
	}
	return ""
}

func hasSocket(pid int, inode string) bool {
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
	for _, n := range names {
		if to, err := os.Readlink(dir + "/" + n); err == nil && to == "socket:["+inode+"]" {
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
