package vault

import (
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/paddock-sandbox/paddock/internal/durable"
	"github.com/paddock-sandbox/paddock/internal/policy"
)

const (
	// maxVaultBytes bounds the values of one vault together, also after many
	// patches.
	maxVaultBytes = 1 << 20
	keyFile       = "vault.key"
	vaultsDir     = "vaults"
	suffix        = ".vault"
)

// Sandbox ids name files here.
var idPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)

// Vaults are the vaults of all sandboxes. Its methods may be called at the same
// time; writes to one vault take turns.
type Vaults struct {
	dir string // the data directory
	log *slog.Logger

	keyMu sync.Mutex
	aead  cipher.AEAD // nil until there is a key

	mu     sync.RWMutex
	vaults map[string]*entry
}

// entry is the vault of one sandbox.
type entry struct {
	write sync.Mutex // held by a change, over its write to disk
	// gone is set, under write, when the entry left the map.
	gone   bool
	active atomic.Pointer[Active]
	// broken says why the file on disk can't be read. Guarded by write, and by
	// never being set after Open.
	broken error
}

// Open reads the vaults below a data directory. One that can't be read, for
// want of its key for instance, is no error here: its sandbox has no
// credentials, and the API says why.
func Open(dataDir string, log *slog.Logger) (*Vaults, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	v := &Vaults{dir: dataDir, log: log, vaults: map[string]*entry{}}
	if err := os.MkdirAll(filepath.Join(dataDir, vaultsDir), 0o700); err != nil {
		return nil, fmt.Errorf("opening the credential vaults: %w", err)
	}
	files, err := os.ReadDir(filepath.Join(dataDir, vaultsDir))
	if err != nil {
		return nil, fmt.Errorf("opening the credential vaults: %w", err)
	}
	aead, keyErr := readKey(v.keyPath())
	if errors.Is(keyErr, fs.ErrNotExist) {
		keyErr = fmt.Errorf("its key %s is missing; put it back from a backup, or delete the vault and make it anew", v.keyPath())
	}
	v.aead = aead
	for _, f := range files {
		id, ok := strings.CutSuffix(f.Name(), suffix)
		if !ok || !idPattern.MatchString(id) {
			// What a write left that was broken off.
			if strings.HasPrefix(f.Name(), ".new-") {
				_ = os.Remove(filepath.Join(dataDir, vaultsDir, f.Name()))
			}
			continue
		}
		e := &entry{}
		if e.broken = v.load(id, e, keyErr); e.broken != nil {
			log.Error("a credential vault can't be read", "sandbox", id, "error", e.broken)
		}
		v.vaults[id] = e
	}
	return v, nil
}

func (v *Vaults) keyPath() string        { return filepath.Join(v.dir, keyFile) }
func (v *Vaults) path(id string) string  { return filepath.Join(v.dir, vaultsDir, id+suffix) }
func (v *Vaults) entry(id string) *entry { v.mu.RLock(); defer v.mu.RUnlock(); return v.vaults[id] }
func (e *entry) content() *content       { return e.active.Load().contentOrNil() }
func (a *Active) contentOrNil() *content {
	if a == nil {
		return nil
	}
	return a.content
}

func (v *Vaults) load(id string, e *entry, keyErr error) error {
	if keyErr != nil {
		return fmt.Errorf("%w: %w", ErrSealed, keyErr)
	}
	sealed, err := os.ReadFile(v.path(id))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSealed, err)
	}
	c, err := open(v.aead, id, sealed)
	if err != nil {
		return err
	}
	e.active.Store(activate(c))
	return nil
}

// cipher returns that of the key, and makes the key at its first use. While
// files of a lost key lie here no other one is made: the lost one may come back.
func (v *Vaults) cipher() (cipher.AEAD, error) {
	v.keyMu.Lock()
	defer v.keyMu.Unlock()
	if v.aead != nil {
		return v.aead, nil
	}
	aead, err := readKey(v.keyPath())
	if errors.Is(err, fs.ErrNotExist) {
		if n := v.unreadable(); n > 0 {
			return nil, fmt.Errorf("the key %s of %d vaults is missing; put it back, or delete these vaults first", v.keyPath(), n)
		}
		aead, err = makeKey(v.keyPath())
	}
	v.aead = aead
	return aead, err
}

func (v *Vaults) unreadable() (n int) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for _, e := range v.vaults {
		if e.broken != nil {
			n++
		}
	}
	return n
}

// State returns what callers may see of a sandbox's vault.
func (v *Vaults) State(id string) (*State, error) {
	e := v.entry(id)
	if e == nil {
		return nil, errNoVault
	}
	if e.broken != nil {
		return nil, e.broken
	}
	c := e.content()
	if c == nil {
		return nil, errNoVault // a create that is not done
	}
	return c.state(), nil
}

// Ground is what a change of a vault stands on. It must stay as it is until the
// change is done.
type Ground struct {
	// Rules are those of the sandbox's policy, normalised.
	Rules []policy.Rule
	// Ready, unless nil, is called when all else is checked, and before bindings
	// are stored. Its error refuses the change.
	Ready func(context.Context) error
}

