package local

import (
	"context"
	"testing"

	"github.com/paddock-sandbox/paddock/internal/engine/enginetest"
	"github.com/paddock-sandbox/paddock/internal/engine/local/gvisor/gvisortest"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// gvisorHost is an instance with runsc.
func gvisorHost(t *testing.T) *host {
	t.Helper()
	h := newHost(t)
	h.opts.RunscPath = gvisortest.Runsc(t)
	return h
}

// behindGVisor is an engine on which every sandbox is behind gVisor.
type behindGVisor struct{ *Engine }

func (b behindGVisor) walled(spec *sandbox.Spec) *sandbox.Spec {
	c := spec.Clone()
	c.Isolation = sandbox.IsolationGVisor
	return &c
}

func (b behindGVisor) Check(ctx context.Context, spec *sandbox.Spec) error {
	return b.Engine.Check(ctx, b.walled(spec))
}

func (b behindGVisor) Reserve(ctx context.Context, spec *sandbox.Spec) (string, error) {
	return b.Engine.Reserve(ctx, b.walled(spec))
}

func (b behindGVisor) Create(ctx context.Context, r sandbox.CreateRequest) (*sandbox.Created, error) {
	r.Spec = b.walled(r.Spec)
	return b.Engine.Create(ctx, r)
}

func TestConformanceWithGVisor(t *testing.T) {
	enginetest.Run(t, func(t *testing.T) enginetest.Host {
		h := conformingHost(t, gvisorHost(t))
		open := h.Open
		h.Open = func(t *testing.T) sandbox.Engine { return behindGVisor{open(t).(*Engine)} }
		return h
	})
}
