package execd

import (
	"context"
	"net/http"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// hostRoutes adds the routes that only the engine can reach.
func (s *Server) hostRoutes(mux *http.ServeMux) {
	mux.Handle("GET "+hostapi.ExitPath, web.Handler(s.handleExit))
	mux.HandleFunc("GET "+hostapi.DialPath, s.proxy.Tunnel)
	mux.Handle("POST "+hostapi.SyncPath, web.Handler(handleSync))
	mux.Handle("POST "+hostapi.TrustPath, web.Handler(s.handleTrust))
	s.isolatedRoutes(mux)
}

// handleExit is GET hostapi.ExitPath.
func (s *Server) handleExit(w http.ResponseWriter, r *http.Request) error {
	b := s.box.Load()
	if b.entry == nil {
		return noRoute(r)
	}
	if after, err := strconv.ParseInt(r.URL.Query().Get("hooks"), 10, 64); err == nil {
		if runs := awaitRuns(r.Context(), b, after); len(runs) > 0 {
			web.JSON(w, http.StatusOK, hostapi.ExitStatus{Running: true, Hooks: runs})
			return nil
		}
	}
	select {
	case <-b.entry.logged:
	case <-r.Context().Done():
		return nil
	}
	exit := b.entry.proc.Exit()
	web.JSON(w, http.StatusOK, hostapi.ExitStatus{Code: exit.Code, Signal: int(exit.Signal)})
	return nil
}

// awaitRuns returns the next runs of hooks, or nothing when the entrypoint has
// ended or ctx has.
func awaitRuns(ctx context.Context, b *box, after int64) []hostapi.HookRun {
	for {
		runs, more := b.hooks.Ended(after)
		if len(runs) > 0 {
			return runs
		}
		select {
		case <-more:
		case <-b.entry.logged:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
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
