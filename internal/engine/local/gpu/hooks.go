package gpu

import (
	"fmt"
	"path"
	"strings"

	specs "tags.cncf.io/container-device-interface/specs-go"
)

// hookPrograms are NVIDIA's, by file name; the older takes "hook" as its first
// argument.
const (
	hookProgram    = "nvidia-cdi-hook"
	oldHookProgram = "nvidia-ctk"
)

// addHook does what the hook would do, or refuses it. Hooks are programs that
// change a root filesystem as root of the host.
func (e *Edits) addHook(h *specs.Hook) error {
	args := h.Args
	if len(args) > 0 {
		args = args[1:] // the program's name
	}
	switch path.Base(h.Path) {
	case hookProgram:
	case oldHookProgram:
		if len(args) == 0 || args[0] != "hook" {
			return refused(h)
		}
		args = args[1:]
	default:
		return refused(h)
	}
	if len(args) == 0 {
		return refused(h)
	}
	switch args[0] {
	case "create-symlinks":
		return e.addLinks(h, args[1:])
	case "update-ldcache":
		return e.addLibraryDirs(h, args[1:])
	case "chmod", "disable-device-node-modification", "enable-cuda-compat":
		// Not needed: device nodes and their directories are made for the
		// sandbox; it can't make nodes; and its programs use the host's
		// driver, not one for another driver from the image.
		return nil
	}
	return refused(h)
}

func refused(h *specs.Hook) error {
	return fmt.Errorf("it wants to run the hook %s %s, which is not supported; supported are create-symlinks and update-ldcache of %s",
		h.Path, strings.Join(h.Args, " "), hookProgram)
}

// values returns those of a repeated option, given as "--name value" or
// "--name=value"; other options must be in ignored.
func values(args []string, name string, ignored ...string) ([]string, error) {
	var list []string
	for len(args) > 0 {
		option, value, joined := strings.Cut(args[0], "=")
		args = args[1:]
		if !joined {
			if len(args) == 0 {
				return nil, fmt.Errorf("the option %q has no value", option)
			}
			value, args = args[0], args[1:]
		}
		known := option == "--"+name
		for _, other := range ignored {
			known = known || option == "--"+other
		}
		if !known {
			return nil, fmt.Errorf("the option %q is not supported", option)
		}
		if option == "--"+name {
			list = append(list, value)
		}
	}
	return list, nil
}

// addLinks takes "--link TARGET::PATH".
func (e *Edits) addLinks(h *specs.Hook, args []string) error {
	links, err := values(args, "link")
	if err != nil {
		return fmt.Errorf("%w: %w", refused(h), err)
	}
	for _, l := range links {
		target, place, ok := strings.Cut(l, "::")
		if !ok || target == "" || strings.ContainsRune(target, 0) {
			return fmt.Errorf("the hook's link %q has not the form TARGET::PATH", l)
		}
		if err := checkPath(place); err != nil {
			return fmt.Errorf("the hook's link %q: %w", l, err)
		}
		e.Links[path.Clean(place)] = target
	}
	return nil
}

// addLibraryDirs takes "--folder DIR".
func (e *Edits) addLibraryDirs(h *specs.Hook, args []string) error {
	dirs, err := values(args, "folder", "ldconfig-path")
	if err != nil {
		return fmt.Errorf("%w: %w", refused(h), err)
	}
	for _, d := range dirs {
		if err := checkPath(d); err != nil {
			return fmt.Errorf("the hook's folder: %w", err)
		}
		if strings.Contains(d, ":") {
			return fmt.Errorf("the hook's folder %q holds a colon", d)
		}
		e.LibraryDirs = append(e.LibraryDirs, path.Clean(d))
	}
	return nil
}
