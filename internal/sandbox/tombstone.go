package sandbox

import (
	"fmt"
	"sync"
	"time"
)

const (
	// graveTime is how long a removed sandbox's fate is remembered.
	graveTime = 10 * time.Minute
	// maxGraves bounds how many are.
	maxGraves = 4096
)

// tombstones remember what became of removed sandboxes, so that the client
// which comes too late is told. They are a courtesy: lost with the process, and
// overwritten oldest first.
type tombstones struct {
	mu   sync.Mutex
	now  func() time.Time
	by   map[string]tombstone
	ring []string
	next int
}

type tombstone struct {
	reason string
	at     time.Time
}

func (g *tombstones) init(now func() time.Time) {
	g.now = now
	g.by = make(map[string]tombstone)
}

func (g *tombstones) add(id, reason string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.ring) < maxGraves {
		g.ring = append(g.ring, id)
	} else {
		delete(g.by, g.ring[g.next])
		g.ring[g.next] = id
		g.next = (g.next + 1) % maxGraves
	}
	g.by[id] = tombstone{reason: reason, at: g.now()}
}

// notFound is ErrNotFound with what is known of the id.
func (g *tombstones) notFound(id string) *Error {
	g.mu.Lock()
	t, ok := g.by[id]
	g.mu.Unlock()
	err := ErrNotFound(id)
	if !ok || g.now().Sub(t.at) > graveTime {
		return err
	}
	at := t.at.Format(time.RFC3339)
	switch t.reason {
	case ReasonExpired:
		err.Message = fmt.Sprintf("Sandbox %q was not found: it expired and was removed at %s.", id, at)
	default:
		err.Message = fmt.Sprintf("Sandbox %q was not found: it was deleted at %s.", id, at)
	}
	return err
}
