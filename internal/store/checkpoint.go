package store

import "log/slog"

const (
	// checkpointWrites is after how many writes the log is copied back into
	// the file. A write changes 2 to 4 pages of 4 KiB, so the log stays at a
	// few MiB.
	checkpointWrites = 500
	// maxWALBytes is the size of the log above which a checkpoint may hold up
	// writers for a moment, to be able to start the log anew.
	maxWALBytes = 64 << 20
	pageBytes   = 4096
)

// wrote counts a write and asks for a checkpoint now and then.
func (s *Store) wrote() {
	if s.writes.Add(1) < checkpointWrites {
		return
	}
	select {
	case s.checkpoint <- struct{}{}:
		s.writes.Store(0)
	default: // one is waiting already
	}
}

// checkpointLoop copies the log back into the file on a connection of its own.
// SQLite would otherwise do it within some unlucky write, which then waits for
// the disk: 5 to 50 ms instead of 0.1.
func (s *Store) checkpointLoop() {
	defer s.wg.Done()
	for {
		select {
		case <-s.checkpoint:
		case <-s.stop:
			return
		}
		frames, err := s.runCheckpoint("PASSIVE") // never waits, never makes wait
		if err == nil && frames*pageBytes > maxWALBytes {
			_, err = s.runCheckpoint("RESTART")
		}
		if err != nil {
			slog.Warn("the log of the record database could not be copied back; trying again later", "error", err)
		}
	}
}

// runCheckpoint returns how many pages the log has.
func (s *Store) runCheckpoint(mode string) (frames int64, err error) {
	var busy, done int64
	err = s.other.QueryRow("PRAGMA wal_checkpoint("+mode+")").Scan(&busy, &frames, &done)
	return frames, err
}
