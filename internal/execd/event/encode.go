package event

import (
	"encoding/base64"
	"encoding/binary"
	"slices"
	"strconv"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// block is how much of a string is encoded between two looks for room.
const block = 128

// maxEscape is the longest that a byte becomes: \uXXXX.
const maxEscape = 6

// encoded is what one byte becomes in a JSON string, without looking at its
// neighbours. Size is 0 for the first byte of a longer UTF-8 sequence.
type encoded struct {
	bytes uint64 // the first in the lowest bits
	size  uint8
}

// table has what each byte becomes. Binary output is as hard to predict as it
// gets, so a branch for each byte would cost more than all the rest.
var table = func() (t [256]encoded) {
	for c := range t {
		var text []byte
		switch {
		case c >= 0xc2 && c <= 0xf4: // all that may begin a sequence (RFC 3629, 4)
		case c >= utf8.RuneSelf:
			text = utf8.AppendRune(nil, utf8.RuneError)
		case plain(byte(c)):
			text = []byte{byte(c)}
		default:
			text = appendEscape(nil, byte(c))
		}
		var b [8]byte
		t[c].size = uint8(copy(b[:], text))
		t[c].bytes = binary.LittleEndian.Uint64(b[:])
	}
	return t
}()

// plain reports whether c stands for itself.
func plain(c byte) bool {
	return c >= ' ' && c < 0x7f && c != '"' && c != '\\'
}

// appendString adds s as a JSON string. Each byte that is not part of valid
// UTF-8 becomes U+FFFD, as encoding/json has it. Control characters of C1 and
// the Unicode line separators are escaped, because some SDKs split the stream
// at everything that Unicode calls a line break, not only at "\n".
func appendString(buf []byte, s []byte) []byte {
	buf = append(buf, '"')
	for len(s) > 0 {
		n := 0
		for n < len(s) && plain(s[n]) {
			n++
		}
		buf = append(buf, s[:n]...)
		s = s[n:]
		if len(s) > 0 {
			buf, n = appendBlock(buf, s)
			s = s[n:]
		}
	}
	return append(buf, '"')
}

// appendBlock encodes the first block of s, to the end of the character on its
// border, and returns how many bytes that was.
func appendBlock(buf, s []byte) ([]byte, int) {
	end := min(len(s), block)
	// The last store may write 8 bytes where 6 were counted.
	buf = slices.Grow(buf, end*maxEscape+8)
	out := buf[:cap(buf)]
	i, j := 0, len(buf)
	for i < end {
		e := &table[s[i]]
		binary.LittleEndian.PutUint64(out[j:], e.bytes)
		j += int(e.size)
		i++
		if e.size > 0 {
			continue
		}
		if i == len(s) || utf8.RuneStart(s[i]) {
			j += copy(out[j:], "\ufffd") // only looked like a beginning
			continue
		}
		r, size := utf8.DecodeRune(s[i-1:])
		if r >= 0x80 && r < 0xa0 || r == 0x2028 || r == 0x2029 {
			j += copy(out[j:], []byte{'\\', 'u', hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15]})
		} else {
			j += utf8.EncodeRune(out[j:], r)
		}
		i += size - 1
	}
	return buf[:j], i
}

func appendEscape(buf []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(buf, '\\', c)
	case '\n':
		return append(buf, '\\', 'n')
	case '\r':
		return append(buf, '\\', 'r')
	case '\t':
		return append(buf, '\\', 't')
	}
	return append(buf, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
}

// appendOutput adds an output event. text is without its terminator eol; end is
// what appendEnd gives.
func appendOutput(buf []byte, kind string, text, eol, end []byte) []byte {
	buf = append(buf, `data: {"type":"`...)
	buf = append(buf, kind...)
	buf = append(buf, `","text":`...)
	if len(text) == 0 {
		// An empty line.
		buf = append(buf, `"\n"`...)
	} else {
		buf = appendString(buf, text)
	}
	if len(eol) != 1 && (len(eol) > 0 || len(text) > 0) {
		buf = append(buf, `,"eol":`...)
		buf = appendString(buf, eol)
	}
	if !utf8.Valid(text) {
		buf = append(buf, `,"raw":"`...)
		buf = base64.StdEncoding.AppendEncode(buf, text)
		buf = append(buf, '"')
	}
	return append(buf, end...)
}

func appendInt(buf []byte, n int64) []byte { return strconv.AppendInt(buf, n, 10) }

// appendEnd adds the timestamp and closes the event.
func appendEnd(buf []byte, unixMilli int64) []byte {
	buf = append(buf, `,"timestamp":`...)
	buf = appendInt(buf, unixMilli)
	return append(buf, "}\n\n"...)
}

// appendText adds an event with a type and a text.
func appendText(buf []byte, kind, text string, unixMilli int64) []byte {
	buf = append(buf, `data: {"type":"`...)
	buf = append(buf, kind...)
	buf = append(buf, `","text":`...)
	buf = appendString(buf, []byte(text))
	return appendEnd(buf, unixMilli)
}
