package local

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ends are those of a flow, as the socket in the sandbox has them.
type ends struct{ local, remote netip.AddrPort }

// socketInode finds the socket of a flow in the network namespace of a process.
// The kernel's list of TCP sockets takes it milliseconds to write, for it goes
// through a table of the whole machine, and is only read where there is time.
func socketInode(pid int, udp bool, flow ends, until time.Time, patient bool) string {
	if udp {
		return inodeInTables(pid, "udp", flow.local.Port(), until)
	}
	if inode := tcpInode(pid, flow, until); inode != "" || !patient {
		return inode
	}
	return inodeInTables(pid, "tcp", flow.local.Port(), until)
}

// Of linux/sock_diag.h and linux/inet_diag.h.
const (
	sockDiagByFamily = 20
	diagRequestSize  = 56 // struct inet_diag_req_v2
	diagAnswerSize   = 72 // struct inet_diag_msg
	diagInode        = 68 // where its idiag_inode is
)

// tcpInode asks the kernel for one connection (sock_diag(7)).
func tcpInode(pid int, flow ends, until time.Time) string {
	if !flow.local.IsValid() || !flow.remote.IsValid() {
		return ""
	}
	ns, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(ns)
	c, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, &netlink.Config{NetNS: ns})
	if err != nil {
		return ""
	}
	defer c.Close()
	if err := c.SetDeadline(until); err != nil {
		return ""
	}
	answers, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request}, Data: diagRequest(flow)})
	if err != nil || len(answers) != 1 || len(answers[0].Data) < diagAnswerSize {
		return ""
	}
	// A socket that no process has any more has the inode 0.
	inode := binary.NativeEndian.Uint32(answers[0].Data[diagInode:])
	if inode == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(inode), 10)
}

func diagRequest(flow ends) []byte {
	b := make([]byte, diagRequestSize)
	b[0], b[1] = unix.AF_INET, unix.IPPROTO_TCP
	if !flow.remote.Addr().Is4() {
		b[0] = unix.AF_INET6
	}
	binary.NativeEndian.PutUint32(b[4:], ^uint32(0)) // in all states
	binary.BigEndian.PutUint16(b[8:], flow.local.Port())
	binary.BigEndian.PutUint16(b[10:], flow.remote.Port())
	copy(b[12:28], flow.local.Addr().AsSlice())
	copy(b[28:44], flow.remote.Addr().AsSlice())
	binary.NativeEndian.PutUint64(b[48:], ^uint64(0)) // INET_DIAG_NOCOOKIE
	return b
}

// inodeInTables finds the socket with a local port in the lists of a process's
// network namespace (proc_pid_net(5)). Sockets of IPv6 may be used for IPv4.
func inodeInTables(pid int, table string, local uint16, until time.Time) string {
	for _, name := range []string{table, table + "6"} {
		if inode := inodeIn(fmt.Sprintf("/proc/%d/net/%s", pid, name), local, until); inode != "" {
			return inode
		}
	}
	return ""
}

func inodeIn(path string, local uint16, until time.Time) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	port := fmt.Sprintf(":%04X", local)
	lines := bufio.NewScanner(f)
	for n := range maxLookSockets {
		if n%64 == 63 && time.Now().After(until) || !lines.Scan() {
			return ""
		}
		if fields := strings.Fields(lines.Text()); len(fields) > 9 && strings.HasSuffix(fields[1], port) && fields[9] != "0" {
			return fields[9]
		}
	}
	return ""
}
