// The paddock command: a server of sandboxes and its client.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/paddock-sandbox/paddock/internal/cli"
)

const (
	exitFailure     = 1
	exitUsage       = 2
	exitInterrupted = 128 + int(syscall.SIGINT)
	exitPipe        = 128 + int(syscall.SIGPIPE)
)

func main() { os.Exit(run()) }

func run() int {
	// The first signal asks for an orderly end; after it the second has its
	// usual effect.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	context.AfterFunc(ctx, stop)
	// A closed standard output must not kill the process before it has
	// cleaned up; the write fails and ends it in order. (Ignoring the signal
	// would be inherited by the programs that are started.)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)

	err := cli.Execute(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr})
	return code(err)
}

// code prints an error and turns it into an exit code.
func code(err error) int {
	var exit *cli.ExitError
	var usage *cli.UsageError
	switch {
	case err == nil:
		return 0
	case outputClosed(err):
		return exitPipe // the reader has seen enough
	case errors.As(err, &exit):
		if exit.Err != nil {
			report(exit.Err)
		}
		return exit.Code
	case errors.As(err, &usage):
		report(err)
		return exitUsage
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	}
	report(err)
	return exitFailure
}

// outputClosed reports whether standard output was closed by its reader, unlike
// a connection, which fails in the same way.
func outputClosed(err error) bool {
	var pe *fs.PathError
	return errors.As(err, &pe) && pe.Path == os.Stdout.Name() && errors.Is(pe, syscall.EPIPE)
}

// report prints an error, several lines of one indented.
func report(err error) {
	fmt.Fprintln(os.Stderr, "paddock:", strings.ReplaceAll(err.Error(), "\n", "\n  "))
}
