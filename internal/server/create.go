package server

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"hash"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/internal/policy"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Bounds of a create (OpenSandbox lifecycle API, and what the kernel takes).
const (
	minTimeout = 60 // seconds
	// maxTimeout is used when the configuration has no bound: a hundred years.
	maxTimeout = 100 * 365 * 24 * 3600

	maxImageRef = 1024
	maxUsername = 1024
	// maxPassword leaves room for registry tokens, which are signed documents.
	maxPassword = 16 << 10

	maxArgs = 4096
	// maxArg is what execve(2) takes for one argument or NAME=value:
	// MAX_ARG_STRLEN, 32 pages with the NUL at the end.
	maxArg = 128<<10 - 1
	// maxArgsTotal keeps the argv and the environment together below what
	// execve takes with the usual 8 MiB stack, a quarter of it.
	maxArgsTotal = 1 << 20
	maxEnv       = 4096
	maxEnvName   = 1024

	maxExtensions     = 64
	maxExtensionKey   = 256
	maxExtensionValue = 4096
)

const (
	// envLifecycle is set by the server (OpenSandbox lifecycle API).
	envLifecycle = "OPENSANDBOX_LIFECYCLE"
	// envEgress begins settings of a network policy's enforcement.
	envEgress = "OPENSANDBOX_EGRESS_"

	extensionPool      = "poolRef"
	extensionRenew     = "access.renew.extend.seconds"
	extensionIsolation = "bootstrap.execd.isolation"
	// extensionKept begins the extensions that are kept and shown.
	extensionKept = "opensandbox.extensions."
)

// decodeCreate checks every member of a create and returns what it asks for.
func decodeCreate(body *value, limit time.Duration) (*sandbox.Spec, error) {
	d := new(decoder)
	if !d.is(body, kindObject) {
		return nil, d.err
	}
	d.unsupported(body)
	spec := new(sandbox.Spec)
	spec.Image, spec.Auth = d.image(body)
	spec.Platform = d.platform(body)
	spec.Timeout = d.timeout(body, limit)
	spec.Entrypoint = d.entrypoint(body)
	spec.Env = d.env(body)
	spec.Limits = d.resources(body, "resourceLimits")
	d.checkRequests(d.resources(body, "resourceRequests"), spec.Limits)
	spec.Metadata = d.metadata(body)
	spec.Volumes = d.volumes(body)
	spec.Extensions = d.extensions(body)
	spec.Isolation = d.isolation(body)
	spec.Lifecycle = d.lifecycle(body)
	spec.NetworkPolicy = d.networkPolicy(d.object(body, "networkPolicy"))
	spec.CredentialProxy = d.credentialProxy(body, spec.NetworkPolicy)
	if d.err != nil {
		return nil, d.err
	}
	return spec, nil
}

// unsupported refuses parts of the contract that this server does not have.
// Ignoring one would leave a sandbox less confined, or other, than asked for.
func (d *decoder) unsupported(body *value) {
	no := func(path, instead string) {
		d.fail(invalid(sandbox.CodeNotSupported, "%s is not supported by this server yet. %s", path, instead))
	}
	for _, name := range []string{"snapshotId", "templateId"} {
		if v := d.member(body, name); v != nil && d.is(v, kindString) && strings.TrimSpace(v.text) != "" {
			no(name, "Start from an image.")
		}
	}
	// It asks for what every sandbox has: ports that need its token.
	d.flag(body, "secureAccess", false)
}

// credentialProxy is whether credentials are used on the sandbox's behalf. It
// needs a policy that says for which destinations (OpenSandbox lifecycle API).
func (d *decoder) credentialProxy(body *value, p *policy.Policy) bool {
	v := d.object(body, "credentialProxy")
	if v == nil {
		return false
	}
	d.only(v, "enabled")
	enabled := d.flag(v, "enabled", false)
	if enabled && p == nil && d.err == nil {
		d.refuse("credentialProxy.enabled", "needs a networkPolicy, whose rules name the hosts that credentials are for.")
	}
	return enabled
}

