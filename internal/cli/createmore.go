package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/paddock-sandbox/paddock/client"
)

// networkFlags say what a new sandbox may reach.
type networkFlags struct {
	policy       string
	allow, deny  []string
	allowDefault bool
	credentials  bool
}

func (f *networkFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.policy, "network-policy", "", "what the sandbox may reach, as JSON or a file of it; '{}' denies everything")
	fs.StringArrayVar(&f.allow, "allow", nil, "host, *.domain, address or range that the sandbox may reach; everything else is denied then")
	fs.StringArrayVar(&f.deny, "deny", nil, "target that it may not reach; decides before --allow")
	fs.BoolVar(&f.allowDefault, "allow-default", false, "allow what no rule is about")
	fs.BoolVar(&f.credentials, "credential-proxy", false, "let the host put credentials of the sandbox's vault into its requests; needs a policy")
}

// request adds the policy to a create request. Rules of flags come before those
// of the policy that is given as a whole.
func (f *networkFlags) request(cmd *cobra.Command, a *app, r *client.CreateRequest) error {
	if f.policy != "" {
		p, err := a.readPolicy(cmd.Context(), f.policy)
		var bad *policyError
		if errors.As(err, &bad) {
			return usagef(cmd, "--network-policy: %s", bad)
		}
		if err != nil {
			return err
		}
		r.NetworkPolicy = p
	}
	if len(f.allow)+len(f.deny) > 0 || f.allowDefault {
		if r.NetworkPolicy == nil {
			if len(f.allow) == 0 && !f.allowDefault {
				return usagef(cmd, "--deny without another rule denies everything: add --allow-default, or --allow for what is to be reached, or say --network-policy '{}'")
			}
			r.NetworkPolicy = &client.NetworkPolicy{DefaultAction: client.Deny}
		}
		p := r.NetworkPolicy
		p.Egress = append(append(rulesFor(client.Deny, f.deny), rulesFor(client.Allow, f.allow)...), p.Egress...)
		if f.allowDefault {
			p.DefaultAction = client.Allow
		}
	}
	if f.credentials && r.NetworkPolicy == nil {
		return usagef(cmd, "--credential-proxy needs a policy: add --allow for the hosts that the credentials are for, or --network-policy")
	}
	r.CredentialProxy = f.credentials
	return nil
}

// hookFlags are the commands that a sandbox runs by itself.
type hookFlags struct {
	preStart string
	periodic []string
	timeout  time.Duration
}

func (f *hookFlags) register(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.preStart, "pre-start", "", `command to run before the entrypoint: a line for sh, or a JSON array of words such as '["prepare","all"]'`)
	fs.StringArrayVar(&f.periodic, "periodic", nil, `NAME=SCHEDULE=COMMAND to run again and again, such as 'sync=@every 30s=rsync /a /b' or 'night=0 3 * * *=backup'`)
	fs.DurationVar(&f.timeout, "hook-timeout", 0, "how long each of these commands may take (default 5m)")
}

func (f *hookFlags) request(cmd *cobra.Command, r *client.CreateRequest) error {
	if f.timeout < 0 || f.timeout%time.Second != 0 {
		return usagef(cmd, "--hook-timeout %s: want whole seconds, such as 30s", f.timeout)
	}
	if f.preStart == "" && len(f.periodic) == 0 {
		if f.timeout != 0 {
			return usagef(cmd, "--hook-timeout is without --pre-start and --periodic")
		}
		return nil
	}
	r.Lifecycle = &client.Lifecycle{}
	if f.preStart != "" {
		words, err := hookCommand(f.preStart)
		if err != nil {
			return usagef(cmd, "--pre-start %q: %s", f.preStart, err)
		}
		r.Lifecycle.PreStart = &client.Hook{Command: words, Timeout: f.timeout}
	}
	for _, text := range f.periodic {
		name, rest, _ := strings.Cut(text, "=")
		schedule, line, ok := strings.Cut(rest, "=")
		if !ok || name == "" || schedule == "" {
			return usagef(cmd, "--periodic %q: want NAME=SCHEDULE=COMMAND, such as 'sync=@every 30s=date >>/tmp/log'", text)
		}
		words, err := hookCommand(line)
		if err != nil {
			return usagef(cmd, "--periodic %q: %s", text, err)
		}
		r.Lifecycle.Periodic = append(r.Lifecycle.Periodic, client.PeriodicHook{
			Name: name, Schedule: schedule, Hook: client.Hook{Command: words, Timeout: f.timeout}})
	}
	return nil
}

// hookCommand reads a command: words in a JSON array, else a line for the shell.
func hookCommand(text string) ([]string, error) {
	text = strings.TrimSpace(text)
	switch {
	case text == "":
		return nil, errors.New("the command is empty")
	case !strings.HasPrefix(text, "["):
		return []string{"sh", "-c", text}, nil
	}
	var words []string
	if err := json.Unmarshal([]byte(text), &words); err != nil {
		// "[ -e /x ] || …" is a line of shell as well.
		if strings.HasPrefix(text, "[ ") || strings.HasPrefix(text, "[[") {
			return []string{"sh", "-c", text}, nil
		}
		return nil, fmt.Errorf("the command begins with [ but is no JSON array of words: %w", err)
	}
	if len(words) == 0 {
		return nil, errors.New("the command has no words")
	}
	return words, nil
}
