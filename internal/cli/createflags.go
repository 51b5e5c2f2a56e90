package cli

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/internal/config"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// nameKey is the metadata key that --name sets.
const nameKey = "name"

// createFlags are the flags of the commands that make a sandbox.
type createFlags struct {
	env, volumes, metadata []string
	extensions             []string
	memory, cpu, platform  string
	disk, gpus             string
	name                   string
	isolation              string
	network                networkFlags
	hooks                  hookFlags
	pids                   int
	timeout                time.Duration
	registryUser           string
}

func (f *createFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringArrayVarP(&f.env, "env", "e", nil, "NAME=VALUE, or NAME to pass on its value here")
	fs.StringArrayVarP(&f.volumes, "volume", "v", nil, "NAME:/PATH[:OPTIONS] for a named volume, /HOST/DIR:/PATH[:OPTIONS] for a directory that the server allows; options are ro, subpath=DIR, and rm to delete a named volume with the sandbox")
	fs.StringArrayVarP(&f.metadata, "metadata", "l", nil, "KEY=VALUE to find the sandbox by")
	fs.StringVar(&f.name, "name", "", "the same as --metadata name=NAME")
	fs.StringVar(&f.memory, "memory", "", `memory limit, such as "512Mi"`)
	fs.StringVar(&f.cpu, "cpu", "", `CPU limit, such as "500m" or "2"`)
	fs.IntVar(&f.pids, "pids", 0, "limit of processes and threads")
	fs.StringVar(&f.disk, "disk", "", `limit of what the sandbox writes to its own filesystem, such as "1Gi"`)
	fs.StringVar(&f.gpus, "gpus", "", `number of GPUs, or "all"`)
	fs.StringVar(&f.isolation, "isolation", "", `wall around the sandbox: "container", or "gvisor", a kernel of its own in user space`)
	fs.StringArrayVar(&f.extensions, "extension", nil, "KEY=VALUE that means something to the server or to clients, such as access.renew.extend.seconds=3600")
	f.network.register(cmd)
	f.hooks.register(cmd)
	fs.DurationVar(&f.timeout, "timeout", 0, "lifetime, at least 1m")
	fs.StringVar(&f.platform, "platform", "", "platform of the image, such as linux/amd64")
	fs.StringVar(&f.registryUser, "registry-user", "", "user name for the registry; its password is read from $PADDOCK_REGISTRY_PASSWORD")
}

// request makes the create request; what the server would refuse anyway is left
// to it, so that there is one set of rules.
func (f *createFlags) request(cmd *cobra.Command, a *app, image string) (client.CreateRequest, error) {
	r := client.CreateRequest{Image: image, Timeout: f.timeout, ResourceLimits: map[string]string{}}
	var err error
	if r.Env, err = a.envFlags(cmd, f.env); err != nil {
		return r, err
	}
	if r.Metadata, err = pairs(cmd, "metadata", f.metadata); err != nil {
		return r, err
	}
	if f.name != "" {
		r.Metadata[nameKey] = f.name
	}
	if f.timeout != 0 && f.timeout < time.Minute {
		return r, usagef(cmd, "--timeout %s: the shortest lifetime is 1m", f.timeout)
	}
	if err := f.setLimits(cmd, r.ResourceLimits); err != nil {
		return r, err
	}
	if len(f.extensions) > 0 {
		if r.Extensions, err = pairs(cmd, "extension", f.extensions); err != nil {
			return r, err
		}
	}
	if f.isolation != "" {
		if r.Extensions == nil {
			r.Extensions = map[string]string{}
		}
		r.Extensions[sandbox.ExtensionIsolation] = f.isolation
	}
	if err := f.network.request(cmd, a, &r); err != nil {
		return r, err
	}
	if err := f.hooks.request(cmd, &r); err != nil {
		return r, err
	}
	for i, v := range f.volumes {
		vol, err := parseVolume(v)
		if err != nil {
			return r, usagef(cmd, "--volume %q: %s", v, err)
		}
		vol.Name = fmt.Sprintf("v%d", i)
		r.Volumes = append(r.Volumes, vol)
	}
	if r.Platform, err = parsePlatform(cmd, f.platform); err != nil {
		return r, err
	}
	r.Auth = a.registryAuth(f.registryUser)
	return r, nil
}

