package execd

import (
	"net/http"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// hostRoutes adds the routes that only the engine can reach.
func (s *Server) hostRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET "+hostapi.ExitPath, answering(s.handleExit))
	mux.HandleFunc("GET "+hostapi.DialPath, s.proxy.Tunnel)
	mux.HandleFunc("POST "+hostapi.SyncPath, answering(handleSync))
}

// handleExit is GET hostapi.ExitPath.
func (s *Server) handleExit(w http.ResponseWriter, r *http.Request) error {
	e := s.box.Load().entry
	if e == nil {
		return noRoute(r)
	}
	select {
	case <-e.logged:
	case <-r.Context().Done():
		return nil
	}
	exit := e.proc.Exit()
	web.JSON(w, http.StatusOK, hostapi.ExitStatus{Code: exit.Code, Signal: int(exit.Signal)})
	return nil
}

// handleSync is POST hostapi.SyncPath.
func handleSync(http.ResponseWriter, *http.Request) error {
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}
