package event

import (
	"encoding/base64"
	"strconv"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// appendString adds s as a JSON string. Invalid UTF-8 becomes U+FFFD, as
// encoding/json has it. Control characters of C1 and the Unicode line
// separators are escaped, because some SDKs split the stream at everything that
// Unicode calls a line break, not only at "\n".
func appendString(buf []byte, s []byte) []byte {
	buf = append(buf, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < utf8.RuneSelf && c != '"' && c != '\\' && c != 0x7f {
			i++
			continue
		}
		if c < utf8.RuneSelf {
			buf = append(buf, s[start:i]...)
			buf = appendEscape(buf, c)
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRune(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			buf = append(buf, s[start:i]...)
			buf = append(buf, `\ufffd`...)
			start = i + size
		case r >= 0x80 && r < 0xa0 || r == 0x2028 || r == 0x2029:
			buf = append(buf, s[start:i]...)
			buf = append(buf, '\\', 'u', hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
			start = i + size
		}
		i += size
	}
	buf = append(buf, s[start:]...)
	return append(buf, '"')
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

// appendOutput adds an output event. text is without its terminator eol.
func appendOutput(buf []byte, kind string, text, eol []byte, unixMilli int64) []byte {
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
	return appendEnd(buf, unixMilli)
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
