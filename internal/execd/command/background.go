package command

import (
	"net/http"
	"time"
)

// Background is a command that runs on its own, for callers that serve it at a
// place of their own.
type Background struct {
	ID      string
	Started time.Time
}

// Begin starts a command in the background. One that can't be started has
// ended, and its state says why.
func (m *Manager) Begin(req *Request) (*Background, error) {
	req.Background = true
	plan, err := prepare(m.guest(), req)
	if err != nil {
		return nil, err
	}
	c, err := m.admit(plan)
	if err != nil {
		return nil, err
	}
	if err := c.start(m.procs); err != nil {
		m.ended(c)
		return &Background{ID: c.ID, Started: c.Started}, nil
	}
	c.pump()
	go func() {
		c.await(nil)
		m.ended(c)
	}()
	return &Background{ID: c.ID, Started: c.Started}, nil
}

// State is how a command is.
type State struct {
	Running  bool
	Code     *int
	Error    string
	Started  time.Time
	Finished *time.Time
}

// State returns how the command is, or the error to answer with.
func (m *Manager) State(id string) (*State, error) {
	c, past, err := m.find(id)
	if err != nil {
		return nil, err
	}
	if c != nil && !c.ended() {
		return &State{Running: true, Started: c.Started}, nil
	}
	if c != nil { // it ended just now
		past = newRecord(c)
	}
	s := past.status(id)
	return &State{Code: s.ExitCode, Error: s.Error, Started: s.Started, Finished: s.Finished}, nil
}

// LogsAs is Logs with another name for the header of the cursor.
func (m *Manager) LogsAs(w http.ResponseWriter, id, cursor, header string) error {
	return m.Logs(&renamed{ResponseWriter: w, name: header}, id, cursor)
}

// renamed moves the cursor to another header before the answer begins.
type renamed struct {
	http.ResponseWriter
	name string
}

func (w *renamed) WriteHeader(status int) {
	h := w.Header()
	if v := h.Get(CursorHeader); v != "" {
		h.Del(CursorHeader)
		h.Set(w.name, v)
	}
	w.ResponseWriter.WriteHeader(status)
}
