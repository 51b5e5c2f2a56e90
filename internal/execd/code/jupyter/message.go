package jupyter

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"time"
)

// Channel is one of a kernel's channels.
type Channel string

// The channels of a kernel.
const (
	Shell   Channel = "shell"
	Control Channel = "control"
	Stdin   Channel = "stdin"
	IOPub   Channel = "iopub"
)

// version is that of the messaging protocol.
const version = "5.3"

// delimiter stands between routing prefixes and a message ("The Wire Protocol").
var delimiter = []byte("<IDS|MSG>")

// Header begins a message.
type Header struct {
	ID      string `json:"msg_id"`
	Type    string `json:"msg_type"`
	Session string `json:"session"`
	User    string `json:"username"`
	Date    string `json:"date"`
	Version string `json:"version"`
}

// Message is one message of a channel.
type Message struct {
	Channel Channel
	Header  Header
	// Parent is the id of the message that this one follows from, empty for
	// none.
	Parent string
	// Content is a JSON object.
	Content json.RawMessage
}

// NewID returns an id that nobody can guess.
func NewID() string {
	var b [16]byte
	// Never fails on Linux (crypto/rand).
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// NewMessage returns a message of a session that follows from no other. content
// is anything that encodes as a JSON object.
func NewMessage(session string, channel Channel, kind string, content any) (*Message, error) {
	b, err := json.Marshal(content)
	if err != nil {
		return nil, err
	}
	return &Message{
		Channel: channel,
		Header: Header{
			ID: NewID(), Type: kind, Session: session, User: "paddock",
			Date: time.Now().UTC().Format("2006-01-02T15:04:05.000000Z"), Version: version,
		},
		Content: b,
	}, nil
}

// errNoMessage is the error for what is no message of the protocol.
var errNoMessage = errors.New("not a message of the Jupyter protocol")

// parts are the four parts of a message that are signed.
func (m *Message) parts() ([4][]byte, error) {
	header, err := json.Marshal(m.Header)
	if err != nil {
		return [4][]byte{}, err
	}
	return [4][]byte{header, []byte("{}"), []byte("{}"), m.Content}, nil
}

// parse fills a message from its four parts.
func (m *Message) parse(header, parent, content []byte) error {
	if json.Unmarshal(header, &m.Header) != nil || m.Header.Type == "" {
		return errNoMessage
	}
	var from struct {
		ID string `json:"msg_id"`
	}
	if len(parent) > 0 && json.Unmarshal(parent, &from) != nil {
		return errNoMessage
	}
	if content = bytes.TrimSpace(content); len(content) == 0 || content[0] != '{' {
		return errNoMessage
	}
	m.Parent, m.Content = from.ID, content
	return nil
}

// sign is the signature of a message's parts, in hexadecimal.
func sign(key []byte, parts [4][]byte) []byte {
	mac := hmac.New(sha256.New, key)
	for _, p := range parts {
		mac.Write(p)
	}
	return hex.AppendEncode(nil, mac.Sum(nil))
}

// encode returns the frames of a message.
func (m *Message) encode(key []byte) ([][]byte, error) {
	parts, err := m.parts()
	if err != nil {
		return nil, err
	}
	return [][]byte{delimiter, sign(key, parts), parts[0], parts[1], parts[2], parts[3]}, nil
}

// decode reads a message from its frames. What precedes the delimiter, a topic,
// and binary buffers at the end are of no interest here.
func decode(channel Channel, key []byte, frames [][]byte) (*Message, error) {
	for len(frames) > 0 && !bytes.Equal(frames[0], delimiter) {
		frames = frames[1:]
	}
	if len(frames) < 6 {
		return nil, errNoMessage
	}
	parts := [4][]byte(frames[2:6])
	if !hmac.Equal(frames[1], sign(key, parts)) {
		return nil, errors.New("the signature of a message is wrong")
	}
	m := &Message{Channel: channel}
	return m, m.parse(parts[0], parts[1], parts[3])
}
