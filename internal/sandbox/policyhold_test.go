package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/paddock-sandbox/paddock/internal/policy"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
	"github.com/paddock-sandbox/paddock/internal/vault"
)

// vaultRig is a sandbox with a policy and a real vault, changed the way that the
// server changes them.
type vaultRig struct {
	*rig
	vaults *vault.Vaults
	id     string
}

func newVaultRig(t *testing.T) *vaultRig {
	v, err := vault.Open(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	r := &vaultRig{rig: newRig(t, func(r *rig) { r.opts.Forget = v.Remove }), vaults: v}
	s := spec()
	s.NetworkPolicy = allowing("a.example")
	r.id = r.run(s).ID
	return r
}

func (r *vaultRig) setPolicy(targets ...string) error {
	_, err := r.m.SetPolicy(context.Background(), r.id, -1, func(*policy.Policy) (*policy.Policy, error) {
		next := allowing(targets...)
		return next, r.vaults.CheckPolicy(r.id, next.Egress)
	})
	return err
}

func (r *vaultRig) hold(use func(ctx context.Context, on vault.Ground) error) error {
	return r.m.HoldPolicy(context.Background(), r.id, func(ctx context.Context, h *sandbox.HeldPolicy) error {
		return use(ctx, vault.Ground{Rules: h.Sandbox.Spec.NetworkPolicy.Egress, Ready: yield})
	})
}

// yield lets others in between a check and the write that it was for.
func yield(context.Context) error {
	for range 200 {
		runtime.Gosched()
	}
	return nil
}

// setVault makes a vault with one binding, in place of the one that there is.
func (r *vaultRig) setVault(host string) error {
	binding := vault.Binding{Name: "b", Match: vault.Match{Hosts: []string{host}}, Auth: vault.Auth{Type: vault.AuthBearer, Credential: "c"}}
	credential := vault.Credential{Name: "c", Source: vault.Source{Value: vault.NewSecret("value")}}
	return r.hold(func(ctx context.Context, on vault.Ground) error {
		_, err := r.vaults.Patch(ctx, r.id, &vault.PatchRequest{Bindings: vault.BindingSet{Replace: []vault.Binding{binding}}}, on)
		var known *vault.Error
		if errors.As(err, &known) && known.Status == 404 {
			_, err = r.vaults.Create(ctx, r.id, &vault.CreateRequest{Credentials: []vault.Credential{credential}, Bindings: []vault.Binding{binding}}, on)
		}
		return err
	})
}

// expectCovered fails when a binding is for a host without a rule.
func (r *vaultRig) expectCovered() {
	r.t.Helper()
	err := r.hold(func(_ context.Context, on vault.Ground) error { return r.vaults.CheckPolicy(r.id, on.Rules) })
	if err != nil {
		r.t.Errorf("%v", err)
	}
}

// A binding for a host and the removal of the rule for that host can't both be
// done, however they meet.
func TestNoBindingWithoutItsRule(t *testing.T) {
	r := newVaultRig(t)
	r.p.onStep(func(_ context.Context, at, _ string) error {
		if strings.HasPrefix(at, "policy") && rand.IntN(8) == 0 {
			return errors.New("the kernel says no") // and the policy goes back
		}
		return nil
	})
	var both sync.Map
	var wg sync.WaitGroup
	hosts := []string{"a.example", "b.example", "c.example"}
	for n := range 6 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(n)))
			for range 60 {
				host := hosts[random.IntN(len(hosts))]
				switch n % 3 {
				case 0:
					both.Store(fmt.Sprint("policy ", r.setPolicy(host, hosts[random.IntN(len(hosts))]) == nil), true)
				case 1:
					both.Store(fmt.Sprint("vault ", r.setVault(host) == nil), true)
				case 2:
					r.expectCovered()
					if random.IntN(4) == 0 {
						_ = r.vaults.Delete(r.id)
					}
				}
			}
		})
	}
	wg.Wait()
	r.expectCovered()
	r.p.onStep(failing(nil))
	r.quiesce()
	for _, outcome := range []string{"policy true", "policy false", "vault true", "vault false"} {
		if _, ok := both.Load(outcome); !ok {
			t.Errorf("%s never came about, so the test tells nothing", outcome)
		}
	}
}

// A change of the policy waits for a vault's, and sees it.
func TestHeldPolicyStays(t *testing.T) {
	r := newVaultRig(t)
	begun, result := make(chan struct{}), make(chan error, 1)
	err := r.hold(func(ctx context.Context, on vault.Ground) error {
		go func() {
			close(begun)
			result <- r.setPolicy("b.example")
		}()
		<-begun
		credential := vault.Credential{Name: "c", Source: vault.Source{Value: vault.NewSecret("value")}}
		binding := vault.Binding{Name: "b", Match: vault.Match{Hosts: []string{"a.example"}}, Auth: vault.Auth{Type: vault.AuthBearer, Credential: "c"}}
		_, err := r.vaults.Create(ctx, r.id, &vault.CreateRequest{Credentials: []vault.Credential{credential}, Bindings: []vault.Binding{binding}}, on)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-result; err == nil || !strings.Contains(err.Error(), "a.example") {
		t.Errorf("the rule was taken from under the binding: %v", err)
	}
	r.expectCovered()
}

// A deletion ends what holds the policy and waits for it, so that nothing is
// stored for a sandbox that is gone.
func TestHeldPolicyAndDeletion(t *testing.T) {
	r := newVaultRig(t)
	deleted := make(chan error, 1)
	err := r.hold(func(ctx context.Context, _ vault.Ground) error {
		go func() { deleted <- r.m.Delete(context.Background(), r.id) }()
		<-ctx.Done()
		select {
		case err := <-deleted:
			t.Errorf("the deletion did not wait: %v", err)
		default:
		}
		return ctx.Err()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := <-deleted; err != nil {
		t.Fatal(err)
	}
	err = r.hold(func(context.Context, vault.Ground) error { t.Error("it was called"); return nil })
	wantError(t, err, sandbox.KindNotFound, sandbox.CodeNotFound)
}

// An engine that can't have sandboxes trust anybody says so.
func TestTrustWithoutAnEngineForIt(t *testing.T) {
	r := newVaultRig(t)
	err := r.m.HoldPolicy(t.Context(), r.id, func(ctx context.Context, h *sandbox.HeldPolicy) error { return h.Trust(ctx) })
	wantError(t, err, sandbox.KindNotImplemented, sandbox.CodeNotSupported)
}
