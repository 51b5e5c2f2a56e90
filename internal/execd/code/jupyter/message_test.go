package jupyter

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func sample(t testing.TB) *Message {
	t.Helper()
	m, err := NewMessage("session", Shell, "execute_request", map[string]any{"code": "print(1)"})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMessage(t *testing.T) {
	m := sample(t)
	key := []byte("key")
	frames, err := m.encode(key)
	if err != nil {
		t.Fatal(err)
	}
	// A topic in front and a buffer at the end.
	got, err := decode(IOPub, key, append(append([][]byte{[]byte("topic")}, frames...), []byte("buffer")))
	if err != nil || got.Header != m.Header || !bytes.Equal(got.Content, m.Content) || got.Channel != IOPub {
		t.Fatalf("%+v, %v; want %+v", got, err, m)
	}
	if _, err := decode(Shell, []byte("other"), frames); err == nil {
		t.Error("a message with a wrong signature was taken")
	}
	for i := range frames {
		bad := bytes.Clone(frames[i])
		bad = append(bad, ' ')
		changed := append([][]byte{}, frames...)
		changed[i] = bad
		if _, err := decode(Shell, key, changed); err == nil {
			t.Errorf("a message with another frame %d was taken", i)
		}
		if _, err := decode(Shell, key, frames[:i]); err == nil {
			t.Errorf("a message of %d frames was taken", i)
		}
	}
}

// TestSignature is the example of RFC 4231, section 4.3, in one part.
func TestSignature(t *testing.T) {
	got := sign([]byte("Jefe"), [4][]byte{[]byte("what do ya want "), []byte("for "), nil, []byte("nothing?")})
	if want := "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"; string(got) != want {
		t.Errorf("%s; want %s", got, want)
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct{ header, parent, content string }{
		{`{}`, `{}`, `{}`},
		{`[]`, `{}`, `{}`},
		{`{"msg_type":5}`, `{}`, `{}`},
		{`{"msg_type":"x"}`, `[]`, `{}`},
		{`{"msg_type":"x"}`, `{"msg_id":7}`, `{}`},
		{`{"msg_type":"x"}`, `{}`, `[]`},
		{`{"msg_type":"x"}`, `{}`, ``},
		{``, ``, ``},
	} {
		if (&Message{}).parse([]byte(c.header), []byte(c.parent), []byte(c.content)) == nil {
			t.Errorf("%q was taken", c)
		}
	}
}

func TestWebSocketForms(t *testing.T) {
	m := sample(t)
	parts, err := m.parts()
	if err != nil {
		t.Fatal(err)
	}
	got, err := unpackV1(packV1(m.Channel, parts))
	if err != nil || got.Header != m.Header || got.Channel != Shell || !bytes.Equal(got.Content, m.Content) {
		t.Fatalf("v1: %+v, %v", got, err)
	}
	text := []byte(`{"channel":"iopub","header":{"msg_type":"stream","msg_id":"1"},"parent_header":{"msg_id":"2"},"metadata":{},"content":{"a":1},"buffers":[]}`)
	got, err = unpackLegacy(text)
	if err != nil || got.Channel != IOPub || got.Parent != "2" || string(got.Content) != `{"a":1}` {
		t.Fatalf("legacy: %+v, %v", got, err)
	}
	for _, buffers := range [][]byte{nil, []byte("buffer")} {
		n := uint32(1)
		if buffers != nil {
			n = 2
		}
		b := binary.BigEndian.AppendUint32(nil, n)
		b = binary.BigEndian.AppendUint32(b, 4*(n+1))
		if buffers != nil {
			b = binary.BigEndian.AppendUint32(b, 4*(n+1)+uint32(len(text)))
		}
		got, err = unpackBinary(append(append(b, text...), buffers...))
		if err != nil || got.Parent != "2" {
			t.Fatalf("legacy with buffers: %+v, %v", got, err)
		}
	}
}

func FuzzUnpack(f *testing.F) {
	m := sample(f)
	parts, _ := m.parts()
	f.Add(packV1(Shell, parts))
	f.Add([]byte("\x00\x00\x00\x01\x00\x00\x00\x08{}"))
	f.Add([]byte(`{"header":{"msg_type":"x"},"content":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, unpack := range []func([]byte) (*Message, error){unpackV1, unpackBinary, unpackLegacy} {
			if m, err := unpack(b); err == nil && (m.Header.Type == "" || len(m.Content) > len(b)) {
				t.Fatalf("%+v", m)
			}
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"msg_type":"x"}`), []byte("{}"), []byte("{}"))
	f.Fuzz(func(t *testing.T, header, parent, content []byte) {
		parts := [4][]byte{header, parent, nil, content}
		m, err := decode(IOPub, nil, [][]byte{delimiter, sign(nil, parts), header, parent, nil, content})
		if err == nil && m.Header.Type == "" {
			t.Fatalf("%+v", m)
		}
	})
}
