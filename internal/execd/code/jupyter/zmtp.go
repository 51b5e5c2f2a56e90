package jupyter

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Flags of a frame (ZMTP 3.0, "Framing").
const (
	flagMore    = 1
	flagLong    = 2
	flagCommand = 4
)

// Socket types (ZMTP 3.0, "The NULL Security Mechanism").
const (
	dealer     = "DEALER"
	subscriber = "SUB"
)

const (
	// greetingSize is the length of a greeting in bytes (ZMTP 3.0, "Version
	// Negotiation").
	greetingSize = 64
	// greetTimeout bounds the handshake of a connection.
	greetTimeout = 5 * time.Second
	// sendTimeout bounds how long a kernel may take to accept a message.
	sendTimeout = 20 * time.Second
	// maxCommand bounds a command's body in bytes; those of the protocol have a
	// few dozen.
	maxCommand = 4096
	// maxFrames bounds the frames of one message. Jupyter's have six, and one
	// for each binary buffer.
	maxFrames = 256
	// MaxMessage bounds the frames of one message together, in bytes. A client
	// gets at most 4 MiB in one event; output may come in larger pieces.
	MaxMessage = 32 << 20
	// maxSkipped bounds a message that is read only to be skipped, in bytes.
	// What claims to be longer is no message.
	maxSkipped = 1 << 32
	// readStep is how much is read of a long frame before more memory is
	// taken: the length that a peer announces costs it nothing.
	readStep = 64 << 10
)

// tooLongError is the error for a message that was skipped. The connection can
// still be used.
type tooLongError struct {
	size int64
}

func (e *tooLongError) Error() string {
	return fmt.Sprintf("a message has %d bytes or too many parts; at most %d bytes are taken", e.size, MaxMessage)
}

// socket is one connection that speaks ZMTP. One goroutine may receive while
// others send.
type socket struct {
	conn net.Conn
	in   *bufio.Reader
	mu   sync.Mutex
}

// greet makes a socket of a fresh connection. On an error the caller closes
// the connection.
func greet(conn net.Conn, kind, identity string) (*socket, error) {
	_ = conn.SetDeadline(time.Now().Add(greetTimeout))
	defer conn.SetDeadline(time.Time{})
	s := &socket{conn: conn, in: bufio.NewReaderSize(conn, 4096)}
	// Signature, version 3.0, mechanism; not a server, which NULL has not. The
	// minor version 0 keeps the peer from sending what came with 3.1.
	var hello [greetingSize]byte
	hello[0], hello[9], hello[10] = 0xff, 0x7f, 3
	copy(hello[12:32], "NULL")
	if _, err := conn.Write(hello[:]); err != nil {
		return nil, err
	}
	var theirs [greetingSize]byte
	if _, err := io.ReadFull(s.in, theirs[:]); err != nil {
		return nil, fmt.Errorf("reading the greeting: %w", err)
	}
	if theirs[0] != 0xff || theirs[9] != 0x7f || theirs[10] < 3 {
		return nil, errors.New("the peer does not speak version 3 of ZMTP")
	}
	if mechanism := string(bytes.TrimRight(theirs[12:32], "\x00")); mechanism != "NULL" {
		return nil, fmt.Errorf("the peer wants the security mechanism %q; only NULL is spoken here", mechanism)
	}
	ready := appendProperty(appendProperty([]byte("\x05READY"), "Socket-Type", kind), "Identity", identity)
	if err := s.write(appendFrame(nil, flagCommand, ready)); err != nil {
		return nil, err
	}
	return s, s.awaitReady()
}

// awaitReady reads the peer's half of the handshake.
func (s *socket) awaitReady() error {
	flags, size, err := s.header()
	if err != nil {
		return fmt.Errorf("reading the handshake: %w", err)
	}
	if flags&flagCommand == 0 || size > maxCommand {
		return errors.New("the peer's handshake is not one of ZMTP 3")
	}
	body, err := s.body(size)
	if err != nil {
		return err
	}
	name, rest := commandName(body)
	switch name {
	case "READY":
		return nil
	case "ERROR":
		return refusal(rest)
	}
	return fmt.Errorf("the peer's handshake has the command %q", name)
}

func refusal(reason []byte) error {
	if len(reason) > 0 {
		reason = reason[1:]
	}
	return fmt.Errorf("the peer refused: %q", reason)
}

