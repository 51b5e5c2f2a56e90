package isolated

import (
	"net/http"

	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// Prefix is where all the routes are.
const Prefix = "/v1/isolated/"

// CursorHeader carries the offset at which the next request for a background
// run's logs goes on.
const CursorHeader = "EXECD-ISOLATED-TAIL-CURSOR"

const why = "Isolated sessions are made by the server, from outside the sandbox. Send this request to the sandbox's execd endpoint, not to a port inside the sandbox."

// Layer is one hardening measure's state.
type Layer struct {
	State   string `json:"state"`
	Message string `json:"message,omitempty"`
}

// Capabilities is the answer of GET /v1/isolated/capabilities.
type Capabilities struct {
	Available        bool      `json:"available"`
	Isolator         string    `json:"isolator"`
	Version          string    `json:"version"`
	Message          string    `json:"message"`
	SetprivAvailable bool      `json:"setpriv_available"`
	UsernsAvailable  bool      `json:"userns_available"`
	CommitSupported  bool      `json:"commit_supported"`
	DiffSupported    bool      `json:"diff_supported"`
	Hardening        Hardening `json:"hardening"`
}

// Hardening is what holds for the processes of a session, as for those of the
// sandbox.
type Hardening struct {
	InitMode     string `json:"init_mode"`
	SignalShield bool   `json:"signal_shield"`
	CapDrop      Layer  `json:"cap_drop"`
	Seccomp      Layer  `json:"seccomp"`
	Landlock     Layer  `json:"landlock"`
	EBPF         Layer  `json:"ebpf"`
}

func hardening() Hardening {
	return Hardening{
		InitMode: "pid1", SignalShield: true,
		CapDrop: Layer{State: "active"}, Seccomp: Layer{State: "active"},
		Landlock: Layer{State: "unsupported", Message: "the session's mount namespace is what confines it"},
		EBPF:     Layer{State: "unsupported", Message: "processes are not observed"},
	}
}

// Available is what an engine answers that makes sessions with that OCI
// runtime.
func Available(runtime, version string) *Capabilities {
	return &Capabilities{
		Available: true, Isolator: runtime, Version: version,
		SetprivAvailable: true, CommitSupported: true, DiffSupported: true,
		Hardening: hardening(),
	}
}

// Routes adds what an execd in a sandbox answers.
func Routes(mux *http.ServeMux) { Without(mux, why) }

// Without adds the routes of a place that has no sessions, and says why.
func Without(mux *http.ServeMux, why string) {
	mux.HandleFunc("GET "+Prefix+"capabilities", func(w http.ResponseWriter, _ *http.Request) {
		web.JSON(w, http.StatusOK, &Capabilities{Isolator: "none", Message: why, Hardening: hardening()})
	})
	mux.HandleFunc(Prefix, func(w http.ResponseWriter, _ *http.Request) {
		web.Fail(w, web.Errorf(http.StatusServiceUnavailable, web.CodeNotSupported, "%s", why))
	})
}
