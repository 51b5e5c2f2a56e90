package mcp

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/paddock-sandbox/paddock/client"
)

const (
	// recordTimeout bounds the request that records a sandbox; the server asks a
	// registry within it.
	recordTimeout = time.Minute
	// startTimeout bounds the wait until a sandbox runs, the pull of its image
	// included.
	startTimeout = 10 * time.Minute
	// maxSessions bounds the sessions of a server.
	maxSessions = 256
)

// keepAlive is the entrypoint of a sandbox that only waits for commands; the
// same that the API's SDKs send.
var keepAlive = []string{"tail", "-f", "/dev/null"}

// Metadata of the sandboxes that this package makes.
const (
	madeByKey   = "made-by"
	madeByValue = "paddock-mcp"
)

// errClosing is returned to calls that come when the server stops.
var errClosing = errors.New("the MCP server is stopping")

// session is what a server keeps of a client's session: its own sandbox.
type session struct {
	s *Server

	// mu is held while the sandbox is made, so that calls that come at once get
	// the same one.
	mu sync.Mutex
	// id is empty while there is none.
	id string
	// expires is when the sandbox expires, as far as is known.
	expires time.Time
	// ended is set when the session is over.
	ended bool
}

// admit bounds the number of sessions.
func (s *Server) admit(next mcp.MethodHandler) mcp.MethodHandler {
	return func(ctx context.Context, method string, req mcp.Request) (mcp.Result, error) {
		if method == "initialize" {
			n := 0
			for range s.mcp.Sessions() {
				n++
			}
			if n > maxSessions {
				return nil, fmt.Errorf("this server has %d sessions, which is the limit: close one, or try again later", maxSessions)
			}
		}
		return next(ctx, method, req)
	}
}

// session returns the state of a client's session. When the session ends its
// sandbox is deleted.
func (s *Server) session(ss *mcp.ServerSession) (*session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosing
	}
	if known := s.sessions[ss]; known != nil {
		return known, nil
	}
	n := &session{s: s}
	s.sessions[ss] = n
	s.cleaners.Go(func() {
		_ = ss.Wait() // why it ended does not matter
		n.end()
		s.mu.Lock()
		delete(s.sessions, ss)
		s.mu.Unlock()
	})
	return n, nil
}

// target is the sandbox that a call acts on.
type target struct {
	id string
	// own is set for the session's own sandbox.
	own *session
	// made is set when this call has made it.
	made bool
}

// target returns the sandbox that is named, or the session's own one, which lives
// long enough for a call that takes up to need.
func (s *Server) target(ctx context.Context, req *mcp.CallToolRequest, id string, need time.Duration) (target, error) {
	if id != "" {
		return target{id: id}, nil
	}
	own, err := s.session(req.Session)
	if err != nil {
		return target{}, err
	}
	return own.sandbox(ctx, need)
}

// sandbox returns the session's own sandbox, running, and prolongs its life.
func (n *session) sandbox(ctx context.Context, need time.Duration) (target, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ended {
		return target{}, errClosing
	}
	if n.id != "" {
		return target{id: n.id, own: n}, n.prolong(ctx, need)
	}
	if err := n.record(ctx); err != nil {
		return target{}, err
	}
	sb, err := n.s.o.Client.Wait(ctx, n.id, startTimeout)
	if err == nil && sb.Status.State == client.StatePending {
		err = fmt.Errorf("sandbox %s of image %q is still being made after %s (%s): call again to go on waiting", n.id, n.s.o.Image, startTimeout, client.Printable(sb.Status.Message))
	}
	var failed *client.FailedError
	if errors.As(err, &failed) {
		n.drop()
	}
	if err != nil {
		return target{}, err
	}
	return target{id: n.id, own: n, made: true}, n.prolong(ctx, need)
}

// record makes the sandbox, and knows its id even when the call that needed it is
// cancelled meanwhile.
func (n *session) record(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout)
	defer cancel()
	o, life := n.s.o, n.s.spare(0)
	began := time.Now()
	sb, err := o.Client.Create(ctx, client.CreateRequest{
		Image: o.Image, Entrypoint: keepAlive, Timeout: life, ResourceLimits: o.Limits,
		Metadata: map[string]string{madeByKey: madeByValue},
	})
	if err != nil {
		return fmt.Errorf("making this session's sandbox of image %q: %w", o.Image, err)
	}
	n.id, n.expires = sb.ID, began.Add(life)
	return nil
}

// spare is the lifetime to ask for before a call that takes up to need. It is
// longer than the one that has to be left after the call, so that not every call
// prolongs it.
func (s *Server) spare(need time.Duration) time.Duration {
	return (s.o.Lifetime + s.o.Lifetime/2 + need).Round(time.Second)
}

// prolong sees to it that the sandbox outlives a call that takes up to need by its
// lifetime. A sandbox that is gone is forgotten, so that the next call makes a new
// one.
func (n *session) prolong(ctx context.Context, need time.Duration) error {
	now := time.Now()
	if n.expires.Sub(now) >= n.s.o.Lifetime+need {
		return nil
	}
	at, err := n.s.o.Client.Renew(ctx, n.id, now.Add(n.s.spare(need)))
	switch {
	case client.IsInvalid(err):
		// The server bounds lifetimes: what is left has to do.
		n.s.o.Log.Debug("a session's sandbox could not be prolonged", "sandbox", n.id, "error", err)
		return nil
	case err != nil:
		return n.lost(err)
	}
	n.expires = at
	return nil
}

// lost explains an error of the session's own sandbox. When that is gone it is
// forgotten. The caller holds mu.
func (n *session) lost(err error) error {
	if !client.IsNotFound(err) {
		return err
	}
	id := n.id
	n.drop()
	return fmt.Errorf("this session's sandbox %s is gone, with its files and processes: it has expired or was deleted. Call again to get a fresh one", id)
}

// drop forgets the sandbox and deletes what may be left of it. The caller holds
// mu.
func (n *session) drop() {
	id := n.id
	n.id = ""
	n.s.remove(id)
}

// check forgets the sandbox after a call that failed, when it is gone.
func (n *session) check(ctx context.Context, id string, err error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.id != id {
		return err
	}
	sb, gerr := n.s.o.Client.Get(ctx, id)
	switch {
	case gerr != nil:
		if client.IsNotFound(gerr) {
			return n.lost(gerr)
		}
	case sb.Status.Ended():
		n.drop()
		return fmt.Errorf("this session's sandbox %s has ended (%s: %s), with its files and processes. Call again to get a fresh one", id, sb.Status.State, client.Printable(sb.Status.Message))
	}
	return err
}

// end deletes the sandbox. None is made afterwards.
func (n *session) end() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ended = true
	if n.id != "" {
		n.drop()
	}
}

// remove deletes a sandbox for good, in bounded time.
func (s *Server) remove(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	if err := s.o.Client.Delete(ctx, id); err != nil && !client.IsNotFound(err) {
		s.o.Log.Warn("a session's sandbox could not be deleted and is left to expire", "sandbox", id, "error", err)
	}
}
