package test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/test/harness"
)

// hostPIDs are the processes of a sandbox as the host sees them.
func hostPIDs(t *testing.T, id string) []int {
	t.Helper()
	var pids []int
	dirs, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, f := range dirs {
		b, _ := os.ReadFile(f)
		if strings.Contains(string(b), id) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			pids = append(pids, pid)
		}
	}
	if len(pids) == 0 {
		t.Fatalf("no process of sandbox %s is on the host", id)
	}
	return pids
}

func TestRootInsideIsNobodyOutside(t *testing.T) {
	s := sharedServer(t)
	sb, other := sleeper(t, s), sleeper(t, s)
	if got := s.Must(t, sb.ID, "id -u"); got != "0" {
		t.Fatalf("the user inside is %s", got)
	}
	bases := map[string]bool{}
	for _, id := range []string{sb.ID, other.ID} {
		for _, pid := range hostPIDs(t, id) {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			if err != nil {
				continue // it has just ended
			}
			fields := statusFields(string(status))
			uid, _ := strconv.Atoi(strings.Fields(fields["Uid"])[0])
			if strings.HasPrefix(fields["State"], "Z") {
				continue
			}
			if uid < 1<<16 {
				t.Errorf("process %d (%s, %s) of %s is user %d on the host", pid, fields["Name"], fields["State"], id, uid)
			}
			bases[strconv.Itoa(uid>>16)] = true
			if fields["NoNewPrivs"] != "1" {
				t.Errorf("process %d may gain privileges", pid)
			}
			if fields["Seccomp"] != "2" {
				t.Errorf("process %d has no system call filter", pid)
			}
		}
	}
	if len(bases) < 2 {
		t.Errorf("two sandboxes share a range of user ids: %v", bases)
	}
}

func statusFields(status string) map[string]string {
	fields := map[string]string{}
	for line := range strings.Lines(status) {
		k, v, _ := strings.Cut(line, ":")
		fields[k] = strings.TrimSpace(v)
	}
	return fields
}

func TestNetworkIsClosed(t *testing.T) {
	s := withStarter(t)
	sb := s.Create(t, client.CreateRequest{Image: starterImage, Entrypoint: forever})
	victim := s.Create(t, client.CreateRequest{Image: starterImage, Entrypoint: []string{"python3", "-m", "http.server", "8000", "--bind", "0.0.0.0"}})
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	hostPort := l.Addr().(*net.TCPAddr).Port
	_, apiPort, _ := net.SplitHostPort(strings.TrimPrefix(s.URL, "http://"))
	own := s.Must(t, sb.ID, ownAddress)
	victimIP := s.Must(t, victim.ID, ownAddress)
	if own == victimIP {
		t.Fatalf("two sandboxes have the address %s", own)
	}
	gateway := gatewayOf(t, s, sb.ID)
	targets := []string{
		victimIP + " 8000", victimIP + " 44772", victimIP + " 22",
		"169.254.169.254 80", "169.254.1.1 80",
		gateway + " " + strconv.Itoa(hostPort), gateway + " " + apiPort, gateway + " 22",
	}
	for _, ip := range hostAddresses(t) {
		targets = append(targets, fmt.Sprintf("%s %d", ip, hostPort), ip+" "+apiPort)
	}
	probe := `
import socket, sys, concurrent.futures
def probe(line):
    host, port = line.split()
    s = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    s.settimeout(1.5)
    try:
        s.connect((host, int(port)))
        return line
    except OSError:
        return None
    finally:
        s.close()
lines = sys.argv[1:]
with concurrent.futures.ThreadPoolExecutor(32) as pool:
    for r in pool.map(probe, lines):
        if r: print("REACHED", r)
print("probed", len(lines))
`
	out, errOut, code := s.Run(t, sb.ID, client.Command{Argv: append([]string{"python3", "-c", probe}, targets...)})
	if code != 0 || !strings.Contains(out, fmt.Sprintf("probed %d", len(targets))) {
		t.Fatalf("the probe failed: %s%s", out, errOut)
	}
	if strings.Contains(out, "REACHED") {
		t.Errorf("a sandbox reaches what it must not:\n%s", out)
	}
	// The one service that there is: names.
	got := s.Must(t, sb.ID, `python3 -c "import socket; print(socket.gethostbyname('known.paddock.test'))"`)
	if got != knownAddress {
		t.Errorf("a name resolved to %q, want %s", got, knownAddress)
	}
}

