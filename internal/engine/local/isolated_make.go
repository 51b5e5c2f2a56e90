package local

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/google/uuid"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/engine/local/oci"
	"github.com/paddock-sandbox/paddock/internal/engine/local/rootfs"
	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/execd/isolated"
)

// maxBase bounds what a sandbox's execd says of its environment, in bytes.
const maxBase = 16 << 20

// makeIsolated makes a session with checked settings. If it fails, nothing is
// left.
func (e *Engine) makeIsolated(ctx context.Context, s *shell, settings *isolated.Settings) (*isolatedSession, error) {
	ctx, leave, err := s.isolation.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, e.opts.StartTimeout)
	defer cancel()
	is, err := e.newIsolated(s, settings)
	if err != nil {
		return nil, err
	}
	if err := e.buildIsolated(ctx, s, is); err != nil {
		if eerr := e.endIsolated(context.WithoutCancel(ctx), s, is); eerr != nil {
			e.log.Error("taking a half-made isolated session apart", "sandbox", s.id, "error", eerr)
		}
		return nil, fmt.Errorf("making an isolated session: %w", err)
	}
	s.isolation.put(is)
	e.watchIdle(s, is)
	return is, nil
}

// newIsolated records a session before anything of it is made.
func (e *Engine) newIsolated(s *shell, settings *isolated.Settings) (*isolatedSession, error) {
	now := time.Now().UTC()
	is := &isolatedSession{pidfd: -1, used: now}
	for range 8 {
		is.record = isolatedRecord{ID: uuid.NewString(), Token: newToken(), CreatedAt: now, LastRunAt: now, Settings: *settings}
		is.dir = filepath.Join(e.in.isolatedDir(s.id), is.record.short())
		if err := os.Mkdir(e.in.isolatedDir(s.id), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
		err := os.Mkdir(is.dir, 0o700)
		if errors.Is(err, os.ErrExist) {
			continue // another session's id begins alike
		}
		if err != nil {
			return nil, err
		}
		is.newTransport()
		return is, is.save()
	}
	return nil, errors.New("no short name for a session is free")
}

func newToken() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails on Linux (crypto/rand)
	return hex.EncodeToString(b[:])
}

func (is *isolatedSession) save() error {
	b, err := json.Marshal(&is.record)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(is.dir, "session.json"), b)
}

func (e *Engine) buildIsolated(ctx context.Context, s *shell, is *isolatedSession) error {
	base, err := e.isolatedBase(ctx, s)
	if err != nil {
		return err
	}
	if err := e.startIsolated(ctx, s, is); err != nil {
		return err
	}
	conn, err := dialExecd(ctx, is.socket())
	if err != nil {
		return err
	}
	defer conn.Close()
	// The OCI runtime returns before execd has been exec'ed.
	if err := conn.ping(ctx); err != nil {
		return fmt.Errorf("waiting for the session's execd: %w", err)
	}
	if err := e.showIsolated(ctx, s, is); err != nil {
		return err
	}
	set := &is.record.Settings
	env := set.Environment(base.Env)
	// The file of additional variables is the sandbox's, and would bring in what
	// was left out here.
	env["EXECD_ENVS"] = os.DevNull
	if set.UID != nil {
		delete(env, "HOME") // that of the user
	}
	_, err = conn.claim(ctx, &hostapi.Claim{
		ID: s.id, Token: is.record.Token, Env: env, User: base.User, Cwd: set.Dir(),
		Session: &hostapi.Session{ID: is.record.ID, UID: set.UID, GID: set.GID},
	})
	return err
}

// isolatedBase asks the sandbox's execd what its commands get.
func (e *Engine) isolatedBase(ctx context.Context, s *shell) (*hostapi.Base, error) {
	base := &hostapi.Base{}
	err := e.askExecd(ctx, e.in.socket(s.id), s.token, hostapi.BasePath, base)
	if err != nil {
		return nil, fmt.Errorf("asking for the sandbox's environment: %w", err)
	}
	return base, nil
}

// askExecd gets a JSON value from an execd.
func (e *Engine) askExecd(ctx context.Context, socket, token, path string, into any) error {
	conn, err := dialExecd(ctx, socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := conn.send(http.MethodGet, path, token, nil); err != nil {
		return ctxError(ctx, err)
	}
	return ctxError(ctx, readAnswer(conn.conn, into))
}

func readAnswer(c net.Conn, into any) error {
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(c, maxBase)), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("execd answered with status %d", resp.StatusCode)
	}
	return json.Unmarshal(body, into)
}

