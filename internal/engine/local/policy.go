package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/paddock-sandbox/paddock/internal/egress/enforce"
	"github.com/paddock-sandbox/paddock/internal/egress/proxy"
	"github.com/paddock-sandbox/paddock/internal/engine/local/network"
	"github.com/paddock-sandbox/paddock/internal/policy"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

const (
	// policyFile is in a sandbox's run directory, so that a restarted server has
	// the policy in the packet filter as soon as there is one, and not only when
	// it has asked the Manager.
	policyFile = "policy.json"
	// maxPolicyFile bounds what is read of it, in bytes: policy.MaxRules rules
	// with long names.
	maxPolicyFile = 16 << 20
	// proxyPort is where the proxy listens at the gateway's address. It is no
	// port that the kernel gives out by itself: while no server runs, the packet
	// filter still sends connections there, and nobody else should have it then.
	proxyPort = 15053
	// reportGroups is the kernel's log group of the first slot. Groups below
	// 100 are what administrators choose.
	reportGroups = 28700
)

// filter makes the packet filter do what the enforcer says.
type filter struct{ network *network.Network }

func (f filter) SetPolicy(ctx context.Context, addr netip.Addr, c *policy.Compiled, forget []netip.Addr) error {
	if c == nil {
		return f.network.SetPolicy(ctx, addr, nil, forget)
	}
	return f.network.SetPolicy(ctx, addr, packetPolicy(c), forget)
}

func (f filter) CutForbidden(addr netip.Addr) error { return f.network.CutForbidden(addr) }

func (f filter) Learn(ctx context.Context, addr netip.Addr, addrs []netip.Addr, lifetime time.Duration, tcpOnly bool) error {
	list := make([]network.Learned, 0, len(addrs))
	for _, a := range addrs {
		list = append(list, network.Learned{Addr: a, Lifetime: lifetime, TCPOnly: tcpOnly})
	}
	return f.network.Learn(ctx, addr, list)
}

func (f filter) Reaches(a netip.Addr) bool { return f.network.Reaches(a) }

func (f filter) Opens(a netip.Addr, c *policy.Compiled) bool {
	in, ok := c.RangeOf(a)
	if !ok {
		return f.network.Opens(a, nil)
	}
	r := packetRange(in)
	return f.network.Opens(a, &r)
}

// packetPolicy is what of a policy packets are judged by.
func packetPolicy(c *policy.Compiled) *network.Policy {
	return &network.Policy{Ranges: ranges(c), DefaultAllow: c.DefaultAllow(), Inspect: c.HasDomainDenies()}
}

func ranges(c *policy.Compiled) []network.Range {
	var out []network.Range
	for _, r := range slices.Concat(c.Ranges4(), c.Ranges6()) {
		out = append(out, packetRange(r))
	}
	return out
}

func packetRange(r policy.Range) network.Range {
	return network.Range{First: r.First, Last: r.Last, Allow: r.Allow, Reserved: r.Opens}
}

