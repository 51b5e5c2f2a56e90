package execd

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// sendPiece bounds one sendfile(2), in bytes, so that deadlines are looked at
	// now and then.
	sendPiece = 4 << 20
	// copyPiece is read and written at a time where sendfile can't be used.
	copyPiece = 128 << 10
)

// sendingListener gives the engine's connections what net gives to TCP's only:
// files go from the page cache into the socket.
type sendingListener struct{ net.Listener }

func (l sendingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if u, ok := c.(*net.UnixConn); ok {
		return &sendingConn{u}, err
	}
	return c, err
}

// sendingConn is a Unix connection that net/http finds an io.ReaderFrom in.
type sendingConn struct{ *net.UnixConn }

// ReadFrom implements io.ReaderFrom. It hides the method of datagram sockets.
func (c *sendingConn) ReadFrom(r io.Reader) (sent int64, err error) {
	if limited, ok := r.(*io.LimitedReader); ok {
		if f, ok := limited.R.(*os.File); ok {
			sent, err = c.sendFile(f, limited.N)
			limited.N -= sent
			if err == nil || sent > 0 || !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, syscall.EINVAL) {
				return sent, err
			}
		}
	}
	// Neither side may offer its own way of copying, which would lead here again.
	return io.CopyBuffer(struct{ io.Writer }{c.UnixConn}, struct{ io.Reader }{r}, make([]byte, copyPiece))
}

// sendFile sends up to n bytes from where the file is read next.
func (c *sendingConn) sendFile(f *os.File, n int64) (sent int64, err error) {
	socket, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	file, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	for sent < n {
		piece, err := sendPart(socket, file, int(min(n-sent, sendPiece)))
		sent += int64(piece)
		if err != nil || piece == 0 { // 0: the file is shorter than it was
			return sent, err
		}
	}
	return sent, nil
}

// sendPart is one sendfile(2), which waits until the socket takes something.
func sendPart(socket, file syscall.RawConn, n int) (sent int, err error) {
	var failure, waiting error
	err = file.Control(func(from uintptr) {
		waiting = socket.Write(func(to uintptr) bool {
			for {
				sent, failure = unix.Sendfile(int(to), int(from), nil, n)
				if failure != syscall.EINTR {
					break
				}
			}
			return failure != syscall.EAGAIN
		})
	})
	if err == nil {
		err = waiting
	}
	if err == nil {
		err = failure
	}
	return max(sent, 0), err
}
