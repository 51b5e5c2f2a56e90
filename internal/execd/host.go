package execd

import (
	"net/http"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
)

// hostRoutes adds the routes that only the engine can reach.
func (b *box) hostRoutes(mux *http.ServeMux) {
	if b.entry != nil {
		mux.HandleFunc("GET "+hostapi.ExitPath, answering(b.entry.handleExit))
	}
	mux.HandleFunc("GET "+hostapi.DialPath, b.proxy.Tunnel)
	mux.HandleFunc("POST "+hostapi.SyncPath, answering(handleSync))
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
