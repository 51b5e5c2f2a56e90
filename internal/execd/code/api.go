package code

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/guest"
	"github.com/paddock-sandbox/paddock/internal/execd/process"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// Options is what an API works with.
type Options struct {
	// Guest returns the sandbox. It is called per request and never nil.
	Guest func() *guest.Guest
	// Table starts the drivers.
	Table *process.Table
	// Commands runs code that names no language (OpenSandbox code interpreter). Without it
	// such code is refused.
	Commands Commands
}

// Commands is what runs shell commands; *command.Manager is one. The methods
// are handlers that return the error to answer with.
type Commands interface {
	// Run answers a request with the body of POST /command.
	Run(w http.ResponseWriter, r *http.Request) error
	// Interrupt ends the command with that id.
	Interrupt(w http.ResponseWriter, id string) error
}

// API serves the routes of the code interpreter. Its methods may be called in
// parallel.
type API struct {
	opts     Options
	contexts registry
	// grace is interruptGrace, less in tests.
	grace time.Duration
	// patience is serverWait, less in tests.
	patience time.Duration
	waits    kernelWaits
	// large holds a token for each large request body that is being read.
	large chan struct{}
	// waited is set when the Jupyter server has been waited for.
	waited atomic.Bool
}

// New returns an API without contexts.
func New(opts Options) *API {
	return &API{
		opts:     opts,
		contexts: registry{byID: make(map[string]*codeContext), defaults: make(map[string]*codeContext)},
		grace:    interruptGrace,
		patience: serverWait,
		waits:    usualWaits,
		large:    make(chan struct{}, maxLargeBodies),
	}
}

// Routes adds the routes to mux.
func (a *API) Routes(mux *http.ServeMux) {
	for pattern, h := range map[string]func(http.ResponseWriter, *http.Request) error{
		"POST /code":                 a.run,
		"DELETE /code":               a.interrupt,
		"GET /code/languages":        a.listLanguages,
		"POST /code/context":         a.createContext,
		"GET /code/contexts":         a.listContexts,
		"DELETE /code/contexts":      a.deleteContexts,
		"GET /code/contexts/{id}":    a.getContext,
		"DELETE /code/contexts/{id}": a.deleteContext,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := h(w, r); err != nil {
				web.Fail(w, err)
			}
		})
	}
}

// Close ends all contexts with their drivers. Runs that are under way end with
// an error.
func (a *API) Close() {
	closeAll(a.contexts.takeAll())
}

// closeAll closes contexts at the same time: each may take a while.
func closeAll(all []*codeContext) {
	var closing sync.WaitGroup
	for _, c := range all {
		closing.Go(c.close)
	}
	closing.Wait()
}

// Has reports whether id names a context.
func (a *API) Has(id string) bool { return a.contexts.find(id) != nil }

// Interrupt is DELETE /code?id= for an id, which other routes share
// (OpenSandbox execd API).
func (a *API) Interrupt(w http.ResponseWriter, r *http.Request, id string) error {
	c := a.contexts.find(id)
	switch {
	case c == nil && a.opts.Commands != nil:
		return a.opts.Commands.Interrupt(w, id)
	case c == nil:
		return notFound(id)
	}
	if err := c.interrupt(r.Context()); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// interrupt is DELETE /code?id=.
func (a *API) interrupt(w http.ResponseWriter, r *http.Request) error {
	id := r.URL.Query().Get("id")
	if id == "" {
		return web.Errorf(http.StatusBadRequest, web.CodeMissingQuery, "the query parameter id is missing; it names the context whose code is to stop")
	}
	return a.Interrupt(w, r, id)
}

// description is a context as the contract shows it.
type description struct {
	ID       string `json:"id"`
	Language string `json:"language"`
	Cwd      string `json:"cwd,omitempty"`
}

func (c *codeContext) describe() description {
	return description{ID: c.id, Language: c.lang.name, Cwd: c.dir}
}

// createContext is POST /code/context. The driver is started at once: what is
// wrong with it is known now, and the first run does not wait for it.
func (a *API) createContext(w http.ResponseWriter, r *http.Request) error {
	var req struct {
		Language string `json:"language"`
		Cwd      string `json:"cwd"`
	}
	if err := web.ReadJSON(w, r, &req); err != nil {
		return err
	}
	if req.Language == "" {
		return web.BadBody("language is missing; it is one of %s", known())
	}
	lang, err := a.language(r.Context(), req.Language)
	if err != nil {
		return err
	}
	c, err := a.newContext(lang, req.Cwd)
	if err != nil {
		return err
	}
	if err := a.contexts.add(c); err != nil {
		return err
	}
	if err := c.warm(r.Context()); err != nil {
		a.contexts.take(c.id)
		c.close()
		return err
	}
	web.JSON(w, http.StatusOK, c.describe())
	return nil
}

// listContexts is GET /code/contexts[?language=].
func (a *API) listContexts(w http.ResponseWriter, r *http.Request) error {
	var lang *language
	if name := r.URL.Query().Get("language"); name != "" {
		var err error
		if lang, err = a.language(r.Context(), name); err != nil {
			return err
		}
	}
	list := []description{}
	for _, c := range a.contexts.list(lang) {
		list = append(list, c.describe())
	}
	web.JSON(w, http.StatusOK, list)
	return nil
}

// deleteContexts is DELETE /code/contexts?language=.
func (a *API) deleteContexts(w http.ResponseWriter, r *http.Request) error {
	name := r.URL.Query().Get("language")
	if name == "" {
		return web.Errorf(http.StatusBadRequest, web.CodeMissingQuery, "the query parameter language is missing; it is one of %s", known())
	}
	lang, err := a.language(r.Context(), name)
	if err != nil {
		return err
	}
	var all []*codeContext
	for _, c := range a.contexts.list(lang) {
		if a.contexts.take(c.id) != nil {
			all = append(all, c)
		}
	}
	closeAll(all)
	w.WriteHeader(http.StatusOK)
	return nil
}

// getContext is GET /code/contexts/{id}.
func (a *API) getContext(w http.ResponseWriter, r *http.Request) error {
	c := a.contexts.find(r.PathValue("id"))
	if c == nil {
		return notFound(r.PathValue("id"))
	}
	web.JSON(w, http.StatusOK, c.describe())
	return nil
}

// deleteContext is DELETE /code/contexts/{id}.
func (a *API) deleteContext(w http.ResponseWriter, r *http.Request) error {
	c := a.contexts.take(r.PathValue("id"))
	if c == nil {
		return notFound(r.PathValue("id"))
	}
	c.close()
	w.WriteHeader(http.StatusOK)
	return nil
}

func notFound(id string) *web.Error {
	return web.Errorf(http.StatusNotFound, web.CodeContextNotFound,
		"context not found: %q was deleted or never existed; make one with POST /code/context", id)
}
