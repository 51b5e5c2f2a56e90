// Command execd is the daemon that is PID 1 in every sandbox. As PID 1 it takes
// its sockets from the engine (package hostapi); started by hand it serves the
// machine that it runs on:
//
//	execd --port 44772 --access-token SECRET
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/execd"
	"github.com/paddock-sandbox/paddock/internal/execd/account"
	"github.com/paddock-sandbox/paddock/internal/execd/confine"
	"github.com/paddock-sandbox/paddock/internal/execd/entrylog"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
)

const (
	defaultPort = 44772
	// Memory matters more than speed: a host runs thousands of execds. The
	// collector lets the heap grow by half between its runs, and works harder
	// when execd as a whole uses this much.
	gcPercent   = 50
	memoryLimit = 96 << 20
	// threads that run Go code at one time.
	maxProcs = 2
)

type options struct {
	port     int
	listenFD int
	logFD    int
	filterFD int
	engineFD int
	token    string
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "execd:", err)
		os.Exit(1)
	}
}

func run() error {
	pid1 := os.Getpid() == 1
	opts, err := parse(os.Args[1:], pid1)
	if err != nil {
		return err
	}
	if runtime.GOMAXPROCS(0) > maxProcs {
		runtime.GOMAXPROCS(maxProcs)
	}
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	if err := seal(); err != nil {
		return err
	}
	if err := confineTo(opts.filterFD); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	watchSignals(pid1, stop)
	cfg, err := listen(opts)
	if err != nil {
		return err
	}
	if opts.engineFD >= 0 {
		if err := meetEngine(cfg, opts.engineFD); err != nil {
			return err
		}
	}
	if opts.logFD >= 0 {
		if cfg.Log, err = openLog(opts.logFD); err != nil {
			return err
		}
	}
	cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	cfg.Procs = process.NewTable()
	go cfg.Procs.Run(ctx)
	server := execd.New(*cfg)
	if cfg.Host == nil {
		g, err := ownGuest()
		if err != nil {
			return err
		}
		server.ClaimStandalone(g, opts.token)
	}
	return server.Serve(ctx)
}

func parse(args []string, pid1 bool) (*options, error) {
	o := &options{listenFD: -1, logFD: -1, filterFD: -1, engineFD: -1}
	// As PID 1 the engine's descriptors are expected, unless told otherwise.
	if pid1 {
		o.listenFD, o.logFD = hostapi.ListenerFD, hostapi.LogFD
	}
	f := flag.NewFlagSet("execd", flag.ContinueOnError)
	f.IntVar(&o.port, "port", defaultPort, "TCP `port` of the API on all IPv4 addresses; -1 for none")
	f.IntVar(&o.listenFD, "listen-fd", o.listenFD, "`descriptor` of the engine's listening Unix socket; -1 for none, which opens the API at once")
	f.IntVar(&o.logFD, "log-fd", o.logFD, "first `descriptor` of the two segments of the entrypoint's log; -1 for none")
	f.IntVar(&o.filterFD, "filter-fd", o.filterFD, "`descriptor` of a compiled system call filter to run under; -1 when the runtime has installed it")
	f.IntVar(&o.engineFD, "engine-fd", o.engineFD, "first of two `descriptors` of the engine's where it has no Unix socket here and comes to --port instead: a pipe with the key that a claim must carry, and one that is told when the API is served; -1 for none")
	f.StringVar(&o.token, "access-token", os.Getenv("EXECD_ACCESS_TOKEN"), "`token` that every request must carry, without an engine; empty for none (env EXECD_ACCESS_TOKEN)")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.port < -1 || o.port > 65535 {
		return nil, fmt.Errorf("--port is %d; it must be from 0 to 65535, or -1 for none", o.port)
	}
	return o, nil
}

// seal keeps the sandbox's processes out of execd: its memory, environment and
// descriptors can't be opened, and none of its descriptors is inherited.
func seal() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("making execd not dumpable: %w", err)
	}
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return closeOnExecOneByOne()
	}
	return nil
}

// confineTo puts execd, and so all that it will start, under the filter in a
// file.
func confineTo(fd int) error {
	if fd < 0 {
		return nil
	}
	f := os.NewFile(uintptr(fd), "filter")
	defer f.Close()
	if err := confine.InstallFrom(f); err != nil {
		return fmt.Errorf("descriptor %d: %w", fd, err)
	}
	return nil
}

