package files

import (
	"encoding/json"
	"unicode/utf8"

	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// readBody decodes a JSON body with paths or text in it.
func (c *call) readBody(v any) error {
	var raw json.RawMessage
	if err := web.ReadJSON(c.w, c.r, &raw); err != nil {
		return err
	}
	if !wellFormed(raw) {
		return badUnicode()
	}
	return web.DecodeJSON(raw, v)
}

func badUnicode() error {
	return web.BadBody("the request body is not well-formed Unicode; a path that is not UTF-8 can only be given percent-encoded in a query parameter")
}

// wellFormed reports whether a JSON text holds UTF-8 and no half of a surrogate
// pair. The decoder would put U+FFFD in their place, which in a path means
// another file.
func wellFormed(text []byte) bool {
	if !utf8.Valid(text) {
		return false
	}
	for i := 0; i < len(text); i++ {
		// Outside of strings JSON has no backslash.
		if text[i] != '\\' {
			continue
		}
		unit, ok := escaped(text[i:])
		if !ok {
			i++ // another escape: skip the character that is escaped
			continue
		}
		i += 5
		switch {
		case unit >= 0xdc00 && unit <= 0xdfff:
			return false
		case unit >= 0xd800 && unit <= 0xdbff:
			low, ok := escaped(text[i+1:])
			if !ok || low < 0xdc00 || low > 0xdfff {
				return false
			}
			i += 6
		}
	}
	return true
}

// escaped reads \uXXXX at the beginning of text.
func escaped(text []byte) (unit uint16, ok bool) {
	if len(text) < 6 || text[0] != '\\' || text[1] != 'u' {
		return 0, false
	}
	for _, c := range text[2:6] {
		unit <<= 4
		switch {
		case c >= '0' && c <= '9':
			unit |= uint16(c - '0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			unit |= uint16(c|0x20-'a') + 10
		default:
			return 0, false
		}
	}
	return unit, true
}
