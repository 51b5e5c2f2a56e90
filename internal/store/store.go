package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// busyTimeout bounds the wait for a lock on the file that somebody else holds,
// for instance a person's sqlite3 shell.
const busyTimeout = 5 * time.Second

// ErrLocked is returned by Open when another process has the file open.
var ErrLocked = errors.New("another paddock process uses this data directory")

// ErrDamaged is returned by Open when the file is not a sound database.
var ErrDamaged = errors.New("the record database is damaged")

var _ sandbox.Store = (*Store)(nil)

// Store implements sandbox.Store. Its methods may be called in parallel; writes
// take turns on one connection.
type Store struct {
	path   string
	lock   *os.File
	writer *sql.DB // one connection
	other  *sql.DB // one connection, for checkpoints beside the writer

	turn chan struct{} // whoever puts a token in may use the writer
	stmt struct {
		insert, insertKey, update, delete, all, key, dropKeys *sql.Stmt
	}

	writes     atomic.Int64 // since the last checkpoint
	checkpoint chan struct{}
	stop       chan struct{}
	wg         sync.WaitGroup
	closeOnce  sync.Once
	closeErr   error
}

// Open opens the file, makes it (readable by its owner only) when it is
// missing, and brings its schema up to date.
func Open(path string) (_ *Store, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("opening the record database: %w", err)
	}
	s := &Store{
		path:       path,
		turn:       make(chan struct{}, 1),
		checkpoint: make(chan struct{}, 1),
		stop:       make(chan struct{}),
	}
	defer func() {
		if err != nil {
			s.closeFiles()
			err = explain(path, err)
		}
	}()
	if err := s.prepareFiles(); err != nil {
		return nil, err
	}
	if s.writer, err = connect(path); err != nil {
		return nil, err
	}
	if err := checkSound(s.writer); err != nil {
		return nil, err
	}
	if err := migrate(s.writer); err != nil {
		return nil, err
	}
	if s.other, err = connect(path); err != nil {
		return nil, err
	}
	if err := s.prepareStatements(); err != nil {
		return nil, err
	}
	s.wg.Add(1)
	go s.checkpointLoop()
	return s, nil
}

// prepareFiles takes the lock and makes sure of the file's mode before SQLite
// sees it; SQLite gives its own files beside it the same mode.
func (s *Store) prepareFiles() (err error) {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o700); err != nil {
		return err
	}
	s.lock, err = os.OpenFile(s.path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return ErrLocked
		}
		return fmt.Errorf("locking %s: %w", s.lock.Name(), err)
	}
	f, err := os.OpenFile(s.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Chmod(0o600)
}

func connect(path string) (*sql.DB, error) {
	q := url.Values{"_pragma": {
		fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds()),
		"journal_mode(WAL)",
		"synchronous(NORMAL)",
		"foreign_keys(1)",
		// Checkpoints run beside the writer, see checkpointLoop.
		"wal_autocheckpoint(0)",
		fmt.Sprintf("journal_size_limit(%d)", maxWALBytes),
	}}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, err
	}
	// One connection that stays: prepared statements and pragmas live in it.
	db.SetMaxOpenConns(1)
	db.SetMaxIdleConns(1)
	db.SetConnMaxLifetime(0)
	db.SetConnMaxIdleTime(0)
	if err := db.Ping(); err != nil {
		db.Close()
		return nil, err
	}
	return db, nil
}

func checkSound(db *sql.DB) error {
	var verdict string
	if err := db.QueryRow("PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		return err
	}
	if verdict != "ok" {
		return fmt.Errorf("%w: %s", ErrDamaged, verdict)
	}
	return nil
}

// explain turns what SQLite says into what to do.
func explain(path string, err error) error {
	var serr *sqlite.Error
	if errors.As(err, &serr) {
		switch serr.Code() & 0xff { // the low byte is the primary code
		case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
			err = fmt.Errorf("%w: %w", ErrDamaged, err)
		}
	}
	if errors.Is(err, ErrDamaged) {
		return fmt.Errorf("%s: %w; put a backup in its place, or move it away together with its -wal and -shm files and start again: "+
			"paddock then knows no sandboxes and removes those that still run", path, err)
	}
	return fmt.Errorf("opening the record database %s: %w", path, err)
}

func (s *Store) prepareStatements() error {
	for _, p := range []struct {
		into  **sql.Stmt
		query string
	}{
		{&s.stmt.insert, "INSERT INTO sandboxes (id, state, expires_at, revision, record) VALUES (?, ?, ?, ?, ?)"},
		{&s.stmt.insertKey, "INSERT INTO idempotency_keys (name, body_hash, sandbox_id, created_at) VALUES (?, ?, ?, ?)"},
		// Equal is allowed: a write whose outcome was unknown is repeated.
		{&s.stmt.update, "UPDATE sandboxes SET state = ?2, expires_at = ?3, revision = ?4, record = ?5 WHERE id = ?1 AND revision <= ?4"},
		{&s.stmt.delete, "DELETE FROM sandboxes WHERE id = ?"},
		{&s.stmt.all, "SELECT id, record FROM sandboxes"},
		{&s.stmt.key, "SELECT body_hash, sandbox_id, created_at FROM idempotency_keys WHERE name = ?"},
		{&s.stmt.dropKeys, "DELETE FROM idempotency_keys WHERE created_at < ?"},
	} {
		st, err := s.writer.Prepare(p.query)
		if err != nil {
			return err
		}
		*p.into = st
	}
	return nil
}

