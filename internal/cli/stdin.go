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

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/paddock-sandbox/paddock/client"
)

// stdinChunk is how much input travels in one piece.
const stdinChunk = 1 << 20

// stdinPipe carries standard input to a command. The execd API gives commands
// no input, so it is built from what there is: a named pipe in the sandbox that
// the command reads, a process that holds the pipe open, and the input in
// pieces, each uploaded as a file and then poured into the pipe. The command
// starts at once, gets input as it comes, slows the sender down when it does
// not read, and may end without having read anything.
type stdinPipe struct {
	c   *connection
	id  string
	dir string
	// holder is the background command that keeps the pipe's end open.
	holder string
}

// hasInput reports whether there is input to pass on: a file or a pipe, not a
// terminal and not /dev/null.
func hasInput(f *os.File) bool {
	if f == nil || term.IsTerminal(int(f.Fd())) {
		return false
	}
	st, err := f.Stat()
	if err != nil {
		return false
	}
	mode := st.Mode()
	return mode.IsRegular() && st.Size() > 0 || mode&(os.ModeNamedPipe|os.ModeSocket) != 0
}

// openStdin makes the pipe in the sandbox. It belongs to root but anybody may
// read it, because the command may run as any user.
func openStdin(ctx context.Context, c *connection, id string) (*stdinPipe, error) {
	p := &stdinPipe{c: c, id: id, dir: path.Join("/tmp", ".paddock-stdin-"+rand.Text())}
	out := new(bytes.Buffer)
	res, err := c.Run(ctx, id, client.Command{
		Argv: []string{"sh", "-c", `mkdir -m 755 "$0" && cd "$0" && mkfifo in end && chmod 666 in`, p.dir}, UID: new(uint32),
	}, client.Output{Stderr: out})
	if err == nil && res.ExitCode != 0 {
		err = errors.New(client.Printable(out.String()))
	}
	if err == nil {
		// Opening a pipe for writing waits for its reader, so this does not
		// hold the command back, and reading "end" waits for the last word.
		p.holder, err = c.Start(ctx, id, client.Command{
			Argv: []string{"sh", "-c", `cd "$0" && exec >in && read -r _ <end`, p.dir}, UID: new(uint32),
		})
	}
	if err != nil {
		p.remove()
		return nil, fmt.Errorf("passing standard input on needs sh and mkfifo in the image (--no-stdin does without): %w", err)
	}
	return p, nil
}

// wrap makes the command read from the pipe.
func (p *stdinPipe) wrap(cmd client.Command) client.Command {
	cmd.Argv = append([]string{"sh", "-c", `exec "$@" <"$0"`, path.Join(p.dir, "in")}, cmd.Argv...)
	return cmd
}

// feed starts passing the input on and returns a function that waits for it to
// be over. A command that ends, which ends ctx, ends it too.
func (p *stdinPipe) feed(ctx context.Context, in *os.File) func() error {
	done := make(chan error, 1)
	go func() {
		err := p.copy(ctx, in)
		if ctx.Err() != nil {
			err = nil // the command did not want more
		}
		done <- err
	}()
	return func() error { return <-done }
}

func (p *stdinPipe) copy(ctx context.Context, in *os.File) error {
	input, err := newInput(ctx, in)
	if err != nil {
		return fmt.Errorf("reading standard input: %w", err)
	}
	defer input.close()
	buf := make([]byte, stdinChunk)
	for i := 0; ; i++ {
		n, err := input.read(buf)
		if n > 0 {
			if err := p.send(ctx, i, buf[:n]); err != nil {
				return fmt.Errorf("passing standard input on: %w", err)
			}
		}
		if errors.Is(err, io.EOF) {
			return p.end(ctx)
		}
		if err != nil {
			return fmt.Errorf("reading standard input: %w", err)
		}
	}
}

// send uploads one piece and pours it into the pipe, which takes as long as the
// command needs to read it.
func (p *stdinPipe) send(ctx context.Context, i int, data []byte) error {
	name := path.Join(p.dir, strconv.Itoa(i))
	err := p.c.UploadFiles(ctx, p.id, client.UploadFile{Path: name, Mode: 600, Content: bytes.NewReader(data), Size: int64(len(data))})
	if err != nil {
		return err
	}
	_, err = p.c.Run(ctx, p.id, client.Command{
		Argv: []string{"sh", "-c", `cat "$1" >"$0"; rm -f "$1"`, path.Join(p.dir, "in"), name}, UID: new(uint32),
	}, client.Output{})
	return err
}

// end lets the holder go, and with it the last writer of the pipe.
func (p *stdinPipe) end(ctx context.Context) error {
	_, err := p.c.Run(ctx, p.id, client.Command{Argv: []string{"sh", "-c", `echo >"$0"`, path.Join(p.dir, "end")}, UID: new(uint32)}, client.Output{})
	return err
}

// remove takes away what the pipe needed. The sandbox may be gone already, and
// then there is nothing left to do.
func (p *stdinPipe) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), interruptTimeout)
	defer cancel()
	if p.holder != "" {
		_ = p.c.Interrupt(ctx, p.id, p.holder)
	}
	_ = p.c.RemoveDirs(ctx, p.id, p.dir)
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

func (i *input) read(buf []byte) (int, error) {
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
