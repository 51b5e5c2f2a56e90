package execd

import (
	"net"

	"github.com/paddock-sandbox/paddock/internal/execd/guest"
)

// interpreterAddr is where images made for code interpreters have a Jupyter
// server. Clients of the code interpreter wait until the port accepts
// connections, with a command inside the sandbox, before they run code
// (OpenSandbox code interpreter).
const interpreterAddr = "127.0.0.1:44771"

// listenInterpreter opens that port, because here execd itself is the
// interpreter, and serves its API there. An image that brings a Jupyter server
// says so in its environment and needs the port itself. That the port can't be
// had is no fault: only that check needs it.
func (s *Server) listenInterpreter(g *guest.Guest) {
	for _, name := range []string{"JUPYTER_HOST", "JUPYTER_PORT"} {
		if _, ok := g.Getenv(name); ok {
			return
		}
	}
	l, err := net.Listen("tcp4", interpreterAddr)
	if err != nil {
		s.cfg.Logger.Debug("the interpreter's port can't be opened", "err", err)
		return
	}
	select {
	case s.interpreter <- l:
	default:
		l.Close()
	}
}
