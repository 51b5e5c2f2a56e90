package gpu

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// object is a JSON object.
type object map[string]any

// node is a device node whose numbers are given, so that it need not exist.
func node(path string) object {
	return object{"path": path, "type": "c", "major": 195, "minor": 7}
}

func device(name string, edits object) object {
	return object{"name": name, "containerEdits": edits}
}

func withNodes(paths ...string) object {
	var nodes []object
	for _, p := range paths {
		nodes = append(nodes, node(p))
	}
	return object{"deviceNodes": nodes}
}

// write writes a specification into the directory.
func write(t testing.TB, dir, kind string, common object, devices ...object) {
	t.Helper()
	b, err := json.Marshal(object{"cdiVersion": "1.1.0", "kind": kind, "containerEdits": common, "devices": devices})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, strings.ReplaceAll(kind, "/", "-")+".json")
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestInventory(t *testing.T) {
	twice := []object{
		device("GPU-aaaa", withNodes("/dev/nvidia0")), device("0", withNodes("/dev/nvidia0")),
		device("10", withNodes("/dev/nvidia10")), device("2", withNodes("/dev/nvidia2")),
		device("all", withNodes("/dev/nvidia0", "/dev/nvidia2", "/dev/nvidia10")),
	}
	for _, c := range []struct {
		name    string
		kinds   map[string][]object
		prefer  string
		want    []string
		wantOne string
	}{
		{"in order, without aliases", map[string][]object{"nvidia.com/gpu": twice}, "", []string{"0", "2", "10"}, "nvidia.com/gpu"},
		{"only all", map[string][]object{"nvidia.com/gpu": {device("all", withNodes("/dev/dxg"))}}, "", []string{"all"}, "nvidia.com/gpu"},
		{"the second vendor", map[string][]object{"amd.com/gpu": {device("0", withNodes("/dev/kfd"))}, "acme.com/net": twice}, "", []string{"0"}, "amd.com/gpu"},
		{"the configured kind", map[string][]object{"amd.com/gpu": {device("x", withNodes("/dev/kfd"))}, "acme.com/tpu": {device("y", withNodes("/dev/tpu"))}}, "acme.com/tpu", []string{"y"}, "acme.com/tpu"},
		{"another kind", map[string][]object{"acme.com/tpu": {device("y", withNodes("/dev/tpu"))}}, "", nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for kind, devices := range c.kinds {
				write(t, dir, kind, object{}, devices...)
			}
			inv, err := read([]string{dir, filepath.Join(dir, "missing")}, c.prefer)
			if c.want == nil {
				if !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), dir) {
					t.Errorf("got %v, want ErrNone with the directory", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(inv.gpus, c.want) || inv.kind != c.wantOne {
				t.Errorf("got %v of %s, want %v of %s", inv.gpus, inv.kind, c.want, c.wantOne)
			}
		})
	}
}

func TestBrokenSpecificationIsNamed(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "broken.json")
	if err := os.WriteFile(file, []byte(`{"cdiVersion":`), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := NewAllocator([]string{dir}, "").Check("1"); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), file) {
		t.Errorf("got %v, want ErrNone that names %s", err, file)
	}
}

// libraryFile is a shared library of this machine, and the name in it.
func libraryFile(t *testing.T) (file, name string) {
	for _, pattern := range []string{"/lib/*/libc.so.6", "/lib64/libc.so.6", "/lib/libc.musl-*.so.1"} {
		found, _ := filepath.Glob(pattern)
		for _, f := range found {
			if s := soname(f); s != "" {
				return f, s
			}
		}
	}
	t.Skip("no shared library here")
	return "", ""
}

