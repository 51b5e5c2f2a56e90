package command

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/event"
	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/history"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

const (
	// maxRunning bounds commands at one time.
	maxRunning = 1024
	// maxFinished is how many ended commands are remembered.
	maxFinished = 256
)

// CursorHeader carries the offset at which the next request for logs goes on
// (OpenSandbox execd API).
const CursorHeader = "EXECD-COMMANDS-TAIL-CURSOR"

// Manager owns all commands. Its methods may be called in parallel; those that
// are handlers return the error to answer with.
type Manager struct {
	guest  func() *guest.Guest
	procs  *process.Table
	budget history.Budget

	mu sync.Mutex
	// running are commands that have not ended.
	running map[string]*Command
	// finished are ended commands, the oldest first.
	finished []record
}

// NewManager returns an empty one. g is asked on each request, because the
// sandbox is claimed later.
func NewManager(g func() *guest.Guest, procs *process.Table) *Manager {
	return &Manager{guest: g, procs: procs, running: make(map[string]*Command)}
}

// Run is POST /command.
func (m *Manager) Run(w http.ResponseWriter, r *http.Request) error {
	var req Request
	if err := web.ReadJSON(w, r, &req); err != nil {
		return err
	}
	plan, err := prepare(m.guest(), &req)
	if err != nil {
		return err
	}
	c, err := m.admit(plan)
	if err != nil {
		return err
	}
	startErr := c.start(m.procs)
	// The first event goes out while the program starts working.
	stream := event.Open(w, c.ID)
	switch {
	case startErr != nil:
		stream.Error(event.ExecError, startErr.Error(), startErr.Error())
		m.ended(c)
	case plan.background:
		c.pump()
		go func() {
			c.await(nil)
			m.ended(c)
		}()
		stream.Complete(time.Since(c.Started))
	default:
		c.stream = stream
		c.pump()
		c.await(r.Context().Done())
		c.report()
		// The pumps may outlive the request; the stream ignores them now.
		m.ended(c)
	}
	return nil
}

// admit registers a new command if there is room.
func (m *Manager) admit(p *plan) (*Command, error) {
	c := &Command{
		ID:      newID(),
		Content: shorten(p.content),
		Started: time.Now(),
		plan:    p,
		ring:    history.NewRing(&m.budget),
		done:    make(chan struct{}),
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.running) >= maxRunning {
		if p.script != nil {
			p.script.Close()
		}
		return nil, web.Busy("%d commands are running in this sandbox, which is the limit; wait for one to end, or end one with DELETE /command?id=", maxRunning)
	}
	m.running[c.ID] = c
	return c, nil
}

// maxContent bounds the command text that is remembered, in bytes.
const maxContent = 64 << 10

func shorten(text string) string {
	if len(text) <= maxContent {
		return text
	}
	return strings.ToValidUTF8(text[:maxContent], "") + "…"
}

// ended takes note that a command is over, and forgets the oldest ones when
// there are many or their output takes most of the budget.
func (m *Manager) ended(c *Command) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.running, c.ID)
	m.finished = append(m.finished, newRecord(c))
	for len(m.finished) > maxFinished || len(m.finished) > 1 && m.budget.Used() > history.MaxTotal*3/4 {
		m.finished[0].ring.Close()
		m.finished = slices.Delete(m.finished, 0, 1)
	}
}

// Has reports whether id names a remembered command.
func (m *Manager) Has(id string) bool {
	_, _, err := m.find(id)
	return err == nil
}

// Running is the number of commands that have not ended.
func (m *Manager) Running() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.running)
}

// find returns the command when it runs, else what is remembered of it.
func (m *Manager) find(id string) (*Command, record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.running[id]; c != nil {
		return c, record{}, nil
	}
	if k, ok := parseKey(id); ok {
		for i := range m.finished {
			if m.finished[i].id == k {
				return nil, m.finished[i], nil
			}
		}
	}
	return nil, record{}, web.Errorf(http.StatusNotFound, web.CodeCommandNotFound,
		"command %q not found: the id is unknown, or the command ended and was forgotten (the last %d are remembered)", id, maxFinished)
}

// settleTime is how long an interrupt waits for the rest of the output of a
// command whose process has ended.
const settleTime = 2 * time.Second

// Interrupt is DELETE /command?id=.
func (m *Manager) Interrupt(w http.ResponseWriter, id string) error {
	c, _, err := m.find(id)
	if err != nil {
		return err
	}
	if c == nil || c.ended() || c.proc == nil {
		return web.Errorf(http.StatusNotFound, web.CodeCommandNotFound, "command %q has already ended; its status is at /command/status/%s", id, id)
	}
	c.Stop()
	// So that its status says that it ended. Output that does not end (some
	// process outside its lineage may hold the pipe) is not waited for.
	select {
	case <-c.done:
	case <-time.After(settleTime):
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// status is the answer of GET /command/status/{id}.
type status struct {
	ID       string     `json:"id"`
	Content  string     `json:"content"`
	Running  bool       `json:"running"`
	ExitCode *int       `json:"exit_code,omitempty"`
	Error    string     `json:"error,omitempty"`
	Started  time.Time  `json:"started_at"`
	Finished *time.Time `json:"finished_at,omitempty"`
}

// Status is GET /command/status/{id}.
func (m *Manager) Status(w http.ResponseWriter, id string) error {
	c, past, err := m.find(id)
	if err != nil {
		return err
	}
	if c != nil && !c.ended() {
		web.JSON(w, http.StatusOK, status{ID: c.ID, Content: c.Content, Running: true, Started: c.Started})
		return nil
	}
	if c != nil { // it ended just now
		past = newRecord(c)
	}
	web.JSON(w, http.StatusOK, past.status(id))
	return nil
}

// Logs is GET /command/{id}/logs. It gives what is kept from the offset cursor
// on, byte for byte. What is no longer kept is left out.
func (m *Manager) Logs(w http.ResponseWriter, id, cursor string) error {
	c, past, err := m.find(id)
	if err != nil {
		return err
	}
	ring := past.ring
	if c != nil {
		ring = c.ring
	}
	// Anything that is not a number means the beginning (OpenSandbox execd API).
	from, _ := strconv.ParseInt(cursor, 10, 64)
	base, total := ring.Range()
	from = min(max(from, base), total)
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Length", strconv.FormatInt(total-from, 10))
	h.Set(CursorHeader, strconv.FormatInt(total, 10))
	w.WriteHeader(http.StatusOK)
	buf := make([]byte, 64<<10)
	for from < total {
		n, err := ring.ReadAt(buf[:min(int64(len(buf)), total-from)], from)
		if errors.Is(err, io.EOF) {
			// The command overtook a slow reader. The client sees a body that
			// is too short, and asks again.
			panic(http.ErrAbortHandler)
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return nil
		}
		from += int64(n)
	}
	return nil
}
