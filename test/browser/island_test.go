package browser

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// island is a network namespace for the browser, with nothing in it but a
// loopback interface. Chromium gives up what it is loading whenever an address of
// the machine changes, and every sandbox that anybody makes brings one.
type island struct {
	namespace *os.File
	work      chan func()
	mu        sync.Mutex
	reached   map[int]bool
}

// newIsland makes the namespace. The thread that is in it ends with the process.
func newIsland() (*island, error) {
	i := &island{work: make(chan func()), reached: map[int]bool{}}
	made := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: nothing else may run in there
		made <- i.enter()
		for f := range i.work {
			f()
		}
	}()
	return i, <-made
}

func (i *island) enter() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("making a network namespace: %w", err)
	}
	var err error
	if i.namespace, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// command makes a command run in there.
func (i *island) command(cmd *exec.Cmd) {
	cmd.Args = append([]string{"nsenter", fmt.Sprintf("--net=/proc/%d/fd/%d", os.Getpid(), i.namespace.Fd()), "--", cmd.Path}, cmd.Args[1:]...)
	if path, err := exec.LookPath("nsenter"); err != nil {
		cmd.Err = err
	} else {
		cmd.Path = path
	}
	// Neither outlives the test.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}

// reach makes a loopback port of this machine the same port in there.
func (i *island) reach(t *testing.T, port int) {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.reached[port] {
		return
	}
	type listening struct {
		net.Listener
		err error
	}
	result := make(chan listening)
	at := fmt.Sprintf("127.0.0.1:%d", port)
	i.work <- func() {
		// A socket belongs to the namespace of the thread that makes it.
		l, err := net.Listen("tcp", at)
		result <- listening{l, err}
	}
	l := <-result
	if l.err != nil {
		t.Fatal(l.err)
	}
	i.reached[port] = true
	go carry(l, at)
}

// carry connects whoever connects to l, until the process ends.
func carry(l net.Listener, to string) {
	for {
		from, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		go func() {
			defer from.Close()
			var d net.Dialer
			c, err := d.DialContext(context.Background(), "tcp", to)
			if err != nil {
				return
			}
			defer c.Close()
			var both sync.WaitGroup
			for _, way := range [][2]*net.TCPConn{{from.(*net.TCPConn), c.(*net.TCPConn)}, {c.(*net.TCPConn), from.(*net.TCPConn)}} {
				both.Go(func() {
					if _, err := io.Copy(way[0], way[1]); err != nil {
						way[0].Close()
						way[1].Close()
					}
					_ = way[0].CloseWrite()
				})
			}
			both.Wait()
		}()
	}
}
