package enginetest

import (
	"strings"
	"testing"
)

func TestReadEvents(t *testing.T) {
	for _, c := range []struct {
		name, stream, stdout string
		code                 int
		fails                bool
	}{
		{"framed", "data: {\"type\":\"init\"}\n\ndata: {\"type\":\"stdout\",\"text\":\"a\"}\n\ndata: {\"type\":\"execution_complete\"}\n\n", "a\n", 0, false},
		{"bare", "{\"type\":\"stdout\",\"text\":\"a\"}\n\n{\"type\":\"error\",\"error\":{\"evalue\":\"7\"}}\n\n", "a\n", 7, false},
		{"other lines", ": comment\nevent: x\n\ndata: {\"type\":\"ping\"}\n\ndata: {\"type\":\"execution_complete\"}\n\n", "", 0, false},
		{"no program", "data: {\"type\":\"error\",\"error\":{\"evalue\":\"no such file\"}}\n\n", "", 0, true},
		{"cut off", "data: {\"type\":\"stdout\",\"text\":\"a\"}\n\n", "", 0, true},
		{"not JSON", "data: {oops\n\n", "", 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			stdout, code, err := readEvents(strings.NewReader(c.stream))
			if stdout != c.stdout || code != c.code || (err != nil) != c.fails {
				t.Errorf("got %q, %d, %v", stdout, code, err)
			}
		})
	}
}