// check reports whether a content may be stored.
func (g *Ground) check(ctx context.Context, c *content) error {
	if err := c.checkCovered(g.Rules); err != nil {
		return err
	}
	if g.Ready != nil && len(c.bindings) > 0 {
		if err := g.Ready(ctx); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Create makes a sandbox's vault.
func (v *Vaults) Create(ctx context.Context, id string, req *CreateRequest, on Ground) (*State, error) {
	if !idPattern.MatchString(id) {
		return nil, notFound("there is no sandbox %q", id)
	}
	c, err := newContent(req)
	if err != nil {
		return nil, err
	}
	e := &entry{}
	e.write.Lock()
	defer e.write.Unlock()
	v.mu.Lock()
	if v.vaults[id] != nil {
		v.mu.Unlock()
		return nil, conflict("this sandbox has a credential vault already; change it with PATCH, or DELETE it first")
	}
	v.vaults[id] = e
	v.mu.Unlock()
	if err := on.check(ctx, c); err != nil {
		v.drop(id, e)
		return nil, err
	}
	if err := v.store(id, e, c); err != nil {
		// It may have failed when the file was there already.
		if rerr := durable.Remove(v.path(id)); rerr != nil {
			v.log.Error("what is left of a credential vault could not be removed", "sandbox", id, "error", rerr)
		}
		v.drop(id, e)
		return nil, err
	}
	return c.state(), nil
}

// Patch changes a sandbox's vault, or nothing.
func (v *Vaults) Patch(ctx context.Context, id string, req *PatchRequest, on Ground) (*State, error) {
	e := v.entry(id)
	if e == nil {
		return nil, errNoVault
	}
	e.write.Lock()
	defer e.write.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if e.broken != nil {
		return nil, e.broken
	}
	c := e.content()
	if e.gone || c == nil {
		return nil, errNoVault
	}
	if req.ExpectedRevision != nil && *req.ExpectedRevision != c.revision {
		return nil, conflict("the vault is at revision %d, not at the expected %d; read it again", c.revision, *req.ExpectedRevision)
	}
	next, err := c.patch(req)
	if err != nil {
		return nil, err
	}
	if err := on.check(ctx, next); err != nil {
		return nil, err
	}
	if err := v.store(id, e, next); err != nil {
		// It may have failed when the file was replaced already: what is not
		// active now must not be after a restart.
		if rerr := v.store(id, e, c); rerr != nil {
			v.log.Error("the content of a credential vault from before a failed change could not be written again", "sandbox", id, "error", rerr)
		}
		return nil, err
	}
	return next.state(), nil
}

// store makes a content durable, then active. The caller holds e.write.
func (v *Vaults) store(id string, e *entry, c *content) error {
	aead, err := v.cipher()
	if err != nil {
		return err
	}
	sealed, err := seal(aead, id, c)
	if err != nil {
		return err
	}
	if err := durable.Write(v.path(id), sealed, 0o600); err != nil {
		return fmt.Errorf("writing the credential vault: %w", err)
	}
	e.active.Store(activate(c))
	v.log.Info("stored a credential vault", "sandbox", id, "revision", c.revision,
		"credentials", len(c.credentials), "bindings", len(c.bindings))
	return nil
}

// Delete removes a sandbox's vault, also one that can't be read.
func (v *Vaults) Delete(id string) error {
	e := v.entry(id)
	if e == nil {
		return errNoVault
	}
	e.write.Lock()
	defer e.write.Unlock()
	if e.gone {
		return errNoVault
	}
	// Nothing is injected from here on, whatever happens to the file.
	e.active.Store(nil)
	if err := durable.Remove(v.path(id)); err != nil {
		return fmt.Errorf("removing the credential vault: %w", err)
	}
	v.drop(id, e)
	return nil
}

// drop takes an entry out of the map. The caller holds e.write.
func (v *Vaults) drop(id string, e *entry) {
	e.gone = true
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.vaults[id] == e {
		delete(v.vaults, id)
	}
}

// Remove deletes what a deleted sandbox had. It is no error when that is
// nothing.
func (v *Vaults) Remove(id string) error {
	err := v.Delete(id)
	var known *Error
	if errors.As(err, &known) && known.Status == http.StatusNotFound {
		return nil
	}
	return err
}

// Retain removes the vaults of sandboxes that don't exist. It is called once,
// when the records are known.
func (v *Vaults) Retain(exists func(id string) bool) error {
	v.mu.RLock()
	var orphans []string
	for id := range v.vaults {
		if !exists(id) {
			orphans = append(orphans, id)
		}
	}
	v.mu.RUnlock()
	var errs []error
	for _, id := range orphans {
		errs = append(errs, v.Remove(id))
	}
	return errors.Join(errs...)
}

// Active returns the bindings of a sandbox as they are now, or nil. It takes no
// lock that a write holds.
func (v *Vaults) Active(id string) *Active {
	e := v.entry(id)
	if e == nil {
		return nil
	}
	return e.active.Load()
}

// CheckPolicy reports, as an *Error with status 400, whether a sandbox's policy
// may become one with these rules: each host that a binding names must be
// allowed by a domain rule.
func (v *Vaults) CheckPolicy(id string, rules []policy.Rule) error {
	e := v.entry(id)
	if e == nil {
		return nil
	}
	c := e.content()
	if c == nil {
		return nil
	}
	return c.checkCovered(rules)
}