// subscribe asks for everything that is published (ZMTP 3.0: a message of a
// byte 1 and the prefix, which is empty).
func (s *socket) subscribe() error { return s.send([]byte{1}) }

// send sends one message.
func (s *socket) send(frames ...[]byte) error {
	var b []byte
	for i, f := range frames {
		flags := byte(0)
		if i < len(frames)-1 {
			flags = flagMore
		}
		b = appendFrame(b, flags, f)
	}
	return s.write(b)
}

func (s *socket) write(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.conn.SetWriteDeadline(time.Now().Add(sendTimeout))
	_, err := s.conn.Write(b)
	return err
}

// receive returns the frames of the next message. After a *tooLongError the
// next call returns the message after it; after any other error the socket is
// of no use.
func (s *socket) receive() ([][]byte, error) {
	var frames [][]byte
	var total int64
	over := false
	for {
		flags, size, err := s.header()
		if err != nil {
			return nil, err
		}
		if flags&flagCommand != 0 {
			if err := s.command(size); err != nil {
				return nil, err
			}
			continue
		}
		if size > maxSkipped || total+size > maxSkipped {
			return nil, fmt.Errorf("a message has a part of %d bytes", size)
		}
		total += size
		over = over || total > MaxMessage || len(frames) == maxFrames
		if over {
			frames = nil
			if _, err := io.CopyN(io.Discard, s.in, size); err != nil {
				return nil, err
			}
		} else {
			body, err := s.body(size)
			if err != nil {
				return nil, err
			}
			frames = append(frames, body)
		}
		if flags&flagMore != 0 {
			continue
		}
		if over {
			return nil, &tooLongError{size: total}
		}
		return frames, nil
	}
}

// header reads the flags and the length of a frame.
func (s *socket) header() (flags byte, size int64, err error) {
	if flags, err = s.in.ReadByte(); err != nil {
		return 0, 0, err
	}
	if flags&^(flagMore|flagLong|flagCommand) != 0 {
		return 0, 0, fmt.Errorf("a frame has the unknown flags %#x", flags)
	}
	if flags&flagLong == 0 {
		b, err := s.in.ReadByte()
		return flags, int64(b), err
	}
	var long [8]byte
	if _, err := io.ReadFull(s.in, long[:]); err != nil {
		return 0, 0, err
	}
	if size = int64(binary.BigEndian.Uint64(long[:])); size < 0 {
		return 0, 0, errors.New("the length of a frame is out of range")
	}
	return flags, size, nil
}

// body reads a frame. Memory is taken for what has come, not for what is
// announced.
func (s *socket) body(size int64) ([]byte, error) {
	b := make([]byte, 0, min(size, readStep))
	for int64(len(b)) < size {
		if len(b) == cap(b) {
			b = append(make([]byte, 0, min(size, 2*int64(cap(b)))), b...)
		}
		n, err := io.ReadFull(s.in, b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err != nil {
			return nil, err
		}
	}
	return b, nil
}

// command deals with a command between messages.
func (s *socket) command(size int64) error {
	if size > maxCommand {
		return fmt.Errorf("a command has %d bytes", size)
	}
	body, err := s.body(size)
	if err != nil {
		return err
	}
	switch name, rest := commandName(body); {
	case name == "ERROR":
		return refusal(rest)
	case name == "PING" && len(rest) >= 2:
		// Two bytes are a time to live; what follows is to be sent back.
		return s.write(appendFrame(nil, flagCommand, append([]byte("\x04PONG"), rest[2:]...)))
	}
	return nil
}

// commandName splits a command's body. The name is empty for what is none.
func commandName(body []byte) (name string, rest []byte) {
	if len(body) == 0 || len(body) < 1+int(body[0]) {
		return "", nil
	}
	return string(body[1 : 1+body[0]]), body[1+body[0]:]
}

func appendProperty(b []byte, name, value string) []byte {
	b = append(append(b, byte(len(name))), name...)
	return append(binary.BigEndian.AppendUint32(b, uint32(len(value))), value...)
}

func appendFrame(b []byte, flags byte, body []byte) []byte {
	if len(body) < 256 {
		return append(append(b, flags, byte(len(body))), body...)
	}
	b = binary.BigEndian.AppendUint64(append(b, flags|flagLong), uint64(len(body)))
	return append(b, body...)
}
