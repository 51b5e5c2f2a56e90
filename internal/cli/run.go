package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddock-sandbox/paddock/client"
)

const (
	// runLease is the lifetime of a sandbox that run made and keeps renewing:
	// if this process dies without a word, the sandbox goes soon after.
	runLease      = 5 * time.Minute
	runLeaseRenew = time.Minute
	// endWait bounds the wait for the record of an entrypoint whose output has
	// already ended.
	endWait = 15 * time.Second
)

type runFlags struct {
	createFlags
	execFlags execFlags
	pull      string
	rm        bool
}

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] IMAGE [--] [COMMAND [ARG...]]",
		Short: "Run a command in a fresh sandbox and remove it",
		Long: `Run a command in a fresh sandbox, stream its output, and remove the sandbox. The
image is pulled when it is not here. The exit code is that of the command; 125
means that paddock failed, 126 and 127 that the command could not be run.

Without a command the image's own entrypoint runs and its output is shown. When
standard input is not a terminal the command can read it, if the image has sh; an
image's own entrypoint has no input.

Without a server on this machine, run does the work of one while it lasts.

` + outcomeHelp + `
What an image's own entrypoint printed is all in "stdout".`,
		Example: `  paddock run python:3.11 -- python3 -c 'print(6*7)'
  paddock run -e NAME=world --memory 256Mi debian -- sh -c 'echo hello $NAME'
  echo 'print(6*7)' | paddock run python:3.11 -- python3 -
  paddock run -o json python:3.11 -- python3 -c 'print(6*7)'`,
		Args: args(1, -1, "IMAGE [COMMAND [ARG...]]"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return paddockFailed(a.run(cmd, &f, args[0], withoutDashes(args[1:])))
		},
	}
	interspersedOff(cmd.Flags())
	f.createFlags.register(cmd)
	fs := cmd.Flags()
	fs.StringVarP(&f.execFlags.workdir, "workdir", "w", "", "working directory of the command")
	fs.StringVarP(&f.execFlags.user, "user", "u", "", "user of the command: NAME, UID or UID:GID")
	fs.BoolVar(&f.execFlags.noStdin, "no-stdin", false, "do not pass standard input on")
	fs.StringVar(&f.pull, "pull", "missing", "missing, or always to ask the registry for a newer image")
	fs.BoolVar(&f.rm, "rm", true, "remove the sandbox at the end")
	return cmd
}

func (a *app) run(cmd *cobra.Command, f *runFlags, image string, argv []string) (err error) {
	if f.pull != "missing" && f.pull != "always" {
		return usagef(cmd, "--pull %q: want missing or always", f.pull)
	}
	req, err := f.request(cmd, a, image)
	if err != nil {
		return err
	}
	if len(argv) > 0 && strings.HasPrefix(argv[0], "-") {
		return usagef(cmd, "the command begins with the flag %q: flags of run stand before the image", argv[0])
	}
	ctx := cmd.Context()
	conn, err := a.connectOrServe(ctx, "run")
	if err != nil {
		return err
	}
	defer func() { err = also(err, conn.close()) }()
	if err := a.ensureImage(ctx, conn, f, &req); err != nil {
		return err
	}
	leased := f.rm && f.timeout == 0
	if leased {
		req.Timeout = runLease
	}
	req.Wait = createWait
	if len(argv) > 0 {
		req.Entrypoint = keepAlive
	}
	sb, err := conn.Create(ctx, req)
	if len(argv) > 0 && lacksKeepAlive(err) {
		// An image without tail, such as one with a single program: that
		// program becomes the entrypoint.
		_ = a.removeSandbox(ctx, conn, sb.ID)
		req.Entrypoint, req.IdempotencyKey, argv = argv, "", nil
		sb, err = conn.Create(ctx, req)
	}
	if sb == nil {
		return interruptedOr(ctx, err)
	}
	defer func() {
		if f.rm {
			err = also(err, a.removeSandbox(ctx, conn, sb.ID))
		}
	}()
	if err != nil && !startedAndEnded(sb) {
		return interruptedOr(ctx, err)
	}
	if leased {
		stop := keepLease(ctx, conn, sb.ID)
		defer stop()
	}
	if len(argv) == 0 {
		return a.told(sb.ID, func(stdout, _ io.Writer) error { return followEntrypoint(ctx, conn, sb.ID, stdout) })
	}
	command, err := f.execFlags.command(cmd, a, conn, sb.ID, argv)
	if err != nil {
		return err
	}
	return a.told(sb.ID, func(stdout, stderr io.Writer) error {
		return a.exec(ctx, conn, sb.ID, command, !f.execFlags.noStdin, stdout, stderr)
	})
}

