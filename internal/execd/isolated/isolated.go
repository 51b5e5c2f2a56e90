package isolated

import (
	"net/http"

	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

const why = "Isolated runs need mounts, which a sandbox may not make. Make another sandbox for what shall be apart."

// layer is one hardening measure's state.
type layer struct {
	State   string `json:"state"`
	Message string `json:"message,omitempty"`
}

// capabilities is the answer of GET /v1/isolated/capabilities.
type capabilities struct {
	Available        bool      `json:"available"`
	Isolator         string    `json:"isolator"`
	Version          string    `json:"version"`
	Message          string    `json:"message"`
	SetprivAvailable bool      `json:"setpriv_available"`
	UsernsAvailable  bool      `json:"userns_available"`
	CommitSupported  bool      `json:"commit_supported"`
	DiffSupported    bool      `json:"diff_supported"`
	Hardening        hardening `json:"hardening"`
}

type hardening struct {
	InitMode     string `json:"init_mode"`
	SignalShield bool   `json:"signal_shield"`
	CapDrop      layer  `json:"cap_drop"`
	Seccomp      layer  `json:"seccomp"`
	Landlock     layer  `json:"landlock"`
	EBPF         layer  `json:"ebpf"`
}

// Routes adds the routes.
func Routes(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/isolated/capabilities", func(w http.ResponseWriter, _ *http.Request) {
		unsupported := layer{State: "unsupported"}
		web.JSON(w, http.StatusOK, capabilities{
			Isolator: "none", Message: why,
			Hardening: hardening{
				InitMode: "pid1",
				// What holds for every process of the sandbox.
				CapDrop: layer{State: "active"}, Seccomp: layer{State: "active"},
				Landlock: unsupported, EBPF: unsupported,
			},
		})
	})
	mux.HandleFunc("/v1/isolated/", func(w http.ResponseWriter, _ *http.Request) {
		web.Fail(w, web.Errorf(http.StatusServiceUnavailable, web.CodeNotSupported, "%s", why))
	})
}
