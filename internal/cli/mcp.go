package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/internal/config"
	"github.com/paddock-sandbox/paddock/internal/mcp"
)

// mcpFlags are the flags of `paddock mcp`.
type mcpFlags struct {
	transport, listen  string
	image, cpu, memory string
	timeout            time.Duration
	noAuth             bool
}

func (a *app) mcpCommand() *cobra.Command {
	var f mcpFlags
	cmd := &cobra.Command{
		Use:   "mcp",
		Short: "Let an agent use sandboxes, over the Model Context Protocol",
		Long: `Serve the Model Context Protocol: tools to run commands and code in sandboxes, to
read, write and search files there, and to reach their ports.

Every session has a sandbox of its own, which is made when a tool first needs it and
deleted when the session ends; --image, --timeout, --cpu and --memory say what it is
made of. Tools can make others, which live until they expire.

With --transport stdio (the default) there is one session, on standard input and
output. With --transport http sessions are served at http://ADDRESS/ to clients that
send the API key ("Authorization: Bearer KEY").`,
		Example: `  paddock mcp --image python:3.11
  paddock mcp --transport http --listen 127.0.0.1:8090`,
		Args: args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return a.mcp(cmd, &f) },
	}
	fs := cmd.Flags()
	fs.StringVar(&f.transport, "transport", "stdio", "stdio or http")
	fs.StringVar(&f.listen, "listen", "127.0.0.1:8090", "address and port, for http")
	fs.BoolVar(&f.noAuth, "insecure-no-auth", false, "serve http without an API key, on loopback only")
	fs.StringVar(&f.image, "image", "python:3.11", "image of a session's sandbox")
	fs.DurationVar(&f.timeout, "timeout", 30*time.Minute, "lifetime of a session's sandbox after its last use, at least 1m")
	fs.StringVar(&f.cpu, "cpu", "", `its CPU limit, such as "500m" or "2"`)
	fs.StringVar(&f.memory, "memory", "", `its memory limit, such as "512Mi"`)
	return cmd
}

func (f *mcpFlags) options(cmd *cobra.Command, c *client.Client) (mcp.Options, error) {
	o := mcp.Options{Client: c, Image: f.image, Lifetime: f.timeout, Limits: map[string]string{}, Version: Version}
	if f.image == "" {
		return o, usagef(cmd, "--image is empty")
	}
	if f.timeout < time.Minute || f.timeout > 24*time.Hour || f.timeout%time.Second != 0 {
		return o, usagef(cmd, "--timeout %s: want whole seconds, from 1m to 24h", f.timeout)
	}
	if err := setLimit(cmd, o.Limits, "cpu", "cpu", f.cpu, config.ParseCPU); err != nil {
		return o, err
	}
	return o, setLimit(cmd, o.Limits, "memory", "memory", f.memory, config.ParseSize)
}

func (a *app) mcp(cmd *cobra.Command, f *mcpFlags) error {
	if f.transport != "stdio" && f.transport != "http" {
		return usagef(cmd, "--transport %q: want stdio or http", f.transport)
	}
	if f.transport == "stdio" && (cmd.Flags().Changed("listen") || f.noAuth) {
		return usagef(cmd, "--listen and --insecure-no-auth go with --transport http")
	}
	conn, err := a.connect(cmd.Context())
	if err != nil {
		return err
	}
	defer conn.close()
	o, err := f.options(cmd, conn.Client)
	if err != nil {
		return err
	}
	o.Log = newLogger(a.streams.Err, config.Log{Level: "warn", Format: "text"})
	s := mcp.New(o)
	defer s.Close()
	if f.transport == "stdio" {
		out, ok := a.streams.Out.(*os.File)
		if !ok {
			return errors.New("standard output is not a file")
		}
		return s.ServeStdio(cmd.Context(), a.streams.In, keepOpen{out})
	}
	return a.mcpHTTP(cmd.Context(), cmd, s, conn, f)
}

// keepOpen leaves standard output open at the end of a session.
type keepOpen struct{ *os.File }

func (keepOpen) Close() error { return nil }

func (a *app) mcpHTTP(ctx context.Context, cmd *cobra.Command, s *mcp.Server, conn *connection, f *mcpFlags) error {
	noAuth := f.noAuth || !conn.SendsAPIKey()
	loopback := isLoopback(f.listen)
	if noAuth && !loopback {
		return usagef(cmd, "--listen %s: without an API key sessions are served on loopback only, such as 127.0.0.1:8090", f.listen)
	}
	l, err := net.Listen(network(f.listen), f.listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	if !loopback {
		fmt.Fprintln(a.streams.Err, "paddock: this is plain HTTP: put a proxy with TLS in front, or the API key can be read on the way")
	}
	fmt.Fprintf(a.streams.Err, "serving MCP at http://%s/\n", reachable(l.Addr()))
	return s.ServeHTTP(ctx, l, noAuth)
}

// isLoopback reports whether an address to listen on is this machine's own
// beyond doubt.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}
