package cli

import (
	"fmt"
	"net"
	"strings"
)

// notifySystemd tells systemd about the server's state, if systemd started it
// and wants to know (sd_notify(3)): a datagram to the socket in NOTIFY_SOCKET,
// where a leading "@" stands for the abstract namespace.
func (a *app) notifySystemd(state string) error {
	address := a.env("NOTIFY_SOCKET")
	if address == "" {
		return nil
	}
	if !strings.HasPrefix(address, "/") && !strings.HasPrefix(address, "@") {
		return fmt.Errorf("NOTIFY_SOCKET %q is neither a path nor an abstract name", address)
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("telling systemd %q: %w", state, err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("telling systemd %q: %w", state, err)
	}
	return nil
}
