package command

import (
	"encoding/hex"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/history"
)

// record is what is remembered of a command that has ended. There are hundreds
// of them in every sandbox, so it is small and lies in one array: objects that
// are kept among the short-lived ones of requests would hold their memory.
type record struct {
	id       key
	code     int32
	content  string
	message  string
	started  int64 // Unix time in ns
	finished int64
	ring     *history.Ring
}

// key is an id in binary.
type key [16]byte

// parseKey reads an id as it is shown. What is not one is not remembered either.
func parseKey(id string) (k key, ok bool) {
	if len(id) != hex.EncodedLen(len(k)) {
		return k, false
	}
	_, err := hex.Decode(k[:], []byte(id))
	return k, err == nil && hex.EncodeToString(k[:]) == id
}

func newRecord(c *Command) record {
	k, _ := parseKey(c.ID)
	c.mu.Lock()
	defer c.mu.Unlock()
	return record{
		id: k, code: int32(c.outcome.code), content: c.Content, message: c.outcome.message,
		started: c.Started.UnixNano(), finished: c.outcome.finished.UnixNano(), ring: c.ring,
	}
}

func (r *record) status(id string) status {
	code, finished := int(r.code), time.Unix(0, r.finished)
	return status{ID: id, Content: r.content, ExitCode: &code, Error: r.message, Started: time.Unix(0, r.started), Finished: &finished}
}
