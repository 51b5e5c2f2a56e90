package jupyter

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/coder/websocket"
)

// subprotocol is the newer form of messages on a WebSocket
// (jupyter-server.readthedocs.io, "WebSocket kernel wire protocols"). Servers
// that do not know it speak the older one.
const subprotocol = "v1.kernel.websocket.jupyter.org"

// channels is a Conn through a server.
type channels struct {
	ws      *websocket.Conn
	v1      bool
	handler Handler
	ctx     context.Context
	cancel  context.CancelFunc
	once    sync.Once
	done    chan struct{}
}

// Connect opens the kernel's channels. session names the client in all its
// messages. All messages come in one order, over all channels.
func (k *Session) Connect(ctx context.Context, session string, h Handler) (Conn, error) {
	where := k.server.base.JoinPath("api", "kernels", k.kernel, "channels")
	where.RawQuery = "session_id=" + session
	ws, _, err := websocket.Dial(ctx, where.String(), &websocket.DialOptions{
		HTTPClient: k.server.client, HTTPHeader: k.server.header(), Subprotocols: []string{subprotocol},
	})
	if err != nil {
		return nil, fmt.Errorf("connecting to the kernel: %w", err)
	}
	// Messages that are too long are skipped here, not the end of everything.
	ws.SetReadLimit(-1)
	c := &channels{ws: ws, v1: ws.Subprotocol() == subprotocol, handler: h, done: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	go c.read()
	return c, nil
}

// Send implements Conn.
func (c *channels) Send(m *Message) error {
	ctx, cancel := context.WithTimeout(c.ctx, sendTimeout)
	defer cancel()
	parts, err := m.parts()
	if err != nil {
		return err
	}
	if c.v1 {
		return c.ws.Write(ctx, websocket.MessageBinary, packV1(m.Channel, parts))
	}
	b, err := json.Marshal(legacy{
		Header: parts[0], Parent: parts[1], Metadata: parts[2], Content: parts[3], Channel: m.Channel, Buffers: []any{},
	})
	if err != nil {
		return err
	}
	return c.ws.Write(ctx, websocket.MessageText, b)
}

// Done implements Conn.
func (c *channels) Done() <-chan struct{} { return c.done }

// Close implements Conn.
func (c *channels) Close() { c.end() }

func (c *channels) end() (first bool) {
	c.once.Do(func() {
		first = true
		c.cancel()
		_ = c.ws.CloseNow()
	})
	return first
}

func (c *channels) read() {
	defer close(c.done)
	for {
		kind, b, size, err := c.next()
		if err != nil {
			if c.end() {
				c.handler.Broken(fmt.Errorf("the connection to the Jupyter server broke: %w", err))
			}
			return
		}
		if size > MaxMessage {
			// Only outputs can be that long.
			c.handler.Skipped(IOPub, size)
			continue
		}
		var m *Message
		switch {
		case kind == websocket.MessageBinary && c.v1:
			m, err = unpackV1(b)
		case kind == websocket.MessageBinary:
			m, err = unpackBinary(b)
		default:
			m, err = unpackLegacy(b)
		}
		if err == nil {
			c.handler.Message(m)
		}
	}
}

// next reads a message. Of one that is too long only the size is of use.
func (c *channels) next() (kind websocket.MessageType, b []byte, size int64, err error) {
	kind, r, err := c.ws.Reader(c.ctx)
	if err != nil {
		return 0, nil, 0, err
	}
	if b, err = io.ReadAll(io.LimitReader(r, MaxMessage)); err != nil {
		return 0, nil, 0, err
	}
	rest, err := io.Copy(io.Discard, r)
	return kind, b, int64(len(b)) + rest, err
}

// legacy is the older form of a message.
type legacy struct {
	Header   json.RawMessage `json:"header"`
	Parent   json.RawMessage `json:"parent_header"`
	Metadata json.RawMessage `json:"metadata"`
	Content  json.RawMessage `json:"content"`
	Channel  Channel         `json:"channel"`
	Buffers  []any           `json:"buffers"`
}

func unpackLegacy(b []byte) (*Message, error) {
	var l struct {
		legacy
		Buffers json.RawMessage `json:"buffers"`
	}
	if json.Unmarshal(b, &l) != nil {
		return nil, errNoMessage
	}
	m := &Message{Channel: l.Channel}
	return m, m.parse(l.Header, l.Parent, l.Content)
}

// unpackBinary reads a message of the older form with binary buffers: their
// number with the message itself, the offset of each, all big endian, and the
// buffers, the first of which is the message.
func unpackBinary(b []byte) (*Message, error) {
	if len(b) < 8 {
		return nil, errNoMessage
	}
	n := binary.BigEndian.Uint32(b)
	first := binary.BigEndian.Uint32(b[4:])
	end := uint32(len(b))
	if n > 1 && len(b) >= 12 {
		end = binary.BigEndian.Uint32(b[8:])
	}
	if n == 0 || first > end || int64(end) > int64(len(b)) {
		return nil, errNoMessage
	}
	return unpackLegacy(b[first:end])
}

// packV1 is the newer form: the number of offsets, the offsets of the channel's
// name and of each part, that of the end, all little endian in eight bytes, and
// what they point at.
func packV1(channel Channel, parts [4][]byte) []byte {
	all := [][]byte{[]byte(channel), parts[0], parts[1], parts[2], parts[3]}
	offset := uint64(8 * (len(all) + 2))
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(all)+1))
	for _, part := range all {
		b = binary.LittleEndian.AppendUint64(b, offset)
		offset += uint64(len(part))
	}
	b = binary.LittleEndian.AppendUint64(b, offset)
	for _, part := range all {
		b = append(b, part...)
	}
	return b
}

func unpackV1(b []byte) (*Message, error) {
	// The channel, four parts, and the end of the last: six offsets at least.
	const least = 6
	if len(b) < 8*(least+1) {
		return nil, errNoMessage
	}
	if n := binary.LittleEndian.Uint64(b); n < least || n > uint64(len(b))/8 {
		return nil, errNoMessage
	}
	var parts [least - 1][]byte
	for i := range parts {
		from, to := binary.LittleEndian.Uint64(b[8*(i+1):]), binary.LittleEndian.Uint64(b[8*(i+2):])
		if from > to || to > uint64(len(b)) {
			return nil, errNoMessage
		}
		parts[i] = b[from:to]
	}
	m := &Message{Channel: Channel(strings.ToLower(string(parts[0])))}
	return m, m.parse(parts[1], parts[2], parts[4])
}
