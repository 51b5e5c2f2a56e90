package store

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// childEnv makes the test binary a writer that is killed, see TestKill9.
const childEnv = "PADDOCK_STORE_TEST_CHILD"

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		writeUntilKilled(path)
	}
	os.Exit(m.Run())
}

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return s
}

func record(id string) *sandbox.Sandbox {
	at := time.Date(2030, 1, 2, 3, 4, 5, 678, time.UTC)
	return &sandbox.Sandbox{
		ID:         id,
		Spec:       sandbox.Spec{Image: "python:3.11", Env: map[string]string{"A": "b"}, Auth: &sandbox.RegistryAuth{Password: "hunter2"}},
		Status:     sandbox.Status{State: sandbox.Pending, LastTransitionAt: at},
		Entrypoint: []string{"sleep", "1"},
		CreatedAt:  at, ExpiresAt: &at, Token: "t", Revision: 1,
	}
}

func byID(t *testing.T, s *Store) map[string]*sandbox.Sandbox {
	t.Helper()
	all, err := s.All(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := make(map[string]*sandbox.Sandbox)
	for _, sb := range all {
		m[sb.ID] = sb
	}
	return m
}

func TestRecordSurvivesReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub dir", "a?b%41.db") // characters with a meaning in a URI
	s := open(t, path)
	if err := s.Insert(t.Context(), record("a"), nil); err != nil {
		t.Fatal(err)
	}
	b := record("b")
	if err := s.Insert(t.Context(), b, nil); err != nil {
		t.Fatal(err)
	}
	b.Revision, b.Status.State, b.ExpiresAt = 2, sandbox.Running, nil
	if err := s.Update(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), "a"); err != nil {
		t.Fatalf("deleting what is not there: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}

	all := byID(t, open(t, path))
	got := all["b"]
	if len(all) != 1 || got == nil {
		t.Fatalf("records after reopening: %v", all)
	}
	if got.Status.State != sandbox.Running || got.Revision != 2 || got.ExpiresAt != nil || !got.CreatedAt.Equal(b.CreatedAt) || got.Spec.Env["A"] != "b" {
		t.Fatalf("got %+v", got)
	}
	if got.Spec.Auth != nil {
		t.Fatal("the registry password was stored")
	}
}

func TestFilesArePrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.db")
	if err := os.WriteFile(path, nil, 0o644); err != nil { // an old mask
		t.Fatal(err)
	}
	s := open(t, path)
	if err := s.Insert(t.Context(), record("a"), nil); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"", "-wal", "-shm", ".lock"} {
		fi, err := os.Stat(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", fi.Name(), fi.Mode().Perm())
		}
	}
}

func TestUpdateRefusesStaleAndMissing(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "r.db"))
	a := record("a")
	if err := s.Update(t.Context(), a); err == nil {
		t.Error("an update of a missing record succeeded")
	}
	a.Revision = 5
	if err := s.Insert(t.Context(), a, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Update(t.Context(), a); err != nil {
		t.Errorf("repeating a write: %v", err)
	}
	a.Revision = 4
	if err := s.Update(t.Context(), a); err == nil {
		t.Error("a stale update succeeded")
	}
	if err := s.Insert(t.Context(), a, nil); err == nil {
		t.Error("a second insert succeeded")
	}
}

func TestIdempotencyKeys(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "r.db"))
	at := time.Now().Truncate(time.Millisecond).UTC()
	key := &sandbox.IdempotencyKey{Name: "k", BodyHash: "h", SandboxID: "a", CreatedAt: at}
	if got, err := s.Key(t.Context(), "k"); got != nil || err != nil {
		t.Fatalf("a key that was never made: %v, %v", got, err)
	}
	if err := s.Insert(t.Context(), record("a"), key); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Key(t.Context(), "k"); err != nil || *got != *key {
		t.Fatalf("got %+v, %v", got, err)
	}
	other := *key
	other.SandboxID = "b"
	if err := s.Insert(t.Context(), record("b"), &other); !errors.Is(err, sandbox.ErrKeyTaken) {
		t.Fatalf("a taken key: %v", err)
	}
	if len(byID(t, s)) != 1 {
		t.Fatal("the record of a taken key was inserted")
	}
	if err := s.DropKeys(t.Context(), at); err != nil {
		t.Fatal(err)
	}
	if got, _ := s.Key(t.Context(), "k"); got == nil {
		t.Fatal("DropKeys dropped a key that is not older")
	}
	if err := s.DropKeys(t.Context(), at.Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if got, _ := s.Key(t.Context(), "k"); got != nil {
		t.Fatal("DropKeys kept an old key")
	}
	if err := s.Insert(t.Context(), record("b"), &other); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if got, _ := s.Key(t.Context(), "k"); got != nil {
		t.Fatal("the key outlived its sandbox")
	}
}

func TestParallelCalls(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "r.db"))
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 150 { // enough for checkpoints in between
				sb := record(fmt.Sprintf("%d-%d", w, i))
				if err := s.Insert(t.Context(), sb, nil); err != nil {
					t.Error(err)
					return
				}
				sb.Revision++
				if err := s.Update(t.Context(), sb); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := len(byID(t, s)); n != 8*150 {
		t.Fatalf("%d records", n)
	}
}