// gatewayOf is the address of the resolver that the sandbox was given.
func gatewayOf(t *testing.T, s *harness.Server, id string) string {
	t.Helper()
	for line := range strings.Lines(s.Must(t, id, "cat /etc/resolv.conf")) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "nameserver" {
			return f[1]
		}
	}
	t.Fatal("the sandbox has no resolver")
	return ""
}

func hostAddresses(t *testing.T) []string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if ok && !n.IP.IsLoopback() && !n.IP.IsLinkLocalUnicast() && len(out) < 8 {
			out = append(out, n.IP.String())
		}
	}
	return out
}

// Another process on the host cannot use a sandbox's execd: its port answers
// only to the token, which only the server knows.
func TestExecdNeedsItsToken(t *testing.T) {
	s := withStarter(t)
	sb := s.Create(t, client.CreateRequest{Image: starterImage, Entrypoint: forever})
	code := s.Must(t, sb.ID, `python3 - <<'END'
import urllib.request, urllib.error
for path in ("/ping", "/command", "/metrics", "/paddock/v1/claim", "/files/info"):
    try:
        r = urllib.request.urlopen("http://127.0.0.1:44772" + path)
        print("OPEN", path, r.status)
    except urllib.error.HTTPError as e:
        if e.code not in (401, 404): print("ODD", path, e.code)
print("done")
END`)
	if code != "done" {
		t.Errorf("execd answers without a token: %s", code)
	}
	// Other processes on the host reach the sandbox's ports, and execd's refuses
	// them.
	ip := s.Must(t, sb.ID, ownAddress)
	for _, path := range []string{"/ping", "/command", "/paddock/v1/exit", "/paddock/v1/dial?port=22"} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(ip, "44772")+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("OPEN-SANDBOX-API-KEY", s.Key)
		resp, err := (&http.Transport{Proxy: nil, DisableKeepAlives: true}).RoundTrip(req)
		if err != nil {
			t.Fatalf("the host does not reach execd at %s: %v", ip, err)
		}
		resp.Body.Close()
		cancel()
		if resp.StatusCode != http.StatusUnauthorized && resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s without a token: %d", path, resp.StatusCode)
		}
	}
}

// ownAddress prints the address of a sandbox. No packet is sent.
const ownAddress = `python3 -c "import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('198.51.100.1', 9)); print(s.getsockname()[0])"`

