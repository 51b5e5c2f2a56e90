package gpu

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
)

// All asks for every GPU.
const All = all

// ErrBusy is wrapped when there are enough GPUs, but sandboxes have them.
var ErrBusy = errors.New("not enough GPUs are free")

// Allocator hands out GPUs. It is safe for concurrent use. It remembers nothing
// beyond the process: Restore tells it what living sandboxes have.
type Allocator struct {
	dirs []string
	kind string

	mu   sync.Mutex
	held map[string]*Grant // by sandbox
}

// Grant is what one sandbox has. It is not changed any more.
type Grant struct {
	// Names are the qualified names of its GPUs.
	Names []string
	// Edits is nil after Restore: then they have been made.
	Edits *Edits
}

// NewAllocator reads specifications from the directories, later ones winning
// (empty: CDI's own, /etc/cdi and /var/run/cdi). kind is the vendor and class
// to hand out; empty means the first found of NVIDIA, AMD and Intel.
func NewAllocator(dirs []string, kind string) *Allocator {
	if len(dirs) == 0 {
		dirs = []string{"/etc/cdi", "/var/run/cdi"}
	}
	return &Allocator{dirs: dirs, kind: kind, held: map[string]*Grant{}}
}

// Check says whether so many GPUs ("1", "2", …, or All) could ever be had, and
// used. Errors say what is wrong, without naming who asked.
func (a *Allocator) Check(asked string) error {
	inv, err := read(a.dirs, a.kind)
	if err != nil {
		return err
	}
	n, err := inv.count(asked)
	if err != nil {
		return err
	}
	_, err = inv.edits(inv.apply(asked, inv.gpus[:n]))
	return err
}

// count turns what was asked for into a number that exists.
func (inv *inventory) count(asked string) (int, error) {
	if asked == All {
		return len(inv.gpus), nil
	}
	n, err := strconv.Atoi(asked)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%q is not a number of GPUs; give 1 or more, or \"all\"", asked)
	}
	if n > len(inv.gpus) {
		return 0, fmt.Errorf("%d GPUs were asked for, and this server has %d; give at most that", n, len(inv.gpus))
	}
	return n, nil
}

// apply are the devices whose edits give the sandbox those GPUs.
func (inv *inventory) apply(asked string, gpus []string) []string {
	if asked == All && inv.all {
		return []string{all}
	}
	return gpus
}

// Take gives the sandbox so many GPUs that no other has, until Give; the first
// free ones. Of tells which. If the sandbox has GPUs already, they are taken
// back first. An error wraps ErrBusy when it would succeed once other sandboxes
// are gone.
func (a *Allocator) Take(sandbox, asked string) error {
	inv, err := read(a.dirs, a.kind)
	if err != nil {
		return err
	}
	n, err := inv.count(asked)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.held, sandbox)
	taken := map[string]bool{}
	for _, g := range a.held {
		for _, name := range g.Names {
			taken[name] = true
		}
	}
	var gpus, names []string
	for _, g := range inv.gpus {
		if name := parserName(inv.kind, g); !taken[name] && len(gpus) < n {
			gpus, names = append(gpus, g), append(names, name)
		}
	}
	if len(gpus) < n {
		return fmt.Errorf("%w: %d were asked for, %d of %d are free", ErrBusy, n, len(gpus), len(inv.gpus))
	}
	edits, err := inv.edits(inv.apply(asked, gpus))
	if err != nil {
		return err
	}
	a.held[sandbox] = &Grant{Names: names, Edits: edits}
	return nil
}

// Of is what the sandbox has; nil when it has no GPU.
func (a *Allocator) Of(sandbox string) *Grant {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.held[sandbox]
}

// Restore says that a living sandbox has those GPUs.
func (a *Allocator) Restore(sandbox string, names []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(names) > 0 {
		a.held[sandbox] = &Grant{Names: slices.Clone(names)}
	}
}

// Give takes a sandbox's GPUs back. Idempotent.
func (a *Allocator) Give(sandbox string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.held, sandbox)
}

// Found describes the GPUs of this server for people.
func (a *Allocator) Found() (string, error) {
	inv, err := read(a.dirs, a.kind)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d of %s", len(inv.gpus), inv.kind), nil
}