// setLimits adds what is given of the limits on resources.
func (f *createFlags) setLimits(cmd *cobra.Command, limits map[string]string) error {
	if err := setLimit(cmd, limits, "memory", "memory", f.memory, config.ParseSize); err != nil {
		return err
	}
	if err := setLimit(cmd, limits, "cpu", "cpu", f.cpu, config.ParseCPU); err != nil {
		return err
	}
	if err := setLimit(cmd, limits, "disk", "ephemeral-storage", f.disk, config.ParseSize); err != nil {
		return err
	}
	if f.pids != 0 {
		limits["pids"] = strconv.Itoa(f.pids)
	}
	if f.gpus != "" {
		limits["gpu"] = f.gpus
	}
	return nil
}

// setLimit adds the limit on one resource, unless it is empty, once parse has
// taken it.
func setLimit[T any](cmd *cobra.Command, limits map[string]string, flag, resource, value string, parse func(string) (T, error)) error {
	if value == "" {
		return nil
	}
	if _, err := parse(value); err != nil {
		return usagef(cmd, "--%s %q: %s", flag, value, err)
	}
	limits[resource] = value
	return nil
}

// registryAuth takes the password from the environment, because a flag shows it
// to every user of the machine.
func (a *app) registryAuth(user string) *client.RegistryAuth {
	if user == "" {
		return nil
	}
	return &client.RegistryAuth{Username: user, Password: a.env("PADDOCK_REGISTRY_PASSWORD")}
}

func parsePlatform(cmd *cobra.Command, s string) (*client.Platform, error) {
	if s == "" {
		return nil, nil
	}
	osName, arch, ok := strings.Cut(s, "/")
	if !ok || osName == "" || arch == "" {
		return nil, usagef(cmd, "--platform %q: want OS/ARCH, such as linux/amd64", s)
	}
	return &client.Platform{OS: osName, Arch: arch}, nil
}

// envFlags reads NAME=VALUE, or NAME whose value is taken from here.
func (a *app) envFlags(cmd *cobra.Command, list []string) (map[string]string, error) {
	env := map[string]string{}
	for _, kv := range list {
		name, value, set := strings.Cut(kv, "=")
		if name == "" {
			return nil, usagef(cmd, "--env %q: want NAME=VALUE or NAME", kv)
		}
		if !set {
			var ok bool
			if value, ok = a.lookupEnv(name); !ok {
				continue // as with other container tools: not set here, not set there
			}
		}
		env[name] = value
	}
	return env, nil
}

func pairs(cmd *cobra.Command, flag string, list []string) (map[string]string, error) {
	m := map[string]string{}
	for _, kv := range list {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return nil, usagef(cmd, "--%s %q: want KEY=VALUE", flag, kv)
		}
		m[k] = v
	}
	return m, nil
}

// parseVolume reads SOURCE:/PATH[:OPTIONS]. A source with a slash is a directory
// of the host, one without is a named volume.
func parseVolume(s string) (client.Volume, error) {
	var vol client.Volume
	parts := strings.SplitN(s, ":", 3)
	if len(parts) < 2 || parts[0] == "" || !path.IsAbs(parts[1]) {
		return vol, errors.New("want NAME:/PATH[:ro] or /HOST/DIR:/PATH[:ro]")
	}
	vol.MountPath = parts[1]
	switch {
	case filepath.IsAbs(parts[0]):
		vol.Host = &client.HostVolume{Path: filepath.Clean(parts[0])}
	case strings.Contains(parts[0], "/"):
		return vol, fmt.Errorf("the host directory %q is relative, want an absolute path", parts[0])
	default:
		vol.PVC = &client.PVC{ClaimName: parts[0]}
	}
	if len(parts) == 2 {
		return vol, nil
	}
	for option := range strings.SplitSeq(parts[2], ",") {
		key, value, _ := strings.Cut(option, "=")
		switch {
		case option == "ro":
			vol.ReadOnly = true
		case option == "rw":
		case key == "subpath" && value != "":
			vol.SubPath = value
		case option == "rm" && vol.PVC != nil:
			vol.PVC.DeleteOnSandboxTermination = true
		case option == "rm":
			return vol, errors.New("a directory of the host is not deleted with the sandbox: rm is for named volumes")
		default:
			return vol, fmt.Errorf("the option is %q, want ro, rw, subpath=DIR or rm", option)
		}
	}
	return vol, nil
}
