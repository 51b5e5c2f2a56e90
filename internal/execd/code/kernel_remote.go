package code

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/code/jupyter"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// Variables with which an image says that it brings a Jupyter server, and what
// they are when they are not given (OpenSandbox code interpreter).
const (
	hostVar      = "JUPYTER_HOST"
	portVar      = "JUPYTER_PORT"
	tokenVar     = "JUPYTER_TOKEN"
	defaultToken = "opensandboxcodeinterpreterjupyter"
)

const (
	// serverWait is how long a server that does not answer is waited for, once:
	// such images start it together with the sandbox.
	serverWait = 15 * time.Second
	// askEvery is when it is asked again, and askWait bounds one question.
	askEvery = 200 * time.Millisecond
	askWait  = 5 * time.Second
	// deleteWait bounds the deletion of a server's kernel.
	deleteWait = 10 * time.Second
)

// server is the Jupyter server that the environment names, nil for none.
func (in *installed) server() (*jupyter.Server, error) {
	address := in.env[hostVar]
	if address == "" {
		port := in.env[portVar]
		if port == "" {
			return nil, nil
		}
		address = "http://127.0.0.1:" + port
	}
	token, given := in.env[tokenVar]
	if !given {
		token = defaultToken
	}
	s, err := jupyter.NewServer(address, token)
	if err != nil {
		return nil, fmt.Errorf("the variable %s: %w", hostVar, err)
	}
	return s, nil
}

// ask lists the kernels of a server. The first time it waits for the server to
// come up.
func (a *API) ask(ctx context.Context, s *jupyter.Server) ([]*jupyter.Spec, error) {
	patience := time.NewTimer(a.patience)
	defer patience.Stop()
	ticker := time.NewTicker(askEvery)
	defer ticker.Stop()
	for {
		once, done := context.WithTimeout(ctx, askWait)
		specs, err := s.Specs(once)
		done()
		if err == nil || errors.Is(err, jupyter.ErrRefused) {
			a.waited.Store(true)
		}
		if a.waited.Load() {
			return specs, err
		}
		select {
		case <-ticker.C:
		case <-patience.C:
			a.waited.Store(true)
			return nil, err
		case <-ctx.Done():
			return nil, err
		}
	}
}

// onServer chooses a kernel of the Jupyter server. What keeps the server from
// being used is a note for the user when the image can run the language without
// it, else an error.
func (a *API) onServer(ctx context.Context, in *installed, lang *language, needed bool) (choice, error) {
	server, err := in.server()
	if server == nil && err == nil {
		return choice{}, nil
	}
	var specs []*jupyter.Spec
	if err == nil {
		specs, err = a.ask(ctx, server)
	}
	if err != nil {
		if needed && lang.kernel == "" {
			return choice{}, web.Errorf(http.StatusInternalServerError, web.CodeRuntime, "%s needs the Jupyter server that the environment names, which can't be used: %v", lang.name, err)
		}
		return choice{note: fmt.Sprintf("the Jupyter server that the environment names can't be used: %v; this context works without it", err)}, nil
	}
	spec := named(specs, lang.kernel)
	if lang.kernel == "" {
		// The one called python3 belongs to the server itself (OpenSandbox code interpreter).
		own := func(s *jupyter.Spec) bool { return s.Name == "python3" }
		if spec = first(slices.DeleteFunc(slices.Clone(specs), own), lang.names()...); spec == nil {
			spec = first(specs, lang.names()...)
		}
	}
	if spec == nil {
		return choice{}, nil
	}
	return choice{spec: spec, server: server}, nil
}

// remoteKernel is a kernel on a Jupyter server.
type remoteKernel struct {
	server *jupyter.Server
	spec   *jupyter.Spec
	path   string
	over   chan struct{}

	mu      sync.Mutex
	session *jupyter.Session
	killed  bool
}

// startRemote starts a kernel on a server. It does not wait until it is ready.
func startRemote(server *jupyter.Server, spec *jupyter.Spec, lang *language, waits kernelWaits, dir string) backend {
	r := &remoteKernel{
		server: server, spec: spec, over: make(chan struct{}),
		path: strings.TrimPrefix(dir, "/") + "/paddock-" + newID(),
	}
	return newKernel(r, waits, enter(spec, dir))
}

// enter is code that changes a kernel's working directory, which its server has
// chosen; empty where that is not known for the language.
func enter(spec *jupyter.Spec, dir string) string {
	// A string in the syntax of JSON is one in all these languages.
	b, _ := json.Marshal(dir)
	switch strings.ToLower(spec.Language) {
	case "python":
		return `__import__("os").chdir(` + string(b) + `)`
	case "javascript", "typescript":
		return "process.chdir(" + string(b) + ")"
	case "r":
		return "setwd(" + string(b) + ")"
	case "bash":
		return "cd -- '" + strings.ReplaceAll(dir, "'", `'\''`) + "'"
	}
	return ""
}

func (r *remoteKernel) title() string {
	return fmt.Sprintf("the kernel %s of the Jupyter server at %s", r.spec.Name, r.server.Address())
}

func (r *remoteKernel) connect(ctx context.Context, session string, h jupyter.Handler) (jupyter.Conn, error) {
	s, err := r.server.Start(ctx, r.spec.Name, r.path)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.session = s
	killed := r.killed
	r.mu.Unlock()
	if killed {
		remove(s)
		return nil, errors.New("the context was deleted")
	}
	return s.Connect(ctx, session, h)
}

func remove(s *jupyter.Session) {
	ctx, cancel := context.WithTimeout(context.Background(), deleteWait)
	defer cancel()
	// The server removes its kernels when it ends; there is nobody to tell.
	_ = s.Delete(ctx)
}

func (r *remoteKernel) done() <-chan struct{} { return r.over }

func (r *remoteKernel) ending() (process.Exit, string) {
	return process.Exit{Code: -1}, "the Jupyter server no longer has it"
}

func (r *remoteKernel) failure() string { return "" }

// byMessage is false: the server knows how its kernels are interrupted.
func (r *remoteKernel) byMessage() bool { return false }

func (r *remoteKernel) interrupt() {
	if s := r.current(); s != nil {
		ctx, cancel := context.WithTimeout(context.Background(), askWait)
		defer cancel()
		// Code that does not stop is dealt with by the caller.
		_ = s.Interrupt(ctx)
	}
}

func (r *remoteKernel) children(process.Stamp) []process.Member { return nil }

func (r *remoteKernel) beat(ctx context.Context) error {
	s := r.current()
	if s == nil {
		return errors.New("there is no kernel")
	}
	return s.Alive(ctx)
}

func (r *remoteKernel) current() *jupyter.Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.session
}

// gentle is true: a server gives its kernels time, and would start one anew that
// ended otherwise.
func (r *remoteKernel) gentle() bool { return true }

// kill implements host. The server kills a kernel that does not end by itself.
func (r *remoteKernel) kill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.killed {
		return
	}
	r.killed = true
	s := r.session
	if s == nil {
		close(r.over)
		return
	}
	go func() {
		defer close(r.over)
		remove(s)
	}()
}