// openNetwork makes the network with the policies that are recorded, in one
// step, and what applies policies to names and connections.
func (e *Engine) openNetwork(ctx context.Context) error {
	recorded, err := e.in.policies()
	if err != nil {
		return err
	}
	policies := map[netip.Addr]*network.Policy{}
	for _, r := range recorded {
		addr, err := network.AddrOf(e.in.subnet, r.index)
		if err != nil {
			return err
		}
		policies[addr] = packetPolicy(policy.Compile(r.policy))
	}
	o := network.Options{
		Name:          fmt.Sprintf("%x", e.in.slot),
		Subnet:        e.in.subnet,
		AllowedRanges: e.opts.AllowedRanges,
		NoIPv6:        e.opts.NoIPv6,
		Policies:      policies,
		Logger:        e.log,
	}
	listeners, err := e.listenProxies(ctx, o)
	if err != nil {
		return fmt.Errorf("listening for the connections of sandboxes under a policy: %w", err)
	}
	o.ProxyPort = listeners[0].Addr().(*net.TCPAddr).AddrPort().Port()
	if network.CanReport(ctx) {
		o.ReportGroup = uint16(reportGroups + e.in.slot)
	} else {
		e.log.Warn("this kernel can't report refused packets (nfnetlink_log); only refused names and connections are reported")
	}
	if e.network, err = network.New(ctx, o); err != nil {
		closeAll(listeners)
		return err
	}
	e.enforcer = enforce.New(filter{e.network})
	for _, r := range recorded {
		addr, _ := network.AddrOf(e.in.subnet, r.index)
		e.enforcer.Adopt(r.id, addr, r.policy)
	}
	e.proxy, err = proxy.New(proxy.Options{
		Listeners: listeners, Identify: e.network.Sandbox, Judge: e.enforcer, Interceptor: e.opts.Interceptor, Denied: e.enforcer.Connection, Logger: e.log,
	})
	if err != nil {
		closeAll(listeners)
		return err
	}
	e.enforcer.Attach(e.proxy)
	e.enforcer.NameAskers(e.askerOf)
	return nil
}

// listenProxies listens at the gateway's addresses, on one port.
func (e *Engine) listenProxies(ctx context.Context, o network.Options) ([]*net.TCPListener, error) {
	gateways := o.Gateways()
	listeners, err := listenAll(ctx, gateways, proxyPort)
	if !errors.Is(err, unix.EADDRINUSE) {
		return listeners, err
	}
	e.log.Warn("another program listens on the usual port of the proxy for sandboxes under a policy; taking another", "port", proxyPort)
	for range portTries {
		if listeners, err = listenAll(ctx, gateways, 0); !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return listeners, err
}

// portTries is how often a port that is free at the one address may turn out to be
// taken at the other.
const portTries = 8

// listenAll listens on one port of all addresses. With 0 the kernel chooses it.
func listenAll(ctx context.Context, addrs []netip.Addr, port uint16) ([]*net.TCPListener, error) {
	var out []*net.TCPListener
	for _, a := range addrs {
		l, err := listenProxy(ctx, netip.AddrPortFrom(a, port))
		if err != nil {
			closeAll(out)
			return nil, err
		}
		out = append(out, l)
		port = l.Addr().(*net.TCPAddr).AddrPort().Port()
	}
	return out, nil
}

func closeAll(list []*net.TCPListener) {
	for _, l := range list {
		_ = l.Close()
	}
}

// listenProxy listens at an address that need not be there yet: the packet filter
// that names the port comes first.
func listenProxy(ctx context.Context, at netip.AddrPort) (*net.TCPListener, error) {
	protocol, level, option := "tcp4", unix.SOL_IP, unix.IP_FREEBIND
	if at.Addr().Is6() {
		protocol, level, option = "tcp6", unix.SOL_IPV6, unix.IPV6_FREEBIND
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), level, option, 1)
		})
		return errors.Join(cerr, err)
	}}
	l, err := lc.Listen(ctx, protocol, at.String())
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

// startProxy serves the connections of sandboxes under a policy, and begins to
// report what policies refuse.
func (e *Engine) startProxy() {
	e.wg.Go(func() {
		if err := e.proxy.Serve(e.ctx); err != nil && e.ctx.Err() == nil {
			e.log.Error("the proxy for sandboxes under a policy stopped", "error", err)
		}
	})
	e.wg.Go(e.reportDenials)
	e.wg.Go(func() { e.network.WatchRoutes(e.ctx) })
	if !e.network.Reports() {
		return
	}
	e.wg.Go(func() {
		err := e.network.Drops(e.ctx, func(d network.Drop) {
			e.enforcer.Packet(netip.AddrPortFrom(d.Sandbox, d.Source), d.Protocol, d.To)
		})
		if err != nil && e.ctx.Err() == nil {
			e.log.Warn("refused packets are no longer reported", "error", err)
		}
	})
}

