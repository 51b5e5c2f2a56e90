package session

import (
	"net/http"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/event"
)

// Open makes a session that begins in the sandbox's working directory, for
// callers that serve it at a place of their own. Its shell is started by the
// first run.
func (a *API) Open() (id string, err error) {
	g := a.guest()
	s := &session{
		id: newID(), dir: g.Cwd, guest: g, procs: a.procs, states: &a.states,
		turn: make(chan struct{}, 1), closed: make(chan struct{}),
	}
	return s.id, a.admit(s)
}

// RunText is one run of a session that Open made. name is what its first event
// says; prepare returns the text when the run has its turn.
func (a *API) RunText(w http.ResponseWriter, r *http.Request, id, name string, timeout time.Duration, prepare func() string) error {
	s := a.find(id)
	if s == nil {
		return notFound(id)
	}
	if err := s.acquire(r.Context()); err != nil {
		return err
	}
	defer s.release()
	stream := event.Open(w, name)
	if err := s.run(r.Context(), stream, "", prepare(), timeout); err != nil {
		stream.Error(event.ExecError, err.Error(), err.Error())
	}
	return nil
}
