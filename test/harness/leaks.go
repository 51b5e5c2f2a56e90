package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
)

const (
	// settle bounds the wait for what is removed in the background.
	settle = 20 * time.Second
	// resetTimeout bounds the removal of an instance.
	resetTimeout = 60 * time.Second
)

// SandboxTraces lists what of sandboxes is on the host: processes, mounts,
// cgroups, interfaces and directories that carry the instance's name. Given
// ids, only traces of those count. A server that runs keeps shells ready, which
// count as sandboxes here.
func (s *Server) SandboxTraces(ids ...string) []string {
	var found []string
	found = append(found, s.processes(ids)...)
	found = append(found, s.mounts(ids)...)
	found = append(found, s.cgroups(ids)...)
	found = append(found, s.interfaces(ids)...)
	for _, dir := range []string{
		filepath.Join(s.RunDir, s.Instance(), "s"),
		filepath.Join(s.RunDir, s.Instance(), "runtime"),
		filepath.Join(s.DataDir, "sandboxes"),
		filepath.Join(s.DataDir, "trash"),
	} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if matches(e.Name(), ids) {
				found = append(found, "directory "+filepath.Join(dir, e.Name()))
			}
		}
	}
	return found
}

// InstanceTraces lists what of the whole instance is on the host. Its data
// directory does not count.
func (s *Server) InstanceTraces() []string {
	found := s.SandboxTraces()
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		if d.Name() == "paddock-"+s.Instance() {
			found = append(found, "cgroup "+path)
			return fs.SkipDir
		}
		return nil
	})
	if dir := filepath.Join(s.RunDir, s.Instance()); exists(dir) {
		found = append(found, "directory "+dir)
	}
	return append(found, tables(s.Slot())...)
}

// Slot is the number of the instance's share of the machine, or -1.
func (s *Server) Slot() int {
	b, err := os.ReadFile(filepath.Join(s.RunDir, s.Instance(), "slot"))
	if err != nil {
		return -1
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return -1
	}
	return n
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func matches(text string, ids []string) bool {
	if len(ids) == 0 {
		return true
	}
	for _, id := range ids {
		if strings.Contains(text, id) {
			return true
		}
	}
	return false
}

// processes finds processes by their cgroup, and helpers outside of it by their
// command line.
func (s *Server) processes(ids []string) []string {
	var found []string
	own := s.PID()
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(dir))
		if pid == own || pid == os.Getpid() {
			continue
		}
		cgroup, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		in := bytes.Contains(cgroup, []byte("/paddock-"+s.Instance()))
		named := bytes.Contains(cmdline, []byte(filepath.Join(s.RunDir, s.Instance()))) || bytes.Contains(cmdline, []byte(s.DataDir+"/"))
		if (in || named) && matches(string(cgroup)+string(cmdline), ids) {
			if state(dir) == "Z" {
				continue // its parent has it to collect, nothing runs any more
			}
			found = append(found, fmt.Sprintf("process %d %s", pid, bytes.ReplaceAll(bytes.Trim(cmdline, "\x00"), []byte{0}, []byte{' '})))
		}
	}
	return found
}

func state(procDir string) string {
	b, err := os.ReadFile(filepath.Join(procDir, "stat"))
	if err != nil {
		return "Z"
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	first, _, _ := strings.Cut(rest, " ")
	return first
}

func (s *Server) mounts(ids []string) []string {
	var found []string
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	for line := range strings.Lines(string(b)) {
		if !strings.Contains(line, filepath.Join(s.RunDir, s.Instance())) && !strings.Contains(line, s.DataDir+"/") {
			continue
		}
		if matches(line, ids) {
			found = append(found, "mount "+strings.TrimSpace(line))
		}
	}
	return found
}

func (s *Server) cgroups(ids []string) []string {
	var found []string
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		if strings.Contains(path, "/paddock-"+s.Instance()+"/") {
			if matches(path, ids) {
				found = append(found, "cgroup "+path)
			}
			return fs.SkipDir
		}
		return nil
	})
	return found
}

// interfaces finds veth pairs by their alias, which names the instance and the
// sandbox.
func (s *Server) interfaces(ids []string) []string {
	var found []string
	links, _ := filepath.Glob("/sys/class/net/*/ifalias")
	for _, link := range links {
		alias, _ := os.ReadFile(link)
		if strings.HasPrefix(string(alias), "paddock/"+s.Instance()+"/") && matches(string(alias), ids) {
			found = append(found, "interface "+filepath.Base(filepath.Dir(link))+" "+strings.TrimSpace(string(alias)))
		}
	}
	return found
}

// tables finds the packet filter table of an instance. Its name is made of the
// slot, which is known only while the instance's run directory exists; -1 finds
// nothing.
func tables(slot int) []string {
	if slot < 0 {
		return nil
	}
	conn, err := nftables.New()
	if err != nil {
		return []string{"packet filter: " + err.Error()}
	}
	list, err := conn.ListTables()
	if err != nil {
		return []string{"packet filter: " + err.Error()}
	}
	var found []string
	for _, t := range list {
		if t.Name == fmt.Sprintf("paddock-%x", slot) {
			found = append(found, "packet filter table "+t.Name)
		}
	}
	return found
}

