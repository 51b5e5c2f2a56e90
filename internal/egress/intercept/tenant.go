package intercept

import (
	"container/list"
	"crypto/rand"
	"crypto/tls"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxConns2 bounds the inspected HTTP/2 connections of one sandbox, and
	// maxHeld the bytes that all of them keep here: bodies that a credential goes
	// into, and what a side would not take although it had said that it would.
	maxConns2 = 256
	maxHeld   = 64 << 20
	// maxTenants is for how many sandboxes without a connection TLS sessions are
	// remembered, and maxSessions how many of one sandbox towards destinations.
	maxTenants, maxSessions = 1024, 32
	// keyTime is how long new tickets are made with one key; old ones are taken
	// as long again. Clients may use a ticket for a week (RFC 8446, 4.6.1).
	keyTime = 12 * time.Hour
)

// tenant is what the connections of one sandbox have together, and with those of
// no other: a session that is resumed tells a destination that it is the same
// client, and a ticket must not carry one from sandbox to sandbox.
type tenant struct {
	sandbox string
	used    int // connections, counted by the Interceptor
	conns2  atomic.Int64
	held    atomic.Int64
	// sessions are those with destinations.
	sessions tls.ClientSessionCache

	mu   sync.Mutex
	keys [][32]byte // of tickets for the sandbox, the newest first
	made time.Time
}

// tenants are those with connections and some that had.
type tenants struct {
	mu     sync.Mutex
	all    map[string]*list.Element // of *tenant
	recent list.List                // the last used first
}

// enter finds what a new connection shares.
func (ts *tenants) enter(sandbox string) *tenant {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	e := ts.all[sandbox]
	if e == nil {
		e = ts.recent.PushFront(&tenant{sandbox: sandbox, sessions: tls.NewLRUClientSessionCache(maxSessions)})
		ts.all[sandbox] = e
	}
	ts.recent.MoveToFront(e)
	t := e.Value.(*tenant)
	t.used++
	for e := ts.recent.Back(); ts.recent.Len() > maxTenants && e != nil; {
		last := e
		e = e.Prev()
		if t := last.Value.(*tenant); t.used == 0 {
			delete(ts.all, t.sandbox)
			ts.recent.Remove(last)
		}
	}
	return t
}

func (ts *tenants) leave(t *tenant) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	t.used--
}

// enter2 counts a connection over HTTP/2.
func (t *tenant) enter2() bool {
	if t.conns2.Add(1) > maxConns2 {
		t.conns2.Add(-1)
		return false
	}
	return true
}

func (t *tenant) leave2() { t.conns2.Add(-1) }

// hold counts bytes that are kept, and reports whether they may be.
func (t *tenant) hold(n int) bool { return t.held.Add(int64(n)) <= maxHeld }

// ticketKeys are those of the sandbox.
func (t *tenant) ticketKeys(now time.Time) [][32]byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	if age := now.Sub(t.made); len(t.keys) == 0 || age > keyTime {
		var key [32]byte
		_, _ = rand.Read(key[:]) // it never fails
		keys := [][32]byte{key}
		if len(t.keys) > 0 && age < 2*keyTime {
			keys = append(keys, t.keys[0])
		}
		t.keys, t.made = keys, now
	}
	return t.keys
}
