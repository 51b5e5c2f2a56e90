package local

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/paddock-sandbox/paddock/internal/engine/enginetest"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func TestConformance(t *testing.T) {
	enginetest.Run(t, func(t *testing.T) enginetest.Host { return conformingHost(t, newHost(t)) })
}

// What a runtime has a part in: starting, failing, freezing, ending, and what a
// later server finds.
func TestConformanceWithRunc(t *testing.T) {
	enginetest.Run(t, func(t *testing.T) enginetest.Host { return conformingHost(t, runcHost(t)) },
		"CreateAndExec", "ParallelCreates", "FailedCreate", "CanceledCreate", "PauseAndResume",
		"StopAndRemove", "Exits", "OutOfMemory", "Usage", "Recover", "RecreateAfterRestart")
}

func conformingHost(t *testing.T, h *host) enginetest.Host {
	return enginetest.Host{
		Image: testImage,
		Open: func(t *testing.T) sandbox.Engine {
			e, err := New(context.Background(), h.opts)
			if err != nil {
				t.Fatal(err)
			}
			return e
		},
		Leftovers: func(t *testing.T, id string) []string { return lasting(t, h, id) },
	}
}

// lasting names what the host keeps of a sandbox. The kernel removes a network
// namespace, and init reaps the dead, in their own time.
func lasting(t *testing.T, h *host, id string) []string {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		left := leftovers(t, h, id)
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// leftovers names what the host has of a sandbox now.
func leftovers(t *testing.T, h *host, id string) []string {
	t.Helper()
	var found []string
	for _, pattern := range []string{
		"/sys/fs/cgroup/*/*" + id, "/sys/fs/cgroup/*/*/*" + id, "/sys/fs/cgroup/*/*/*/*" + id,
		h.opts.RunDir + "/*/s/" + id, h.opts.RunDir + "/*/runtime/*" + id,
		h.opts.DataDir + "/sandboxes/" + id + "/upper", h.opts.DataDir + "/sandboxes/" + id + "/work",
	} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, paths...)
	}
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasSuffix(l.Attrs().Alias, "/"+id) {
			found = append(found, "interface "+l.Attrs().Name)
		}
	}
	for _, pattern := range []string{"/proc/[0-9]*/cgroup", "/proc/[0-9]*/cmdline", "/proc/self/mountinfo"} {
		files, _ := filepath.Glob(pattern)
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err == nil && bytes.Contains(b, []byte(id)) && !dead(filepath.Dir(f)) {
				found = append(found, f)
			}
		}
	}
	return found
}

// dead reports whether a process of /proc waits only for init to reap it.
func dead(dir string) bool {
	b, err := os.ReadFile(filepath.Join(dir, "stat"))
	return err != nil || bytes.Contains(b[bytes.LastIndexByte(b, ')'):], []byte(") Z "))
}
