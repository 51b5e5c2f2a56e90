package local

import (
	"fmt"
	"net/netip"

	"github.com/paddock-sandbox/paddock/internal/egress"
)

// dnsPort is the only port of the host that sandboxes reach by its address.
const dnsPort = 53

// startDNS serves the sandboxes' questions at the gateway's address.
func (e *Engine) startDNS() error {
	resolver, err := egress.NewResolver(egress.Options{
		Listen:    []netip.AddrPort{netip.AddrPortFrom(e.network.Gateway(), dnsPort)},
		Sources:   []netip.Prefix{e.in.subnet},
		Upstreams: e.opts.DNSUpstreams,
		Decide:    e.enforcer.Decide,
		Learn:     e.enforcer.Learn,
		Logger:    e.log,
	})
	if err != nil {
		return fmt.Errorf("starting the resolver: %w", err)
	}
	e.dns = resolver
	e.wg.Add(1)
	go func() {
		defer e.wg.Done()
		if err := resolver.Serve(e.ctx); err != nil && e.ctx.Err() == nil {
			e.log.Error("the sandboxes' resolver stopped", "error", err)
		}
	}()
	return nil
}
