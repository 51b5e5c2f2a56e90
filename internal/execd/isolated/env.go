package isolated

import (
	"path"
	"slices"
	"strings"

	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// secrets are names of variables that look as if they held one. A strict session
// does not get them (OpenSandbox isolated runs).
var secrets = []string{
	"*_API_KEY", "*_TOKEN", "*_SECRET", "*_PASSWORD",
	"AWS_*", "ALI_*", "ALIYUN_*", "K8S_*", "KUBE_*",
}

// basic are variables without which few programs work. A list of allowed ones
// does not take them away.
var basic = []string{"PATH", "HOME", "HOSTNAME", "LANG", "TERM"}

func (e *EnvPassthrough) complete() error {
	if err := oneOf("env_passthrough.mode", &e.Mode, "deny", "allow"); err != nil {
		return err
	}
	if len(e.Keys) > maxKeys {
		return web.BadBody("env_passthrough.keys has %d entries; at most %d are possible", len(e.Keys), maxKeys)
	}
	for _, k := range e.Keys {
		if k == "" || len(k) > maxKey || strings.ContainsAny(k, "=\x00") {
			return web.BadBody("env_passthrough.keys: %.64q is not the name of a variable of at most %d bytes", k, maxKey)
		}
	}
	return nil
}

// Environment is what a checked session gets of the sandbox's.
func (s *Settings) Environment(sandbox map[string]string) map[string]string {
	env := make(map[string]string, len(sandbox))
	for name, value := range sandbox {
		if s.passes(name) {
			env[name] = value
		}
	}
	return env
}

func (s *Settings) passes(name string) bool {
	named := slices.Contains(s.Env.Keys, name)
	if s.Env.Mode == "allow" {
		return named || slices.Contains(basic, name)
	}
	return !named && (s.Profile != Strict || !secret(name))
}

func secret(name string) bool {
	name = strings.ToUpper(name)
	return slices.ContainsFunc(secrets, func(pattern string) bool {
		ok, _ := path.Match(pattern, name)
		return ok
	})
}
