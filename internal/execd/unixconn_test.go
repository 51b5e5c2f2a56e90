package execd

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSendingConn(t *testing.T) {
	dir := t.TempDir()
	data := make([]byte, 9<<20)
	rand.NewChaCha8([32]byte{}).Read(data)
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	open := func() *os.File {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	middle := open()
	middle.Seek(100, io.SeekStart)
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for name, c := range map[string]struct {
		r    io.Reader
		want []byte
	}{
		"part":         {io.LimitReader(open(), 8<<20), data[:8<<20]},
		"middle":       {io.LimitReader(middle, 10), data[100:110]},
		"past the end": {io.LimitReader(open(), 1<<40), data},
		"whole":        {open(), data},
		"device":       {io.LimitReader(null, 10), nil},
		"memory":       {strings.NewReader("abc"), []byte("abc")},
	} {
		l, err := net.Listen("unix", filepath.Join(dir, "s"))
		if err != nil {
			t.Fatal(err)
		}
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			defer l.Close()
			conn, err := sendingListener{l}.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if n, err := conn.(io.ReaderFrom).ReadFrom(c.r); err != nil || n != int64(len(c.want)) {
				t.Errorf("%s: sent %d, %v", name, n, err)
			}
		}()
		in, err := net.Dial("unix", filepath.Join(dir, "s"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(in)
		in.Close()
		<-sent // and the listener's name is free
		if err != nil || !bytes.Equal(got, c.want) {
			t.Errorf("%s: got %d bytes, %v; want %d", name, len(got), err, len(c.want))
		}
	}
}