// isolatedBusy reports whether commands run in the session's background. One
// that does not answer has none.
func (e *Engine) isolatedBusy(is *isolatedSession) bool {
	if !is.alive() {
		return false
	}
	ctx, cancel := context.WithTimeout(e.ctx, adoptTimeout)
	defer cancel()
	var busy hostapi.Busy
	return e.askExecd(ctx, is.socket(), is.record.Token, hostapi.BusyPath, &busy) == nil && busy.Running > 0
}

// startIsolated runs the OCI runtime, in the sandbox's cgroup.
func (e *Engine) startIsolated(ctx context.Context, s *shell, is *isolatedSession) error {
	files, err := execdFiles(is.socket())
	defer closeFiles(files)
	if err != nil {
		return err
	}
	sh := e.ociShell(s)
	sh.ID = isolatedContainer(s.id, is.record.short())
	// Its port belongs to the sandbox's own execd, and there is no entrypoint to
	// log.
	sh.Args = []string{"--port", "-1", "--log-fd", "-1"}
	ns := "/proc/" + strconv.Itoa(s.pid) + "/ns/"
	sh.Join = map[specs.LinuxNamespaceType]string{specs.UserNamespace: ns + "user", specs.UTSNamespace: ns + "uts"}
	if *is.record.Settings.ShareNet {
		sh.Join[specs.NetworkNamespace] = ns + "net"
	}
	pid, err := e.runtime.Run(ctx, &oci.Start{Shell: sh, Bundle: is.dir, Files: files, Begin: s.group.StartHere})
	if err != nil {
		return err
	}
	// It is ours to end; nothing asks the runtime about it.
	if err := e.runtime.Forget(sh.ID); err != nil {
		return err
	}
	start, err := processStart(pid)
	if err == nil {
		is.pidfd, err = openProcess(pid, start)
	}
	if err != nil {
		return fmt.Errorf("the session's execd ended at once: %w", err)
	}
	is.record.PID, is.record.PIDStart = pid, start
	// As long as the sandbox's execd lives, its pid has meant it.
	if err := unix.PidfdSendSignal(s.pidfd, 0, nil, 0); err != nil {
		return errIsolatedEnding
	}
	return is.save()
}

// showIsolated gives the session its root.
func (e *Engine) showIsolated(ctx context.Context, s *shell, is *isolatedSession) error {
	var open []int
	defer func() {
		for _, fd := range open {
			unix.Close(fd)
		}
	}()
	ns := func(pid int, name string) (int, error) {
		fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/ns/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, fmt.Errorf("opening a namespace: %w", err)
		}
		open = append(open, fd)
		return fd, nil
	}
	v := &rootfs.View{Base: s.base}
	var err error
	if v.Source, err = ns(s.pid, "mnt"); err != nil {
		return err
	}
	if v.UserNS, err = ns(s.pid, "user"); err != nil {
		return err
	}
	if v.Target, err = ns(is.record.PID, "mnt"); err != nil {
		return err
	}
	for _, fd := range []int{s.pidfd, is.pidfd} {
		if err := unix.PidfdSendSignal(fd, 0, nil, 0); err != nil {
			return fmt.Errorf("a process ended at once: %w", err)
		}
	}
	for i, m := range is.record.Settings.Mounts() {
		vm := rootfs.ViewMount{Path: m.Path, From: m.From, Mode: viewMode(m.Mode), Upper: -1, UpperBytes: isolatedTmp}
		if vm.Mode == rootfs.Overlay && !m.Ephemeral {
			err := e.makeUpper(s, is, i, &vm)
			if vm.Upper >= 0 {
				open = append(open, vm.Upper)
			}
			if err != nil {
				return err
			}
		}
		v.Mounts = append(v.Mounts, vm)
	}
	return e.threads.Show(ctx, v)
}

func viewMode(mode string) rootfs.Mode {
	switch mode {
	case isolated.ModeRW:
		return rootfs.ReadWrite
	case isolated.ModeRO:
		return rootfs.ReadOnly
	case isolated.ModeOverlay:
		return rootfs.Overlay
	}
	return rootfs.Private
}

// endIsolated ends a session and removes what there is of it on the host. It is
// idempotent.
func (e *Engine) endIsolated(ctx context.Context, s *shell, is *isolatedSession) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	if is.pidfd >= 0 {
		// execd is PID 1 of the session's namespace: its end is the end of all.
		if err := endProcess(ctx, is.pidfd); err != nil {
			return fmt.Errorf("ending the session's execd: %w", err)
		}
	}
	is.drop()
	return errors.Join(e.dropUppers(s, is), os.RemoveAll(is.dir))
}
