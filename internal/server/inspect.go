package server

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/paddock-sandbox/paddock/internal/policy"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// describe is a sandbox as text. It holds no token, and the values of variables
// that look like secrets are hidden; labels are not secret (OpenSandbox diagnostics API).
func describe(s *sandbox.Sandbox) string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s %s\n", name+":", fmt.Sprintf(format, args...))
	}
	at := func(name string, t *time.Time) {
		if t != nil {
			line(name, "%s", instant(*t).Format(time.RFC3339Nano))
		}
	}
	line("Sandbox", "%s", s.ID)
	line("State", "%s (%s) since %s", s.Status.State, s.Status.Reason, instant(s.Status.LastTransitionAt).Format(time.RFC3339Nano))
	if s.Status.Message != "" {
		line("Message", "%s", indent(s.Status.Message))
	}
	line("Image", "%s", s.Spec.Image)
	if p := s.Spec.Platform; p != nil {
		line("Platform", "%s/%s", p.OS, p.Arch)
	}
	if s.Spec.Isolation != "" {
		line("Isolation", "%s", s.Spec.Isolation)
	}
	line("Entrypoint", "%s", shownArgs(s.Entrypoint))
	line("Limits", "%s", shownLimits(&s.Spec.Limits))
	at("Created", &s.CreatedAt)
	at("Started", s.StartedAt)
	at("Ended", s.EndedAt)
	if s.ExpiresAt == nil {
		line("Expires", "never")
	}
	at("Expires", s.ExpiresAt)
	pairs(&b, "Metadata", s.Spec.Metadata, false)
	pairs(&b, "Extensions", s.Spec.Extensions, false)
	pairs(&b, "Environment", s.Spec.Env, true)
	describePolicy(&b, s.Spec.NetworkPolicy)
	describeVolumes(&b, s.Spec.Volumes)
	describeHooks(&b, s.Spec.Lifecycle)
	return b.String()
}

// shownRules bounds the rules of a policy that are shown to a person.
const shownRules = 50

func describePolicy(b *strings.Builder, p *policy.Policy) {
	if p == nil {
		return
	}
	fmt.Fprintf(b, "Network policy:\n")
	for i, r := range p.Egress {
		if i == shownRules {
			fmt.Fprintf(b, "  … and %d more rules\n", len(p.Egress)-i)
			break
		}
		only := ""
		if r.HTTP != nil {
			only = ", some requests"
		}
		fmt.Fprintf(b, "  %d: %s %s%s\n", i, r.Action, r.Target, only)
	}
	fmt.Fprintf(b, "  otherwise %s\n", p.DefaultAction)
}

func pairs(b *strings.Builder, title string, m map[string]string, secret bool) {
	if len(m) == 0 {
		return
	}
	fmt.Fprintf(b, "%s:\n", title)
	for _, k := range slices.Sorted(maps.Keys(m)) {
		v := strconv.QuoteToGraphic(m[k])
		if secret && secretName(k) {
			v = hidden
		}
		fmt.Fprintf(b, "  %s=%s\n", k, v)
	}
}

// hidden stands for a value that is not shown.
const hidden = "***"

// secretName is the contract's guess at which variables hold secrets.
func secretName(name string) bool {
	name = strings.ToUpper(name)
	for _, word := range [...]string{"SECRET", "TOKEN", "PASSWORD", "KEY"} {
		if strings.Contains(name, word) {
			return true
		}
	}
	return false
}

// shownArgs is an argv for people. What looks like a secret in it, given as
// NAME=value, is hidden.
func shownArgs(argv []string) string {
	if len(argv) == 0 {
		return "not known yet"
	}
	shown := make([]string, len(argv))
	for i, arg := range argv {
		if name, _, ok := strings.Cut(arg, "="); ok && secretName(name) && !strings.ContainsAny(name, " \t\n") {
			arg = name + "=" + hidden
		}
		shown[i] = strconv.QuoteToGraphic(arg)
	}
	return strings.Join(shown, " ")
}

func shownLimits(l *sandbox.Limits) string {
	var all []string
	if l.CPUMillis > 0 {
		all = append(all, fmt.Sprintf("cpu %dm", l.CPUMillis))
	}
	if l.MemoryBytes > 0 {
		all = append(all, "memory "+humanize.IBytes(uint64(l.MemoryBytes)))
	}
	if l.PIDs > 0 {
		all = append(all, fmt.Sprintf("pids %d", l.PIDs))
	}
	if l.EphemeralBytes > 0 {
		all = append(all, "ephemeral-storage "+humanize.IBytes(uint64(l.EphemeralBytes)))
	}
	if l.GPUs != "" {
		all = append(all, "gpu "+l.GPUs)
	}
	if len(all) == 0 {
		return "the server's defaults"
	}
	return strings.Join(all, ", ")
}

func describeVolumes(b *strings.Builder, volumes []sandbox.VolumeMount) {
	if len(volumes) == 0 {
		return
	}
	b.WriteString("Volumes:\n")
	for _, v := range volumes {
		from := "volume " + v.Claim
		if v.HostPath != "" {
			from = "host " + v.HostPath
		}
		if v.SubPath != "" {
			from += ", in " + v.SubPath
		}
		if v.ReadOnly {
			from += ", read-only"
		}
		fmt.Fprintf(b, "  %s at %s (%s)\n", v.Name, v.MountPath, from)
	}
}

func describeHooks(b *strings.Builder, l *sandbox.Lifecycle) {
	if l == nil {
		return
	}
	b.WriteString("Hooks:\n")
	if h := l.PreStart; h != nil {
		fmt.Fprintf(b, "  preStart: %s (at most %s)\n", shownArgs(h.Command), h.Timeout)
	}
	for _, h := range l.Periodic {
		fmt.Fprintf(b, "  %s, %s: %s (at most %s)\n", strconv.QuoteToGraphic(h.Name), h.Schedule, shownArgs(h.Command), h.Timeout)
	}
}
