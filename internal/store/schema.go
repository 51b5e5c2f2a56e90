package store

import (
	"database/sql"
	"fmt"
)

// migrations bring a file from schema version i to i+1 (PRAGMA user_version).
// One that was released is never changed; a new one is appended.
var migrations = []string{
	// WITHOUT ROWID: one tree to write per change instead of two.
	`CREATE TABLE sandboxes (
		id         TEXT PRIMARY KEY,
		state      TEXT NOT NULL,
		expires_at INTEGER, -- Unix milliseconds, NULL for never
		revision   INTEGER NOT NULL,
		record     BLOB NOT NULL -- JSON
	) STRICT, WITHOUT ROWID;
	CREATE TABLE idempotency_keys (
		name       TEXT PRIMARY KEY,
		body_hash  TEXT NOT NULL,
		sandbox_id TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
		created_at INTEGER NOT NULL -- Unix milliseconds
	) STRICT, WITHOUT ROWID;
	CREATE INDEX idempotency_keys_sandbox ON idempotency_keys (sandbox_id);
	CREATE INDEX idempotency_keys_created ON idempotency_keys (created_at);`,
}

func migrate(db *sql.DB) error {
	var version int
	if err := db.QueryRow("PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if version > len(migrations) {
		return fmt.Errorf("it was written by a newer version of paddock (its schema is %d, this one knows up to %d); install that version again",
			version, len(migrations))
	}
	for ; version < len(migrations); version++ {
		if err := migrateOne(db, version); err != nil {
			return fmt.Errorf("bringing the schema from version %d to %d: %w", version, version+1, err)
		}
	}
	return nil
}

func migrateOne(db *sql.DB, version int) error {
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback() // nothing after a commit
	if _, err := tx.Exec(migrations[version]); err != nil {
		return err
	}
	// A pragma takes no parameters; the version is in the same transaction.
	if _, err := tx.Exec(fmt.Sprintf("PRAGMA user_version = %d", version+1)); err != nil {
		return err
	}
	return tx.Commit()
}