// closeOnExecOneByOne is for kernels and filters without close_range(2).
func closeOnExecOneByOne() error {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("finding inherited descriptors: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("finding inherited descriptors: %w", err)
	}
	for _, name := range names {
		if fd, err := strconv.Atoi(name); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}

// watchSignals takes every signal that would end the program. Root in the
// sandbox may send them to PID 1, which must not die of them: only the engine
// ends a sandbox. Ignoring them instead would be inherited by commands. SIGURG
// is the Go runtime's own, SIGCHLD is the process table's.
func watchSignals(pid1 bool, stop context.CancelFunc) {
	all := make(chan os.Signal, 16)
	for n := syscall.Signal(1); n <= 31; n++ {
		switch n {
		case syscall.SIGKILL, syscall.SIGSTOP, syscall.SIGCHLD, syscall.SIGURG, syscall.SIGPROF:
		default:
			signal.Notify(all, n)
		}
	}
	go func() {
		for s := range all {
			if !pid1 && (s == syscall.SIGTERM || s == syscall.SIGINT) {
				stop()
			}
		}
	}()
}

// listen takes over the engine's listener and opens the TCP one. Without an
// engine the latter is needed; with one the sandbox also works without.
func listen(o *options) (*execd.Config, error) {
	cfg := &execd.Config{}
	if o.listenFD >= 0 {
		f := os.NewFile(uintptr(o.listenFD), "listener")
		l, err := net.FileListener(f)
		if err != nil {
			return nil, fmt.Errorf("descriptor %d is not a listening socket: %w", o.listenFD, err)
		}
		f.Close()
		if u, ok := l.(*net.UnixListener); ok {
			// The engine made the socket's file, and removes it.
			u.SetUnlinkOnClose(false)
		}
		cfg.Host = l
	}
	if o.port >= 0 {
		l, err := net.Listen("tcp4", fmt.Sprintf("0.0.0.0:%d", o.port))
		if err != nil && cfg.Host == nil {
			return nil, err
		}
		if err == nil {
			cfg.TCP = l
		}
	}
	if cfg.Host == nil && cfg.TCP == nil {
		return nil, errors.New("nothing to listen on: give --port or --listen-fd")
	}
	if cfg.Host == nil && o.port == 0 {
		fmt.Println("listening on", cfg.TCP.Addr())
	}
	return cfg, nil
}

// maxKey bounds the key of a claim, in bytes.
const maxKey = 256

// meetEngine makes the TCP listener the engine's, to which it alone has the key
// until the claim, and the token after it.
func meetEngine(cfg *execd.Config, fd int) error {
	if cfg.Host != nil || cfg.TCP == nil {
		return errors.New("--engine-fd needs a --port that is free, and no --listen-fd")
	}
	f := os.NewFile(uintptr(fd), "key")
	key, err := io.ReadAll(io.LimitReader(f, maxKey))
	f.Close()
	if err != nil {
		return fmt.Errorf("reading the key from descriptor %d: %w", fd, err)
	}
	if len(key) == 0 {
		return fmt.Errorf("descriptor %d has no key", fd)
	}
	cfg.Host, cfg.TCP, cfg.Key = cfg.TCP, nil, string(key)
	// Connections wait in the listener until they are served.
	ready := os.NewFile(uintptr(fd+1), "ready")
	if _, err := ready.Write([]byte(hostapi.Ready)); err != nil {
		return fmt.Errorf("telling the engine on descriptor %d: %w", fd+1, err)
	}
	return ready.Close()
}

func openLog(fd int) (*entrylog.Writer, error) {
	a := os.NewFile(uintptr(fd), "log-0")
	b := os.NewFile(uintptr(fd+1), "log-1")
	w, err := entrylog.NewWriter(a, b, 0)
	if err != nil {
		return nil, fmt.Errorf("descriptors %d and %d: %w", fd, fd+1, err)
	}
	return w, nil
}

// ownGuest is the environment that execd was started in.
func ownGuest() (*guest.Guest, error) {
	env := make(map[string]string)
	for _, kv := range os.Environ() {
		if k, v, ok := strings.Cut(kv, "="); ok && k != "" && k != "EXECD_ACCESS_TOKEN" {
			env[k] = v
		}
	}
	cwd, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	id, err := account.System.ByUID(uint32(os.Geteuid()), nil)
	if err != nil {
		return nil, err
	}
	return guest.New(env, id, cwd), nil
}