func TestEdits(t *testing.T) {
	dir := t.TempDir()
	library, name := libraryFile(t)
	plain := filepath.Join(dir, "plain.conf")
	if err := os.WriteFile(plain, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	hook := func(path string, args ...string) object {
		return object{"hookName": "createContainer", "path": path, "args": args}
	}
	write(t, dir, "nvidia.com/gpu", object{
		"env":            []string{"A=common", "B=x=y"},
		"deviceNodes":    []object{node("/dev/nvidiactl"), {"path": "/dev/from-host", "hostPath": "/dev/null"}},
		"additionalGids": []int{44},
		"mounts": []object{
			{"hostPath": library, "containerPath": "/usr/lib/x/libc-2.so", "options": []string{"ro", "bind"}},
			{"hostPath": plain, "containerPath": "/etc/plain.conf", "type": "bind"},
			{"hostPath": dir, "containerPath": "/etc"},
		},
		"hooks": []object{
			hook("/usr/bin/nvidia-cdi-hook", "nvidia-cdi-hook", "create-symlinks", "--link", "a::/usr/lib/x/b", "--link=../c::/d"),
			hook("/usr/bin/nvidia-ctk", "nvidia-ctk", "hook", "update-ldcache", "--ldconfig-path", "@/sbin/ldconfig", "--folder", "/usr/lib/x", "--folder", "/usr/lib/x"),
			hook("/usr/bin/nvidia-cdi-hook", "nvidia-cdi-hook", "disable-device-node-modification"),
		},
	}, device("0", object{"env": []string{"A=device"}, "deviceNodes": []object{node("/dev/nvidia0")}}))
	a := NewAllocator([]string{dir}, "")
	if err := a.Take("s", "1"); err != nil {
		t.Fatal(err)
	}
	g := a.Of("s")
	if !slices.Equal(g.Names, []string{"nvidia.com/gpu=0"}) {
		t.Errorf("names %v", g.Names)
	}
	e := g.Edits
	if want := map[string]string{"A": "device", "B": "x=y"}; !maps.Equal(e.Env, want) {
		t.Errorf("env %v, want %v", e.Env, want)
	}
	if want := []Device{{"/dev/from-host", 1, 3}, {"/dev/nvidia0", 195, 7}, {"/dev/nvidiactl", 195, 7}}; !slices.Equal(e.Devices, want) {
		t.Errorf("devices %v, want %v", e.Devices, want)
	}
	if want := []Mount{{dir, "/etc"}, {plain, "/etc/plain.conf"}, {library, "/usr/lib/x/libc-2.so"}}; !slices.Equal(e.Mounts, want) {
		t.Errorf("mounts %v, want %v", e.Mounts, want)
	}
	if want := map[string]string{"/usr/lib/x/b": "a", "/d": "../c", "/usr/lib/x/" + name: "libc-2.so"}; !maps.Equal(e.Links, want) {
		t.Errorf("links %v, want %v", e.Links, want)
	}
	if want := []string{"/usr/lib/x"}; !slices.Equal(e.LibraryDirs, want) {
		t.Errorf("library directories %v, want %v", e.LibraryDirs, want)
	}
}

func TestRefusals(t *testing.T) {
	hooks := func(path string, args ...string) object {
		return object{"hooks": []object{{"hookName": "createContainer", "path": path, "args": args}}}
	}
	cdiHook := func(args ...string) object {
		return hooks("/usr/bin/nvidia-cdi-hook", append([]string{"nvidia-cdi-hook"}, args...)...)
	}
	for name, c := range map[string]struct {
		edits object
		want  string
	}{
		"another hook program":  {hooks("/bin/sh", "sh", "-c", "true"), "/bin/sh"},
		"another hook":          {cdiHook("launch-missiles"), "launch-missiles"},
		"a hook without a name": {cdiHook(), "not supported"},
		"the tool, not a hook":  {hooks("/usr/bin/nvidia-ctk", "nvidia-ctk", "cdi", "generate"), "not supported"},
		"another hook option":   {cdiHook("create-symlinks", "--force", "x"), "--force"},
		"an option alone":       {cdiHook("create-symlinks", "--link"), "no value"},
		"half a link":           {cdiHook("create-symlinks", "--link", "x"), "TARGET::PATH"},
		"a relative link":       {cdiHook("create-symlinks", "--link", "x::y"), "absolute"},
		"a folder with a colon": {cdiHook("update-ldcache", "--folder", "/a:/b"), "colon"},
		"a relative folder":     {cdiHook("update-ldcache", "--folder", "a"), "absolute"},
		"a missing node":        {object{"deviceNodes": []object{{"path": "/dev/no-such-device"}}}, "/dev/no-such-device"},
		"a file as a node":      {object{"deviceNodes": []object{{"path": "/dev/x", "hostPath": "/etc/passwd"}}}, "character device"},
		"a block device":        {object{"deviceNodes": []object{{"path": "/dev/x", "type": "b", "major": 7, "minor": 0}}}, `"b"`},
		"the root as a node":    {object{"deviceNodes": []object{{"path": "/..", "type": "c", "major": 7}}}, "absolute"},
		"a missing file":        {object{"mounts": []object{{"hostPath": "/no/such/file", "containerPath": "/x"}}}, "/no/such/file"},
		"a mount on the root":   {object{"mounts": []object{{"hostPath": "/etc", "containerPath": "/"}}}, "absolute"},
		"another filesystem":    {object{"mounts": []object{{"hostPath": "tmpfs", "containerPath": "/x", "type": "tmpfs"}}}, "tmpfs"},
		"a device as a mount":   {object{"mounts": []object{{"hostPath": "/dev/null", "containerPath": "/x"}}}, "files and directories"},
		"a network interface":   {object{"netDevices": []object{{"hostInterfaceName": "eth0", "name": "eth0"}}}, "network interfaces"},
		"resource director":     {object{"intelRdt": object{"closID": "x"}}, "RDT"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "nvidia.com/gpu", c.edits, device("0", withNodes("/dev/nvidia0")))
			a := NewAllocator([]string{dir}, "")
			for what, err := range map[string]error{"Check": a.Check("1"), "Take": a.Take("s", "1")} {
				if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), dir) {
					t.Errorf("%s: got %v, want an error with the file and %q", what, err, c.want)
				}
			}
			if a.Of("s") != nil {
				t.Error("a GPU that can't be used was given")
			}
		})
	}
}

