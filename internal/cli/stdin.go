package cli

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/paddock-sandbox/paddock/client"
)

// maxPiece is how much input travels in one piece. A piece is what has come in
// while the one before was on its way, so slow input is passed on at once and
// fast input in large pieces.
const maxPiece = 4 << 20

// maxWholeInput is up to what size a file is passed on in one piece.
const maxWholeInput = 16 << 20

// stdin carries standard input to a command. The execd API gives commands no
// input, so it is built from what there is.
//
// Usually it is a named pipe in the sandbox that the command reads, a process
// that holds the pipe open, and the input in pieces, each uploaded as a file and
// then poured into the pipe. The command starts at once, gets input as it comes,
// slows the sender down when it does not read, and may end without having read
// anything. A small file is uploaded whole and read from there; so is all input
// where the sandbox has no mkfifo, and the command then starts when it is there.
type stdin struct {
	c   *connection
	id  string
	dir string
	in  *os.File
	// holder is the background command that keeps the pipe's end open; empty
	// when there is no pipe.
	holder string
}

// hasInput reports whether there is input to pass on: not from a terminal, and
// not from /dev/null.
func hasInput(f *os.File) bool {
	if f == nil || term.IsTerminal(int(f.Fd())) {
		return false
	}
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return false
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return st.Size > 0
	case unix.S_IFCHR:
		return st.Rdev != unix.Mkdev(1, 3) // /dev/null (devices.txt of Linux)
	case unix.S_IFIFO, unix.S_IFSOCK:
		return true
	}
	return false
}

// errNoPipe: the sandbox cannot make a named pipe.
var errNoPipe = errors.New("no named pipe")

// openStdin prepares the sandbox for the input. The caller calls remove.
func openStdin(ctx context.Context, c *connection, id string, in *os.File) (*stdin, error) {
	s := &stdin{c: c, id: id, in: in, dir: path.Join("/tmp", ".paddock-stdin-"+rand.Text())}
	err := errNoPipe
	if st, serr := in.Stat(); serr != nil || !st.Mode().IsRegular() || st.Size() > maxWholeInput {
		err = s.openPipe(ctx)
	}
	if errors.Is(err, errNoPipe) {
		err = s.uploadWhole(ctx)
	}
	if err != nil {
		s.remove()
		return nil, fmt.Errorf("passing standard input on (--no-stdin does without): %w", err)
	}
	return s, nil
}

// openPipe makes the pipe. It belongs to root but anybody may read it, because
// the command may run as any user.
func (s *stdin) openPipe(ctx context.Context) error {
	res, err := s.root(ctx, `mkdir -m 755 "$0" && cd "$0" && umask 0 && mkfifo in end`, s.dir)
	var notRun *client.CommandError
	if errors.As(err, &notRun) || err == nil && res.ExitCode != 0 {
		return errNoPipe
	}
	if err != nil {
		return err
	}
	// Opening a pipe for writing waits for its reader, so this does not hold
	// the command back, and reading "end" waits for the last word.
	s.holder, err = s.c.Start(ctx, s.id, client.Command{
		Argv: []string{"sh", "-c", `cd "$0" && exec >in && read -r _ <end`, s.dir}, UID: new(uint32),
	})
	return err
}

// uploadWhole puts all of the input into a file.
func (s *stdin) uploadWhole(ctx context.Context) error {
	in, err := newInput(ctx, s.in)
	if err != nil {
		return err
	}
	defer in.close()
	return s.c.UploadFiles(ctx, s.id, client.UploadFile{Path: path.Join(s.dir, "in"), Mode: 644, Content: in})
}

// root runs a script in the sandbox as its root.
func (s *stdin) root(ctx context.Context, script string, words ...string) (*client.Result, error) {
	return s.c.Run(ctx, s.id, client.Command{Argv: append([]string{"sh", "-c", script}, words...), UID: new(uint32)}, client.Output{})
}

// wrap makes the command read the input.
func (s *stdin) wrap(cmd client.Command) client.Command {
	cmd.Argv = append([]string{"sh", "-c", `exec "$@" <"$0"`, path.Join(s.dir, "in")}, cmd.Argv...)
	return cmd
}

// feed starts passing the input on and returns a function that waits for it to
// be over. A command that ends, which ends ctx, ends it too.
func (s *stdin) feed(ctx context.Context) func() error {
	if s.holder == "" {
		return func() error { return nil }
	}
	done := make(chan error, 1)
	go func() {
		err := s.copy(ctx)
		if ctx.Err() != nil {
			err = nil // the command did not want more
		}
		done <- err
	}()
	return func() error { return <-done }
}

func (s *stdin) copy(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	in, err := newInput(ctx, s.in)
	if err != nil {
		cancel()
		return fmt.Errorf("reading standard input: %w", err)
	}
	pieces := newGatherer(maxPiece)
	var reader sync.WaitGroup
	reader.Go(func() { pieces.fill(in) })
	defer func() {
		cancel()
		pieces.stop()
		reader.Wait()
		in.close()
	}()
	var piece []byte
	for i := 0; ; i++ {
		if piece, err = pieces.take(piece); err != nil {
			break
		}
		if err := s.send(ctx, i, piece); err != nil {
			return fmt.Errorf("passing standard input on: %w", err)
		}
	}
	if errors.Is(err, io.EOF) {
		return s.end(ctx)
	}
	return fmt.Errorf("reading standard input: %w", err)
}

// send uploads one piece and pours it into the pipe, which takes as long as the
// command needs to read it.
func (s *stdin) send(ctx context.Context, i int, data []byte) error {
	name := path.Join(s.dir, strconv.Itoa(i))
	err := s.c.UploadFiles(ctx, s.id, client.UploadFile{Path: name, Mode: 600, Content: bytes.NewReader(data)})
	if err != nil {
		return err
	}
	_, err = s.root(ctx, `cat "$1" >"$0"; rm -f "$1"`, path.Join(s.dir, "in"), name)
	return err
}

// end lets the holder go, and with it the last writer of the pipe.
func (s *stdin) end(ctx context.Context) error {
	_, err := s.root(ctx, `echo >"$0"`, path.Join(s.dir, "end"))
	return err
}

// remove takes away what the input needed. The sandbox may be gone already, and
// then there is nothing left to do.
func (s *stdin) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), interruptTimeout)
	defer cancel()
	if s.holder != "" {
		_ = s.c.Interrupt(ctx, s.id, s.holder)
	}
	_ = s.c.RemoveDirs(ctx, s.id, s.dir)
}

// input reads a file until a context ends: a pipe that nobody writes to must
// not hold up the end of the command.
type input struct {
	ctx  context.Context
	f    *os.File
	wake int // an eventfd(2) that becomes readable when ctx ends
	stop func() bool
}

func newInput(ctx context.Context, f *os.File) (*input, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
	return &input{ctx, f, wake, stop}, nil
}

// close leaves the descriptor to a wake-up that is under way, which then has
// the process's end to close it.
func (i *input) close() {
	if i.stop() {
		unix.Close(i.wake)
	}
}

// Read waits for input.
func (i *input) Read(buf []byte) (int, error) {
	fds := []unix.PollFd{{Fd: int32(i.f.Fd()), Events: unix.POLLIN}, {Fd: int32(i.wake), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, err
		case i.ctx.Err() != nil:
			return 0, i.ctx.Err()
		}
		return i.f.Read(buf)
	}
}