// SetPolicy puts a running sandbox under a policy, or replaces its policy; nil
// takes it away. When it returns nil the policy is in force, and connections
// that it forbids are cut. When it fails, the old policy is in force. Before a
// rule that looks at requests its programs are told to trust the authority.
func (e *Engine) SetPolicy(ctx context.Context, id string, p *policy.Policy) error {
	s, err := e.find(id)
	if err != nil {
		return err
	}
	if err := e.trustFor(ctx, id, p); err != nil {
		return err
	}
	s.untold = nil
	if err := e.applyPolicy(ctx, s, p, e.enforcer.Set); err != nil {
		return &sandbox.Error{Kind: sandbox.KindInternal, Code: sandbox.CodeInternal,
			Message: fmt.Sprintf("The network policy of sandbox %q could not be applied: %v", id, err), Err: err}
	}
	return nil
}

// enforceFunc is one of the Enforcer's ways to put a sandbox under a policy.
type enforceFunc func(ctx context.Context, id string, addr netip.Addr, p policy.Policy) error

// applyPolicy records a policy and enforces it. Of two different ones the
// recorded is never more than one change ahead.
func (e *Engine) applyPolicy(ctx context.Context, s *shell, p *policy.Policy, enforce enforceFunc) error {
	path := filepath.Join(e.in.run(s.id), policyFile)
	if p == nil {
		if err := e.enforcer.Remove(ctx, s.addr); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := writeFile(path, b); err != nil {
		return err
	}
	err = enforce(ctx, s.id, s.addr, *p)
	if err == nil {
		return nil
	}
	if old == nil {
		return errors.Join(err, os.Remove(path))
	}
	return errors.Join(err, writeFile(path, old))
}

// dropPolicy takes the policy of a sandbox away whose processes have ended.
func (e *Engine) dropPolicy(ctx context.Context, s *shell) error {
	if !s.addr.IsValid() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveTimeout)
	defer cancel()
	return e.enforcer.Remove(ctx, s.addr)
}

// restorePolicy makes the Manager's record of an adopted sandbox's policy the
// one in force, where a server died between the two.
func (e *Engine) restorePolicy(ctx context.Context, s *shell, p *policy.Policy) error {
	if p == nil {
		return e.applyPolicy(ctx, s, nil, nil)
	}
	want, err := json.Marshal(p)
	if err != nil {
		return err
	}
	have, err := os.ReadFile(filepath.Join(e.in.run(s.id), policyFile))
	if err == nil && string(have) == string(want) {
		return nil
	}
	return e.applyPolicy(ctx, s, p, e.enforcer.Set)
}

// recordedPolicy is a policy from a run directory.
type recordedPolicy struct {
	id     string
	index  int
	policy policy.Policy
}

// policies reads what an earlier process recorded. A record that can't be read
// denies everything: the sandbox had a policy.
func (in *instance) policies() ([]recordedPolicy, error) {
	list, err := os.ReadDir(in.shellsDir())
	if err != nil {
		return nil, err
	}
	var out []recordedPolicy
	for _, d := range list {
		b, err := readSome(filepath.Join(in.run(d.Name()), policyFile), maxPolicyFile)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		st, serr := in.loadState(d.Name())
		if serr != nil {
			continue // recovery takes it apart
		}
		r := recordedPolicy{id: d.Name(), index: st.Index, policy: policy.Policy{DefaultAction: policy.Deny}}
		var p policy.Policy
		if err == nil && json.Unmarshal(b, &p) == nil {
			if p, nerr := p.Normalize(); nerr == nil {
				r.policy = p
			}
		}
		out = append(out, r)
	}
	return out, nil
}

func readSome(path string, most int64) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Size() > most {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", path, st.Size(), most)
	}
	return os.ReadFile(path)
}