func TestSocketsOfTheHostAreLeftOut(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	write(t, dir, "nvidia.com/gpu", object{"mounts": []object{
		{"hostPath": l.Addr().String(), "containerPath": "/run/nvidia-persistenced/socket"},
	}}, device("0", withNodes("/dev/nvidia0")))
	a := NewAllocator([]string{dir}, "")
	if err := a.Take("s", "1"); err != nil {
		t.Fatal(err)
	}
	if got := a.Of("s").Edits.Mounts; len(got) > 0 {
		t.Errorf("mounted: %v", got)
	}
}

// TestOneOwner: whatever is asked for in whatever order, no GPU has two owners,
// and nobody is refused what is free.
func TestOneOwner(t *testing.T) {
	const n = 4
	dir := t.TempDir()
	var devices []object
	for i := range n {
		devices = append(devices, device(strconv.Itoa(i), withNodes(fmt.Sprintf("/dev/gpu%d", i))))
	}
	write(t, dir, "nvidia.com/gpu", object{}, devices...)
	rapid.Check(t, func(t *rapid.T) {
		a := NewAllocator([]string{dir}, "")
		owned := map[string]int{}
		total := func() (sum int) {
			for _, k := range owned {
				sum += k
			}
			return sum
		}
		id := rapid.SampledFrom([]string{"a", "b", "c"})
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				who, k := id.Draw(t, "who"), rapid.IntRange(1, n).Draw(t, "count")
				asked := strconv.Itoa(k)
				if k == n {
					asked = All
				}
				fits := total()-owned[who]+k <= n
				err := a.Take(who, asked)
				if (err == nil) != fits || (err != nil && !errors.Is(err, ErrBusy)) {
					t.Fatalf("%s takes %s while %v: %v", who, asked, owned, err)
				}
				delete(owned, who)
				if err == nil {
					owned[who] = k
				}
			},
			"give": func(t *rapid.T) {
				who := id.Draw(t, "who")
				a.Give(who)
				delete(owned, who)
			},
			"restart": func(t *rapid.T) {
				next := NewAllocator([]string{dir}, "")
				for who := range owned {
					next.Restore(who, a.Of(who).Names)
				}
				a = next
			},
			"": func(t *rapid.T) {
				seen := map[string]string{}
				for _, who := range []string{"a", "b", "c"} {
					g := a.Of(who)
					if g == nil {
						if owned[who] != 0 {
							t.Fatalf("%s lost its GPUs", who)
						}
						continue
					}
					if len(g.Names) != owned[who] {
						t.Fatalf("%s has %v, want %d", who, g.Names, owned[who])
					}
					for _, name := range g.Names {
						if other := seen[name]; other != "" {
							t.Fatalf("%s belongs to %s and %s", name, other, who)
						}
						seen[name] = who
					}
				}
			},
		})
	})
}