func TestKernelSurfaceIsClosed(t *testing.T) {
	s := withStarter(t)
	sb := s.Create(t, client.CreateRequest{Image: starterImage, Entrypoint: forever})
	cases := []struct{ name, line string }{
		{"mount a tmpfs", "mount -t tmpfs none /mnt"},
		{"mount proc", "mount -t proc proc /mnt"},
		{"bind mount", "mount --bind / /mnt"},
		{"unmount /proc/kcore's mask", "umount /proc/kcore"},
		{"new user namespace", "unshare -U true"},
		{"new mount namespace", "unshare -m true"},
		{"enter PID 1's namespaces", "nsenter -t 1 -m true"},
		{"write a sysctl of the host", "echo 1 > /proc/sys/kernel/panic"},
		{"write sysrq", "echo h > /proc/sysrq-trigger"},
		{"read kcore", "head -c 1 /proc/kcore | grep ."},
		{"read keys", "cat /proc/keys | grep ."},
		{"read kmsg", "head -c 1 /dev/kmsg"},
		{"write to sysfs", "touch /sys/kernel/x"},
		{"write to a cgroup", "mkdir /sys/fs/cgroup/x"},
		{"load a module", "python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None).syscall(313,0,b\"\",0)!=0)'"},
		{"bpf", "python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None).syscall(321,0,0,0)<0)'"},
		{"keyctl", "python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None).syscall(250,0,-4,0)<0)'"},
		{"io_uring", "python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None).syscall(425,1,0)<0)'"},
		{"userfaultfd", "python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None).syscall(323,0)<0)'"},
		{"perf_event_open", "python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None).syscall(298,0,0,-1,-1,0)<0)'"},
		{"open_by_handle_at", "python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None).syscall(304,-100,0,0)<0)'"},
		{"raw socket of a packet family", "python3 -c 'import socket; socket.socket(17, socket.SOCK_RAW)'"},
		{"vsock", "python3 -c 'import socket; socket.socket(40, socket.SOCK_STREAM)'"},
		{"crypto socket", "python3 -c 'import socket; socket.socket(38, 5)'"},
		{"kill PID 1", "kill -9 1 && sleep 0.2 && ! kill -0 1"},
		{"trace PID 1", "python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None).ptrace(16,1,0,0)!=0)'"},
		{"read PID 1's memory", "head -c 1 /proc/1/mem"},
		{"read PID 1's environment", "cat /proc/1/environ | grep -a ."},
		{"see PID 1's files", "readlink /proc/1/fd/0"},
		{"make a block device that works", "mknod /tmp/sda b 8 0 && head -c 1 /tmp/sda"},
		{"make a memory device that works", "mknod /tmp/mem c 1 1 && head -c 1 /tmp/mem"},
		{"reboot", "python3 -c 'import ctypes,sys; sys.exit(ctypes.CDLL(None).reboot(0x89abcdef)!=0)'"},
		{"set the clock", "date -s 2001-01-01"},
		{"change the network", "python3 -c 'import socket,fcntl,struct; s=socket.socket(); fcntl.ioctl(s,0x8914,struct.pack(\"16sH14s\",b\"eth0\",0,b\"\"))'"},
	}
	for _, c := range cases {
		if out, _, code := s.Shell(t, sb.ID, "("+c.line+") 2>/dev/null"); code == 0 {
			t.Errorf("%s is possible: %q", c.name, out)
		}
	}
	if got := s.Must(t, sb.ID, "echo alive"); got != "alive" {
		t.Errorf("the sandbox says %q after all that", got)
	}
	// What programs do need.
	needed := []struct{ name, line string }{
		{"threads", "python3 -c 'import threading; [threading.Thread(target=int).start() for _ in range(50)]'"},
		{"the devices of a container", "head -c 1 /dev/zero >/dev/null && echo x > /dev/null && head -c 1 /dev/urandom >/dev/null && test -c /dev/tty"},
		{"shared memory", "python3 -c 'from multiprocessing import shared_memory as m; s=m.SharedMemory(create=True,size=9); s.close(); s.unlink()'"},
		{"a terminal", "python3 -c 'import pty,os; pty.openpty()'"},
		{"changing users", "python3 -c 'import os; os.setgroups([]); os.setgid(65534); os.setuid(65534); assert os.getuid()==65534'"},
		{"owning files", "touch /tmp/f && chown 1000:1000 /tmp/f && chmod 4755 /tmp/f"},
		{"symbolic links and fifos", "ln -s x /tmp/l && mkfifo /tmp/p"},
		{"node", "node -e 'console.log(1)'"},
		{"git", "cd /tmp && git init -q r && cd r && git -c user.name=a -c user.email=b commit -q --allow-empty -m x"},
		{"ping to itself", "python3 -c 'import socket; l=socket.socket(); l.bind((\"127.0.0.1\",0)); l.listen(); socket.create_connection(l.getsockname())'"},
		{"a server on IPv6 loopback, or a plain refusal", "python3 -c 'import socket; socket.socket(socket.AF_INET6)'"},
	}
	for _, c := range needed {
		if out, errOut, code := s.Shell(t, sb.ID, c.line); code != 0 {
			t.Errorf("%s does not work: %s%s", c.name, out, errOut)
		}
	}
	if n := s.Must(t, sb.ID, "ls /proc/self/fd | wc -l"); number(t, n) > 5 {
		t.Errorf("a command inherits descriptors: %s", s.Must(t, sb.ID, "ls -l /proc/self/fd"))
	}
}

// Nothing of the host shows inside: neither its names nor its paths.
func TestHostDoesNotShow(t *testing.T) {
	s := withStarter(t)
	sb := s.Create(t, client.CreateRequest{Image: starterImage, Entrypoint: forever})
	host, _ := os.Hostname()
	if got := s.Must(t, sb.ID, "hostname || cat /proc/sys/kernel/hostname"); got == host {
		t.Errorf("the sandbox has the host's name %q", got)
	}
	if got := s.Must(t, sb.ID, "ps -e --no-headers | wc -l"); number(t, got) > 10 {
		t.Errorf("it sees %s processes", got)
	}
	env := s.Must(t, sb.ID, "env")
	for _, secret := range []string{s.Key, "PADDOCK_", "EXECD_ACCESS_TOKEN"} {
		if strings.Contains(env, secret) {
			t.Errorf("the environment shows %q", secret)
		}
	}
	if got := s.Must(t, sb.ID, "cat /proc/self/cgroup"); strings.Contains(got, s.Instance()) {
		t.Logf("/proc/self/cgroup names the instance: %s", got)
	}
}
