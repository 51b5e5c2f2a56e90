package jupyter

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// script is a connection whose other side has sent all it ever will.
type script struct {
	net.Conn
	in  *bytes.Reader
	out bytes.Buffer
}

func (s *script) Read(b []byte) (int, error)       { return s.in.Read(b) }
func (s *script) Write(b []byte) (int, error)      { return s.out.Write(b) }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }
func (s *script) Close() error                     { return nil }

func scripted(b []byte) *script { return &script{in: bytes.NewReader(b)} }

func socketOf(b []byte) (*socket, *script) {
	s := scripted(b)
	return &socket{conn: s, in: bufio.NewReader(s)}, s
}

// greeting is that of a peer.
func greeting(mechanism string) []byte {
	b := make([]byte, greetingSize)
	b[0], b[9], b[10], b[11] = 0xff, 0x7f, 3, 1
	copy(b[12:32], mechanism)
	return b
}

func TestGreet(t *testing.T) {
	ready := appendFrame(nil, flagCommand, appendProperty([]byte("\x05READY"), "Socket-Type", "ROUTER"))
	old := greeting("NULL")
	old[10] = 2
	for name, c := range map[string]struct {
		send []byte
		want string
	}{
		"good":           {send: append(greeting("NULL"), ready...)},
		"nothing":        {want: "reading the greeting: EOF"},
		"half":           {send: greeting("NULL")[:30], want: "unexpected EOF"},
		"http":           {send: []byte(strings.Repeat("HTTP/1.1 400 Bad Request\r\n", 5)), want: "does not speak version 3"},
		"version 2":      {send: append(old, ready...), want: "does not speak version 3"},
		"curve":          {send: append(greeting("CURVE"), ready...), want: `mechanism "CURVE"`},
		"no handshake":   {send: greeting("NULL"), want: "reading the handshake: EOF"},
		"message":        {send: append(greeting("NULL"), appendFrame(nil, 0, []byte("x"))...), want: "not one of ZMTP 3"},
		"refused":        {send: append(greeting("NULL"), appendFrame(nil, flagCommand, []byte("\x05ERROR\x02no"))...), want: `the peer refused: "no"`},
		"other":          {send: append(greeting("NULL"), appendFrame(nil, flagCommand, []byte("\x05HELLO"))...), want: `the command "HELLO"`},
		"empty command":  {send: append(greeting("NULL"), appendFrame(nil, flagCommand, nil)...), want: `the command ""`},
		"cut name":       {send: append(greeting("NULL"), appendFrame(nil, flagCommand, []byte("\xffREADY"))...), want: `the command ""`},
		"huge handshake": {send: append(greeting("NULL"), flagCommand|flagLong, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), want: "not one of ZMTP 3"},
	} {
		peer := scripted(c.send)
		_, err := greet(peer, dealer, "me")
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
		sent := peer.out.Bytes()
		if len(sent) < greetingSize || sent[0] != 0xff || sent[9] != 0x7f || sent[10] != 3 || string(sent[12:16]) != "NULL" {
			t.Errorf("%s: the greeting is %q", name, sent)
		}
	}
}

func TestReceive(t *testing.T) {
	long := bytes.Repeat([]byte("long "), 100)
	var b []byte
	b = appendFrame(b, flagMore, nil)
	b = appendFrame(b, 0, long)
	b = appendFrame(b, flagCommand, []byte("\x04PING\x00\x10abc"))
	// More than is taken, in parts and in one.
	b = append(appendFrame(b, flagMore, make([]byte, MaxMessage)), appendFrame(nil, 0, []byte("x"))...)
	b = appendFrame(b, 0, make([]byte, MaxMessage+1))
	for range maxFrames {
		b = appendFrame(b, flagMore, nil)
	}
	b = appendFrame(b, 0, nil)
	b = appendFrame(b, 0, make([]byte, MaxMessage))
	s, peer := socketOf(b)
	if got, err := s.receive(); err != nil || len(got) != 2 || len(got[0]) != 0 || !bytes.Equal(got[1], long) {
		t.Fatalf("%d frames, %v", len(got), err)
	}
	for _, want := range []int64{MaxMessage + 1, MaxMessage + 1, 0} {
		_, err := s.receive()
		var tooLong *tooLongError
		if !errors.As(err, &tooLong) || tooLong.size != want {
			t.Fatalf("%v; want a message of %d bytes to be refused", err, want)
		}
	}
	if got, err := s.receive(); err != nil || len(got) != 1 || len(got[0]) != MaxMessage {
		t.Fatalf("%d frames, %v", len(got), err)
	}
	if _, err := s.receive(); err != io.EOF {
		t.Fatalf("at the end: %v", err)
	}
	if want := appendFrame(nil, flagCommand, []byte("\x04PONGabc")); !bytes.Equal(peer.out.Bytes(), want) {
		t.Errorf("a ping was answered with %q", peer.out.Bytes())
	}
}

func TestReceiveHostile(t *testing.T) {
	huge := []byte{0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	for name, b := range map[string][]byte{
		"nothing":        {},
		"flags only":     {0},
		"unknown flags":  {0xff, 1, 1},
		"short":          {0, 10, 'x'},
		"huge":           append([]byte{flagLong}, append(huge, 'x')...),
		"overflow":       append(append([]byte{flagLong | flagMore}, append(huge, 'x')...), append([]byte{flagLong}, huge...)...),
		"negative":       {flagLong, 0xff, 0, 0, 0, 0, 0, 0, 0},
		"huge command":   append([]byte{flagLong | flagCommand}, huge...),
		"refusal":        appendFrame(nil, flagCommand, []byte("\x05ERROR")),
		"cut off":        {flagMore, 1, 'x'},
		"cut off length": {flagLong, 0, 0},
	} {
		s, _ := socketOf(b)
		if _, err := s.receive(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestFrames: what is sent is what is received.
func TestFrames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 600), 1, maxFrames).Draw(t, "frames")
		s, peer := socketOf(nil)
		if err := s.send(want...); err != nil {
			t.Fatal(err)
		}
		back, _ := socketOf(peer.out.Bytes())
		got, err := back.receive()
		if err != nil || len(got) != len(want) {
			t.Fatalf("%d frames of %d: %v", len(got), len(want), err)
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("frame %d is %q; want %q", i, got[i], want[i])
			}
		}
	})
}

func FuzzReceive(f *testing.F) {
	f.Add(appendFrame(appendFrame(nil, flagMore, []byte("<IDS|MSG>")), 0, bytes.Repeat([]byte("x"), 300)))
	f.Add([]byte{flagLong, 0x7f, 0, 0, 0, 0, 0, 0, 0, 1})
	f.Add(appendFrame(nil, flagCommand, []byte("\x04PING\x00\x00")))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, _ := socketOf(b)
		for {
			frames, err := s.receive()
			var tooLong *tooLongError
			if err != nil && !errors.As(err, &tooLong) {
				return
			}
			total := 0
			for _, f := range frames {
				total += len(f)
			}
			if total > len(b) || len(frames) > maxFrames {
				t.Fatalf("%d bytes in %d frames out of %d bytes", total, len(frames), len(b))
			}
		}
	})
}

func FuzzGreet(f *testing.F) {
	f.Add(append(greeting("NULL"), appendFrame(nil, flagCommand, []byte("\x05READY"))...))
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = greet(scripted(b), subscriber, "me") })
}
