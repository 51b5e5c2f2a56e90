package gpu

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// kinds are looked for in this order unless one is configured.
var kinds = []string{"nvidia.com/gpu", "amd.com/gpu", "intel.com/gpu"}

// all is the device that vendors define for every GPU together.
const all = "all"

// ErrNone is wrapped when the machine has no GPU that is described.
var ErrNone = errors.New("no GPU was found on this server")

// inventory is what the specifications of one kind say.
type inventory struct {
	kind  string
	cache *cdi.Cache
	// gpus are the names of the single GPUs in natural order, without
	// aliases.
	gpus []string
	// all is whether there is a device for all of them.
	all bool
}

// read reads the specifications in the directories.
func read(dirs []string, kind string) (*inventory, error) {
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return nil, err
	}
	inv := &inventory{cache: cache}
	search := kinds
	if kind != "" {
		search = []string{kind}
	}
	devices := cache.ListDevices()
	for _, inv.kind = range search {
		if inv.fill(devices); len(inv.gpus) > 0 {
			return inv, nil
		}
	}
	return nil, inv.none(dirs, search)
}

// fill takes the devices of the kind.
func (inv *inventory) fill(devices []string) {
	var names []string
	for _, d := range devices {
		if name, ok := strings.CutPrefix(d, inv.kind+"="); ok {
			names = append(names, name)
		}
	}
	inv.all = slices.Contains(names, all)
	slices.SortFunc(names, natural)
	seen := map[string]bool{}
	for _, name := range names {
		if name == all {
			continue
		}
		// Vendors may define a GPU twice, by its index and by its UUID.
		id := inv.identity(name)
		if id == "" || !seen[id] {
			inv.gpus = append(inv.gpus, name)
		}
		seen[id] = true
	}
	if inv.all && len(inv.gpus) == 0 {
		inv.gpus = []string{all}
	}
}

// identity is the same for names of the same GPU: its own device nodes.
func (inv *inventory) identity(name string) string {
	d := inv.cache.GetDevice(parserName(inv.kind, name))
	if d == nil {
		return ""
	}
	var nodes []string
	for _, n := range d.ContainerEdits.DeviceNodes {
		nodes = append(nodes, n.Path)
	}
	slices.Sort(nodes)
	return strings.Join(nodes, "\n")
}

func parserName(kind, name string) string {
	vendor, class := parser.ParseQualifier(kind)
	return parser.QualifiedName(vendor, class, name)
}

// none explains why nothing was found.
func (inv *inventory) none(dirs, search []string) error {
	var said []string
	for path, errs := range inv.cache.GetErrors() {
		said = append(said, fmt.Sprintf("%s: %v", path, errors.Join(errs...)))
	}
	where := fmt.Sprintf("no CDI specification for %s in %s", strings.Join(search, ", "), strings.Join(dirs, " or "))
	if len(said) == 0 {
		return fmt.Errorf("%w (%s)", ErrNone, where)
	}
	slices.Sort(said)
	return fmt.Errorf("%w (%s; not readable are: %s)", ErrNone, where, strings.Join(said, "; "))
}

// natural sorts numbers by value and before words.
func natural(a, b string) int {
	x, xerr := strconv.Atoi(a)
	y, yerr := strconv.Atoi(b)
	switch {
	case xerr == nil && yerr == nil:
		return cmp.Compare(x, y)
	case xerr == nil:
		return -1
	case yerr == nil:
		return 1
	}
	return strings.Compare(a, b)
}
