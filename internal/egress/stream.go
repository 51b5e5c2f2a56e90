package egress

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"
)

const (
	// streamIdle is how long a TCP connection may be silent between two
	// questions, and how long a question may take to arrive.
	streamIdle = 10 * time.Second
	// streamWrite is how long an asker may take to read an answer.
	streamWrite = 5 * time.Second
	// streamQueries is how many questions one connection may ask.
	streamQueries = 256
	// acceptPause is how long the listener waits when the process is out of
	// descriptors or memory, which no event announces the end of.
	acceptPause = 50 * time.Millisecond
)

// serveTCP accepts connections within the limits. It returns when the listener
// is closed.
func (r *Resolver) serveTCP(l *net.TCPListener) error {
	for {
		conn, err := l.AcceptTCP()
		if isShortage(err) {
			select {
			case <-r.ctx.Done():
			case <-time.After(acceptPause):
			}
			continue
		}
		if errors.Is(err, syscall.ECONNABORTED) {
			continue
		}
		if err != nil {
			return fmt.Errorf("egress: accepting DNS connections: %w", err)
		}
		from := unmap(conn.RemoteAddr().(*net.TCPAddr).AddrPort())
		src := from.Addr()
		if !r.opts.answers(src) {
			r.stats.ignored.Add(1)
			_ = conn.Close()
			continue
		}
		if !r.conns.take(src) {
			r.stats.overloaded.Add(1)
			_ = conn.Close()
			continue
		}
		started := r.start(func() {
			defer r.conns.give(src)
			defer conn.Close()
			r.serveStream(conn, from)
		})
		if !started {
			r.conns.give(src)
			_ = conn.Close()
			return nil
		}
	}
}

// isShortage finds errors that pass when somebody else frees something.
func isShortage(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// serveStream answers the questions of one connection, one after the other, so
// that a connection never takes more than one slot.
func (r *Resolver) serveStream(conn net.Conn, from netip.AddrPort) {
	stop := context.AfterFunc(r.ctx, func() { _ = conn.Close() })
	defer stop()
	for range streamQueries {
		if err := conn.SetReadDeadline(time.Now().Add(streamIdle)); err != nil {
			return
		}
		raw, err := readFrame(conn)
		if err != nil {
			return
		}
		answer := r.answerStream(raw, from)
		if answer == nil {
			r.stats.ignored.Add(1)
			return
		}
		if err := conn.SetWriteDeadline(time.Now().Add(streamWrite)); err != nil {
			return
		}
		if err := writeFrame(conn, answer); err != nil {
			return
		}
	}
}

func (r *Resolver) answerStream(raw []byte, from netip.AddrPort) []byte {
	src := from.Addr()
	q, answer := parse(raw, from, true)
	if q == nil {
		return answer
	}
	if !r.queries.take(src) {
		return r.overloaded(q)
	}
	defer r.queries.give(src)
	return r.answer(r.ctx, q)
}

var errTooLong = errors.New("the question is too long")

// readFrame reads a message with its length in front (RFC 1035, 4.2.2).
func readFrame(from io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(from, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > maxQuery {
		return nil, errTooLong
	}
	raw := make([]byte, n)
	if _, err := io.ReadFull(from, raw); err != nil {
		return nil, err
	}
	return raw, nil
}

// writeFrame writes a message with its length in front, in one piece.
func writeFrame(to io.Writer, raw []byte) error {
	out := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(raw)), uint16(len(raw)))
	_, err := to.Write(append(out, raw...))
	return err
}