// ensureImage pulls the image when it is not on the server, so that the user
// sees how far that is. A server without image routes pulls by itself.
func (a *app) ensureImage(ctx context.Context, c *connection, f *runFlags, r *client.CreateRequest) error {
	if f.pull == "missing" {
		imgs, err := c.ListImages(ctx)
		if client.IsNotFound(err) || client.IsNotSupported(err) {
			return nil
		}
		if err != nil {
			return err
		}
		want := normal(r.Image)
		for _, img := range imgs {
			if normal(img.Name) == want && (r.Platform == nil || *r.Platform == img.Platform) {
				return nil
			}
		}
	}
	_, err := a.pull(ctx, c, client.PullRequest{Image: r.Image, Auth: r.Auth, Platform: r.Platform})
	if err != nil {
		return interruptedOr(ctx, fmt.Errorf("pulling image %q: %w", r.Image, err))
	}
	return nil
}

// lacksKeepAlive reports whether a create failed because the image has no tail.
func lacksKeepAlive(err error) bool {
	var failed *client.FailedError
	return errors.As(err, &failed) && failed.Sandbox.Status.Reason == "ENTRYPOINT_FAILED"
}

// startedAndEnded reports whether the entrypoint ran and has already ended,
// with whatever result.
func startedAndEnded(sb *client.Sandbox) bool {
	switch sb.Status.Reason {
	case "EXITED", "EXITED_ERROR", "KILLED", "OUT_OF_MEMORY":
		return true
	}
	return false
}

// keepLease renews the sandbox's lifetime until it is stopped.
func keepLease(ctx context.Context, c *connection, id string) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(runLeaseRenew)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				// A miss is made up for by the next one.
				_, _ = c.Renew(ctx, id, time.Now().Add(runLease))
			}
		}
	}()
	return func() { cancel(); <-done }
}

// followEntrypoint shows what the entrypoint prints, on both streams, and returns
// its exit code.
func followEntrypoint(ctx context.Context, c *connection, id string, stdout io.Writer) error {
	logs, err := c.Logs(ctx, id, client.LogOptions{Follow: true})
	if err != nil {
		return interruptedOr(ctx, err)
	}
	_, err = io.Copy(stdout, logs)
	logs.Close()
	if err != nil {
		return interruptedOr(ctx, fmt.Errorf("following the output: %w", err))
	}
	sb, err := waitEnd(ctx, c, id)
	if err != nil {
		return interruptedOr(ctx, err)
	}
	return entrypointEnd(sb)
}

// waitEnd waits for the record of the end, which follows the end of the output
// within moments.
func waitEnd(ctx context.Context, c *connection, id string) (*client.Sandbox, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, endWait, fmt.Errorf("the output of sandbox %s has ended but the sandbox has not", id))
	defer cancel()
	for delay := 5 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		sb, err := c.Get(ctx, id)
		if err != nil || sb.Status.Ended() {
			return sb, err
		}
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, context.Cause(ctx)
		case <-timer.C:
		}
	}
}

// entrypointEnd turns the end of an entrypoint into an exit code.
func entrypointEnd(sb *client.Sandbox) error {
	s := sb.Status
	switch s.Reason {
	case "EXITED":
		return nil
	case "EXITED_ERROR":
		if code, ok := exitCode(s.Message); ok && code > 0 {
			return &ExitError{Code: code}
		}
	case "KILLED", "OUT_OF_MEMORY":
		code := exitSignalBase + 9
		if n, ok := signalNumber(s.Message); ok {
			code = exitSignalBase + n
		}
		return &ExitError{Code: code, Err: errors.New(client.Printable(s.Message))}
	}
	if s.State == client.StateTerminated {
		return nil
	}
	return &client.FailedError{Sandbox: sb}
}

// removeSandbox removes a sandbox even after the user has asked to stop.
func (a *app) removeSandbox(ctx context.Context, c *connection, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if err := c.Delete(ctx, id); err != nil && !client.IsNotFound(err) {
		return fmt.Errorf("removing sandbox %s: %w", id, err)
	}
	return nil
}

// interruptedOr is err, or the exit code of an interrupted process when the
// user has asked to stop.
func interruptedOr(ctx context.Context, err error) error {
	if ctx.Err() != nil && err != nil {
		return &ExitError{Code: exitSignalBase + 2}
	}
	return err
}