// use runs f while no other call uses the writer. The wait for the turn ends
// with the context; f itself runs to its end, because a statement that is
// broken off tells nobody whether it took effect.
func (s *Store) use(ctx context.Context, f func() error) error {
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-s.stop:
		return errors.New("the record database is closed")
	default:
	}
	return f()
}

// Insert adds a record, and with it the idempotency key when there is one.
func (s *Store) Insert(ctx context.Context, sb *sandbox.Sandbox, key *sandbox.IdempotencyKey) error {
	row, err := encode(sb)
	if err != nil {
		return err
	}
	defer s.wrote()
	return s.use(ctx, func() error {
		if key == nil {
			_, err := s.stmt.insert.Exec(row...)
			return err
		}
		return s.insertWithKey(row, key)
	})
}

func (s *Store) insertWithKey(row []any, key *sandbox.IdempotencyKey) error {
	tx, err := s.writer.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback() // nothing after a commit
	if _, err := tx.Stmt(s.stmt.insert).Exec(row...); err != nil {
		return err
	}
	_, err = tx.Stmt(s.stmt.insertKey).Exec(key.Name, key.BodyHash, key.SandboxID, key.CreatedAt.UnixMilli())
	var serr *sqlite.Error
	if errors.As(err, &serr) && serr.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY {
		return sandbox.ErrKeyTaken
	}
	if err != nil {
		return err
	}
	return tx.Commit()
}

// Update replaces a record. It fails when there is none, or one with a higher
// revision.
func (s *Store) Update(ctx context.Context, sb *sandbox.Sandbox) error {
	row, err := encode(sb)
	if err != nil {
		return err
	}
	defer s.wrote()
	return s.use(ctx, func() error {
		res, err := s.stmt.update.Exec(row...)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 1 {
			return err
		}
		return fmt.Errorf("no record of sandbox %q with revision %d or lower exists", sb.ID, sb.Revision)
	})
}

// Delete removes a record and the idempotency keys that name it.
func (s *Store) Delete(ctx context.Context, id string) error {
	defer s.wrote()
	return s.use(ctx, func() error {
		_, err := s.stmt.delete.Exec(id) // the keys go by their foreign key
		return err
	})
}

// All returns every record.
func (s *Store) All(ctx context.Context) (all []*sandbox.Sandbox, err error) {
	err = s.use(ctx, func() error {
		rows, err := s.stmt.all.Query()
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var id string
			var record sql.RawBytes
			if err := rows.Scan(&id, &record); err != nil {
				return err
			}
			sb := new(sandbox.Sandbox)
			if err := json.Unmarshal(record, sb); err != nil {
				return fmt.Errorf("the record of sandbox %q can't be read: %w", id, err)
			}
			if sb.ID != id {
				return fmt.Errorf("the record of sandbox %q names %q", id, sb.ID)
			}
			all = append(all, sb)
		}
		return rows.Err()
	})
	return all, err
}

// Key returns an idempotency key, or nil.
func (s *Store) Key(ctx context.Context, name string) (key *sandbox.IdempotencyKey, err error) {
	err = s.use(ctx, func() error {
		k := &sandbox.IdempotencyKey{Name: name}
		var created int64
		switch err := s.stmt.key.QueryRow(name).Scan(&k.BodyHash, &k.SandboxID, &created); {
		case errors.Is(err, sql.ErrNoRows):
			return nil
		case err != nil:
			return err
		}
		k.CreatedAt = time.UnixMilli(created).UTC()
		key = k
		return nil
	})
	return key, err
}

// DropKeys removes idempotency keys made before a time.
func (s *Store) DropKeys(ctx context.Context, before time.Time) error {
	defer s.wrote()
	return s.use(ctx, func() error {
		_, err := s.stmt.dropKeys.Exec(before.UnixMilli())
		return err
	})
}

// encode returns the columns of a record, in the order of the statements.
func encode(sb *sandbox.Sandbox) ([]any, error) {
	record, err := json.Marshal(sb)
	if err != nil {
		return nil, fmt.Errorf("encoding the record of sandbox %q: %w", sb.ID, err)
	}
	var expires any
	if sb.ExpiresAt != nil {
		expires = sb.ExpiresAt.UnixMilli()
	}
	return []any{sb.ID, string(sb.Status.State), expires, sb.Revision, record}, nil
}

// Close writes the log back into the file and closes it. Calls that wait for
// their turn fail. It may be called more than once.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		close(s.stop)
		s.wg.Wait()
		s.turn <- struct{}{} // whoever is writing finishes; nobody follows
		s.closeErr = s.closeFiles()
		<-s.turn
	})
	return s.closeErr
}

func (s *Store) closeFiles() error {
	var errs []error
	if s.other != nil {
		errs = append(errs, s.other.Close())
	}
	if s.writer != nil {
		errs = append(errs, s.writer.Close()) // the last one checkpoints
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}