// await asks until look finds nothing or time is up, and returns what it found
// last.
func await(limit time.Duration, look func() []string) []string {
	end := time.Now().Add(limit)
	for delay := 5 * time.Millisecond; ; delay = min(2*delay, 200*time.Millisecond) {
		found := look()
		if len(found) == 0 || time.Now().After(end) {
			return found
		}
		time.Sleep(delay)
	}
}

// AwaitNoTraces waits until nothing of the given sandboxes is on the host, and
// returns what stays.
func (s *Server) AwaitNoTraces(ids ...string) []string {
	return await(settle, func() []string { return s.SandboxTraces(ids...) })
}

// AwaitEnded is AwaitNoTraces for sandboxes that have ended and whose records and
// logs are kept.
func (s *Server) AwaitEnded(ids ...string) []string {
	return await(settle, func() []string { return without(s.SandboxTraces(ids...), s.DataDir+"/sandboxes/") })
}

// Close deletes every sandbox, stops the server and removes the instance. It
// returns what went wrong and what was left at the points where nothing may be:
// of sandboxes after the stop, of the instance after the reset. Whatever it
// finds it removes, so that the next test starts clean.
func (s *Server) Close(ctx context.Context) error {
	var errs []error
	if s.PID() == 0 {
		if err := s.Start(ctx); err != nil {
			errs = append(errs, fmt.Errorf("starting the server to clean up: %w", err))
		}
	}
	if s.PID() != 0 {
		errs = append(errs, s.deleteAll(ctx))
		errs = append(errs, s.Stop())
	}
	// What is in the trash directory when a server stops is removed at the next
	// start, or by the reset.
	for _, trace := range await(settle, func() []string { return without(s.SandboxTraces(), s.DataDir+"/trash/") }) {
		errs = append(errs, fmt.Errorf("left after every sandbox was deleted and the server stopped: %s", trace))
	}
	slot := s.Slot()
	errs = append(errs, s.Reset(ctx))
	for _, trace := range append(s.InstanceTraces(), tables(slot)...) {
		errs = append(errs, fmt.Errorf("left after the instance was reset: %s", trace))
	}
	return errors.Join(errs...)
}

func without(traces []string, part string) []string {
	return slices.DeleteFunc(traces, func(s string) bool { return strings.Contains(s, part) })
}

func (s *Server) deleteAll(ctx context.Context) error {
	var errs []error
	for sb, err := range s.listAll(ctx) {
		if err != nil {
			return fmt.Errorf("listing sandboxes to delete them: %w", err)
		}
		if err := s.Client.Delete(ctx, sb); err != nil && !isNotFound(err) {
			errs = append(errs, fmt.Errorf("deleting sandbox %s: %w", sb, err))
		}
	}
	return errors.Join(errs...)
}

// Reset removes everything of the instance from the host but its data directory.
func (s *Server) Reset(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, resetTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.o.Binary, "reset", "--data-dir", s.DataDir, "--run-dir", s.RunDir)
	cmd.Env = s.Environ()
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("paddock reset: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// SweepStale removes what test processes that were killed have left: the
// instances of run directories whose process is gone.
func SweepStale(ctx context.Context, binary string) {
	dirs, _ := filepath.Glob(runDirPrefix + "*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(strings.TrimPrefix(dir, runDirPrefix))
		if err != nil || syscall.Kill(pid, 0) == nil {
			continue
		}
		owners, _ := filepath.Glob(filepath.Join(dir, "data-*"))
		left := false
		for _, owner := range owners {
			data, err := os.Readlink(owner)
			if err != nil {
				continue
			}
			// An address that nobody listens on: the configuration wants one.
			s := &Server{o: Options{Binary: binary}, DataDir: data, RunDir: dir, addr: "127.0.0.1:1"}
			if err := s.Reset(ctx); err != nil {
				// Kept for another try: without its directories nobody would
				// find the sandboxes.
				fmt.Fprintf(os.Stderr, "%s of an earlier run can't be cleaned up: %v\n", data, err)
				left = true
				continue
			}
			if strings.Contains(data, "paddock-") {
				os.RemoveAll(data)
			}
		}
		if !left {
			os.RemoveAll(dir)
		}
	}
}

const runDirPrefix = "/run/paddock-test-"

// RunDir makes the run directory of this process and returns its path.
func RunDir() (string, error) {
	dir := runDirPrefix + strconv.Itoa(os.Getpid())
	return dir, os.MkdirAll(dir, 0o711)
}

// Remember notes a data directory, so that SweepStale finds it when this
// process is killed.
func Remember(runDir, dataDir string) error {
	sum := (&Server{DataDir: dataDir}).Instance()
	err := os.Symlink(dataDir, filepath.Join(runDir, "data-"+sum))
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// forget undoes Remember, and RunDir when nothing else is there.
func forget(runDir, dataDir string) {
	os.Remove(filepath.Join(runDir, "data-"+(&Server{DataDir: dataDir}).Instance()))
	os.Remove(runDir)
}
