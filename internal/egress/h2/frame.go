package h2

import (
	"encoding/binary"

	"golang.org/x/net/http2"
)

const (
	headerLen = 9
	// maxFrame is the longest payload taken and sent, in bytes: what every
	// implementation takes (RFC 9113, 4.2). Longer frames would have to be cut
	// for some.
	maxFrame = 16384
	// preface is what a client begins with (RFC 9113, 3.4).
	preface = http2.ClientPreface
	// defaultWindow is a window before anybody says otherwise (RFC 9113, 6.9.2),
	// and maxWindow the largest there may be, in bytes.
	defaultWindow = 65535
	maxWindow     = 1<<31 - 1
	maxID         = 1<<31 - 1
)

// frame is one frame. The payload is part of a read buffer.
type frame struct {
	kind    http2.FrameType
	flags   http2.Flags
	id      uint32
	payload []byte
}

// parseFrame takes the first frame of b; n is its length, 0 while more of it
// must come.
func parseFrame(b []byte) (f frame, n int, err error) {
	if len(b) < headerLen {
		return f, 0, nil
	}
	size := int(b[0])<<16 | int(b[1])<<8 | int(b[2])
	if size > maxFrame {
		return f, 0, broken{http2.ErrCodeFrameSize, "a frame is longer than allowed"}
	}
	if len(b) < headerLen+size {
		return f, 0, nil
	}
	f.kind, f.flags = http2.FrameType(b[3]), http2.Flags(b[4])
	f.id = binary.BigEndian.Uint32(b[5:]) & maxID // the highest bit is reserved
	f.payload = b[headerLen : headerLen+size]
	return f, headerLen + size, nil
}

// unpad removes padding. What is left may be empty.
func (f *frame) unpad() ([]byte, error) {
	if f.flags&http2.FlagDataPadded == 0 {
		return f.payload, nil
	}
	if len(f.payload) == 0 || int(f.payload[0]) > len(f.payload)-1 {
		return nil, broken{http2.ErrCodeProtocol, "the padding of a frame is longer than the frame"}
	}
	return f.payload[1 : len(f.payload)-int(f.payload[0])], nil
}

func (f *frame) ends() bool { return f.flags&http2.FlagDataEndStream != 0 }

// broken ends a connection with GOAWAY. The text quotes nothing.
type broken struct {
	code   http2.ErrCode
	reason string
}

func (e broken) Error() string { return e.reason }

func appendHeader(b []byte, size int, kind http2.FrameType, flags http2.Flags, id uint32) []byte {
	b = append(b, byte(size>>16), byte(size>>8), byte(size), byte(kind), byte(flags))
	return binary.BigEndian.AppendUint32(b, id)
}

func appendNumber(b []byte, kind http2.FrameType, id, number uint32) []byte {
	return binary.BigEndian.AppendUint32(appendHeader(b, 4, kind, 0, id), number)
}

func appendSettings(b []byte, settings ...http2.Setting) []byte {
	b = appendHeader(b, 6*len(settings), http2.FrameSettings, 0, 0)
	for _, s := range settings {
		b = binary.BigEndian.AppendUint16(b, uint16(s.ID))
		b = binary.BigEndian.AppendUint32(b, s.Val)
	}
	return b
}

func appendGoAway(b []byte, last uint32, code http2.ErrCode, reason string) []byte {
	b = appendHeader(b, 8+len(reason), http2.FrameGoAway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, last)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, reason...)
}

// appendBlock appends a header block, in as many frames as it takes.
func appendBlock(b []byte, id uint32, block []byte, end bool) []byte {
	kind, flags := http2.FrameHeaders, http2.Flags(0)
	if end {
		flags = http2.FlagHeadersEndStream
	}
	for {
		n := min(len(block), maxFrame)
		if n == len(block) {
			flags |= http2.FlagHeadersEndHeaders
		}
		b = append(appendHeader(b, n, kind, flags, id), block[:n]...)
		if block = block[n:]; len(block) == 0 {
			return b
		}
		kind, flags = http2.FrameContinuation, 0
	}
}