func TestCanceledWhileWaiting(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "r.db"))
	s.turn <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Insert(ctx, record("a"), nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	<-s.turn
	if len(byID(t, s)) != 0 {
		t.Fatal("a canceled insert took effect")
	}
}

func TestOpenErrors(t *testing.T) {
	t.Run("second process", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "r.db")
		s := open(t, path)
		if _, err := Open(path); !errors.Is(err, ErrLocked) {
			t.Fatalf("got %v", err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		open(t, path)
	})
	t.Run("not a database", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "r.db")
		if err := os.WriteFile(path, []byte(strings.Repeat("this is not it. ", 512)), 0o600); err != nil {
			t.Fatal(err)
		}
		wantDamaged(t, path)
	})
	t.Run("overwritten page", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "r.db")
		s := open(t, path)
		for i := range 200 {
			if err := s.Insert(t.Context(), record(fmt.Sprint(i)), nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte(strings.Repeat("\xff", 3*pageBytes)), 2*pageBytes); err != nil {
			t.Fatal(err)
		}
		f.Close()
		wantDamaged(t, path)
	})
	t.Run("newer schema", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "r.db")
		s := open(t, path)
		if _, err := s.writer.Exec("PRAGMA user_version = 99"); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "newer version") {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("unreadable record", func(t *testing.T) {
		s := open(t, filepath.Join(t.TempDir(), "r.db"))
		if _, err := s.writer.Exec("INSERT INTO sandboxes VALUES ('x', 'Running', NULL, 1, CAST('{' AS BLOB))"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.All(t.Context()); err == nil || !strings.Contains(err.Error(), `"x"`) {
			t.Fatalf("got %v", err)
		}
	})
}

func wantDamaged(t *testing.T, path string) {
	t.Helper()
	_, err := Open(path)
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "backup") {
		t.Fatalf("got %v", err)
	}
}

// TestMigrationIsAtomic: a migration that fails half way leaves the file at the
// version before it.
func TestMigrationIsAtomic(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.db")
	open(t, path).Close()
	released := migrations
	t.Cleanup(func() { migrations = released })
	migrations = append(append([]string{}, released...), "CREATE TABLE extra (x); CREATE TABLE sandboxes (x)")
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "from version 1 to 2") {
		t.Fatalf("got %v", err)
	}
	migrations = released
	s := open(t, path)
	var name string
	if err := s.writer.QueryRow("SELECT name FROM sqlite_schema WHERE name = 'extra'").Scan(&name); !errors.Is(err, sql.ErrNoRows) {
		t.Fatalf("half a migration stayed: %v", err)
	}
}

// TestKill9 kills a process in the middle of its writes: everything that it had
// reported must be there, and the file must open without help.
func TestKill9(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.db")
	want := make(map[string]int64)
	for round := range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+path, fmt.Sprintf("ROUND=%d", round))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(out)
		for n := 0; ; n++ {
			line, err := in.ReadString('\n')
			if err == io.EOF {
				break // what it had said before it died was read to the end
			}
			if err != nil {
				t.Fatal(err)
			}
			var id string
			var revision int64
			if _, err := fmt.Sscan(line, &id, &revision); err != nil {
				t.Fatalf("child said %q", line)
			}
			want[id] = revision
			if n == 700+100*round {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait() // killed
		s, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		got := byID(t, s)
		for id, revision := range want {
			switch sb := got[id]; {
			case revision == 0 && sb != nil:
				t.Fatalf("round %d: %s was deleted and is there", round, id)
			case revision > 0 && (sb == nil || sb.Revision < revision):
				t.Fatalf("round %d: %s was written with revision %d and is %+v", round, id, revision, sb)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(want) < 900 {
		t.Fatalf("only %d records were written", len(want))
	}
}

// writeUntilKilled prints "id revision" after each durable write; -1 before a
// delete, whose outcome is then unknown, and 0 after it.
func writeUntilKilled(path string) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	s, err := Open(path)
	fail(err)
	ctx := context.Background()
	for i := 0; ; i++ {
		sb := record(fmt.Sprintf("%s-%d", os.Getenv("ROUND"), i))
		fail(s.Insert(ctx, sb, &sandbox.IdempotencyKey{Name: sb.ID, SandboxID: sb.ID, CreatedAt: time.Now()}))
		fmt.Println(sb.ID, 1)
		sb.Revision = 2
		fail(s.Update(ctx, sb))
		fmt.Println(sb.ID, 2)
		if i%3 == 0 {
			fmt.Println(sb.ID, -1)
			fail(s.Delete(ctx, sb.ID))
			fmt.Println(sb.ID, 0)
		}
	}
}

func BenchmarkInsertUpdateDelete(b *testing.B) {
	s, err := Open(filepath.Join(b.TempDir(), "r.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	ctx := context.Background()
	for i := range b.N {
		sb := record(fmt.Sprint(i))
		if err := s.Insert(ctx, sb, nil); err != nil {
			b.Fatal(err)
		}
		sb.Revision++
		if err := s.Update(ctx, sb); err != nil {
			b.Fatal(err)
		}
		if err := s.Delete(ctx, sb.ID); err != nil {
			b.Fatal(err)
		}
	}
}