func (d *decoder) image(body *value) (uri string, auth *sandbox.RegistryAuth) {
	img := d.object(body, "image")
	if img == nil {
		if d.err == nil {
			d.refuse("image", `is missing. Give {"uri": "python:3.11"} or another image.`)
		}
		return "", nil
	}
	uri = d.required(img, "uri", bytesRule{max: maxImageRef})
	if a := d.object(img, "auth"); a != nil {
		d.only(a, "username", "password")
		auth = &sandbox.RegistryAuth{
			Username: d.required(a, "username", bytesRule{max: maxUsername, secret: true}),
			Password: d.required(a, "password", bytesRule{max: maxPassword, secret: true}),
		}
	}
	return uri, auth
}

func (d *decoder) platform(body *value) *sandbox.Platform {
	v := d.object(body, "platform")
	if v == nil {
		return nil
	}
	p := &sandbox.Platform{
		OS:   strings.ToLower(strings.TrimSpace(d.required(v, "os", bytesRule{max: maxShown}))),
		Arch: strings.ToLower(strings.TrimSpace(d.required(v, "arch", bytesRule{max: maxShown}))),
	}
	switch {
	case d.err != nil:
	case p.OS == "windows":
		d.fail(invalid(sandbox.CodeNotSupported, `platform.os "windows" is not supported by this server. Use "linux".`))
	case p.OS != "linux":
		d.refuse("platform.os", `is %s; it must be "linux".`, quote(p.OS))
	case p.Arch != "amd64" && p.Arch != "arm64":
		d.refuse("platform.arch", `is %s; it must be "amd64" or "arm64".`, quote(p.Arch))
	}
	return p
}

func (d *decoder) timeout(body *value, limit time.Duration) *time.Duration {
	v := d.member(body, "timeout")
	if v == nil {
		return nil
	}
	high := int64(maxTimeout)
	if limit > 0 {
		high = min(high, int64(limit/time.Second))
	}
	t := time.Duration(d.whole(v, minTimeout, high)) * time.Second
	return &t
}

func (d *decoder) entrypoint(body *value) []string {
	v := d.member(body, "entrypoint")
	if v == nil {
		return nil
	}
	if d.is(v, kindArray) && len(v.items) == 0 {
		d.fail(invalid(sandbox.CodeInvalidEntrypoint, "entrypoint is empty. Leave it out to use the image's, or give a program and its arguments."))
	}
	argv := d.argv(body, "entrypoint")
	if d.err == nil && strings.TrimSpace(argv[0]) == "" {
		d.fail(invalid(sandbox.CodeInvalidEntrypoint, "entrypoint[0] is blank; it must name a program."))
	}
	return argv
}

// argv is a list of arguments that the kernel can take.
func (d *decoder) argv(obj *value, name string) []string {
	items := d.list(obj, name, maxArgs)
	argv := make([]string, 0, len(items))
	total := 0
	for _, item := range items {
		argv = append(argv, d.textOf(item, bytesRule{max: maxArg, lines: true}))
		total += len(item.text) + 1
	}
	if total > maxArgsTotal {
		d.refuse(join(obj.path, name), "is %d bytes long in all; at most %d are allowed.", total, maxArgsTotal)
	}
	return argv
}

func (d *decoder) env(body *value) map[string]string {
	entries := d.entries(body, "env", maxEnv)
	if len(entries) == 0 {
		return nil
	}
	env := make(map[string]string, len(entries))
	total := 0
	for _, e := range entries {
		if !d.envName(e) || e.kind == kindNull {
			continue
		}
		env[e.name] = d.textOf(e.value, bytesRule{max: maxArg - len(e.name) - 1, lines: true, secret: true})
		total += len(e.name) + len(e.text) + 2
	}
	if total > maxArgsTotal {
		d.refuse("env", "is %d bytes long in all; at most %d are allowed.", total, maxArgsTotal)
	}
	return env
}

func (d *decoder) envName(e member) bool {
	switch {
	case d.err != nil:
	case e.name == "":
		d.refuse("env", "has a variable without a name.")
	case len(e.name) > maxEnvName:
		d.refuse("env", "has a variable with a name of %d bytes; at most %d are allowed.", len(e.name), maxEnvName)
	case strings.ContainsFunc(e.name, func(c rune) bool { return c == '=' || c < ' ' || c == 0x7f }):
		d.refuse("env", "has a variable called %s; a name can't contain \"=\" or control characters.", quote(e.name))
	case e.name == envLifecycle:
		d.refuse("env", "sets %s, which is reserved.", envLifecycle)
	case strings.HasPrefix(e.name, envEgress):
		d.fail(invalid(sandbox.CodeNotSupported, "env sets %s. Settings of network policies are not supported by this server yet; leave it out.", quote(e.name)))
	default:
		return true
	}
	return false
}

