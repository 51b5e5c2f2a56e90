package sandbox

import (
	"context"
	"errors"
	"time"
)

// ErrKeyTaken is returned by Store.Insert when the idempotency key exists. The
// record is then not inserted.
var ErrKeyTaken = errors.New("the idempotency key is taken")

// Store keeps records so that a server which died at any instant finds them
// again. Each call is one transaction and durable against the death of the
// process when it returns. Calls may run in parallel.
type Store interface {
	// Insert adds a record. When key is not nil it is stored in the same
	// transaction; ErrKeyTaken is returned when a key of that name exists.
	Insert(ctx context.Context, s *Sandbox, key *IdempotencyKey) error
	// Update replaces the record of s.ID.
	Update(ctx context.Context, s *Sandbox) error
	// Delete removes the record and the idempotency keys that name it.
	// Removing what is not there is no error.
	Delete(ctx context.Context, id string) error
	// All returns every record.
	All(ctx context.Context) ([]*Sandbox, error)
	// Key returns the idempotency key of that name, or nil.
	Key(ctx context.Context, name string) (*IdempotencyKey, error)
	// DropKeys removes idempotency keys made before the given time.
	DropKeys(ctx context.Context, before time.Time) error
}

// IdempotencyKey binds a client's key to the create that it made.
type IdempotencyKey struct {
	Name      string
	BodyHash  string
	SandboxID string
	CreatedAt time.Time
}