func (d *decoder) extensions(body *value) map[string]string {
	entries := d.entries(body, "extensions", maxExtensions)
	kept := make(map[string]string)
	for _, e := range entries {
		if len(e.name) > maxExtensionKey {
			d.refuse("extensions", "has a key of %d bytes; at most %d are allowed.", len(e.name), maxExtensionKey)
		}
		if strings.ContainsFunc(e.name, func(c rune) bool { return c < ' ' || c == 0x7f }) {
			d.refuse("extensions", "has the key %s, with a control character.", quote(e.name))
		}
		text := d.textOf(e.value, bytesRule{max: maxExtensionValue, lines: true})
		if d.err != nil {
			return nil
		}
		d.knownExtension(e.name, text)
		if e.name == extensionRenew || strings.HasPrefix(e.name, extensionKept) {
			kept[e.name] = text
		}
	}
	if len(kept) == 0 {
		return nil
	}
	return kept
}

// isolation is the wall that an extension asks for; empty without.
func (d *decoder) isolation(body *value) sandbox.Isolation {
	v := d.member(d.object(body, "extensions"), sandbox.ExtensionIsolation)
	if v == nil || d.err != nil {
		return ""
	}
	switch i := sandbox.Isolation(v.text); i {
	case sandbox.IsolationContainer, sandbox.IsolationGVisor:
		return i
	}
	d.refuse(`extensions["paddock.isolation"]`, `is %s; it must be "container" or "gvisor".`, quote(v.text))
	return ""
}

// Bounds of access.renew.extend.seconds (OpenSandbox lifecycle API).
const minRenew, maxRenew = 300, 86400

func (d *decoder) knownExtension(name, text string) {
	switch name {
	case extensionPool:
		if strings.TrimSpace(text) != "" {
			d.fail(invalid("SANDBOX::UNSUPPORTED_POOL_REF", "extensions.poolRef is %s, but this server has no pools. Leave it out.", quote(text)))
		}
	case extensionRenew:
		n, err := strconv.Atoi(text)
		if err != nil || n < minRenew || n > maxRenew || text[0] == '+' {
			d.refuse(`extensions["access.renew.extend.seconds"]`, "is %s; it must be a whole number of seconds from %d to %d.", quote(text), minRenew, maxRenew)
		}
	case extensionIsolation:
		if strings.EqualFold(strings.TrimSpace(text), "enable") {
			d.fail(invalid(sandbox.CodeNotSupported, `extensions["bootstrap.execd.isolation"] is not supported by this server yet. Leave it out.`))
		}
	}
}

// bodyHash identifies what a create asks for, whatever the order and the spacing
// of its members. Registry credentials have no part in it: the hash is stored,
// and a password could be guessed from it.
func bodyHash(body *value) string {
	h := sha256.New()
	hashValue(h, body)
	return hex.EncodeToString(h.Sum(nil))
}

func hashValue(h hash.Hash, v *value) {
	io.WriteString(h, strconv.Itoa(int(v.kind)))
	switch v.kind {
	case kindBool:
		io.WriteString(h, strconv.FormatBool(v.yes))
	case kindNumber:
		io.WriteString(h, v.text+",")
	case kindString:
		hashText(h, v.text)
	case kindArray:
		for _, item := range v.items {
			hashValue(h, item)
		}
		io.WriteString(h, "]")
	case kindObject:
		sorted := slices.Clone(v.members)
		slices.SortFunc(sorted, func(a, b member) int { return strings.Compare(a.name, b.name) })
		for _, m := range sorted {
			if m.path == "image.auth" {
				continue
			}
			hashText(h, m.name)
			hashValue(h, m.value)
		}
		io.WriteString(h, "}")
	}
}

func hashText(h hash.Hash, s string) {
	b, _ := json.Marshal(s) // delimited, so that no two bodies look the same
	h.Write(b)
}
