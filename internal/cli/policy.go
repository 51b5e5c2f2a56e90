package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/paddock-sandbox/paddock/client"
)

// maxPolicyFile bounds a policy, in bytes; the server takes no larger request.
const maxPolicyFile = 4 << 20

func (a *app) policyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "policy",
		Short: "Show and change what a sandbox may reach",
		Long: `Show and change what a sandbox may reach. The first rule that matches decides, and the
default when none does. A target is a domain, "*.example.com" for all beneath one, an
address, or a range such as 10.1.0.0/16. Changes are in force at once, and cut
connections that they forbid.`,
		Example: `  paddock policy get $id
  paddock policy set $id '{"defaultAction":"deny","egress":[{"action":"allow","target":"pypi.org"}]}'
  paddock policy allow $id '*.pythonhosted.org'
  paddock policy rm $id pypi.org
  paddock logs --denied $id`,
		Args: subcommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	type change = func(context.Context, *connection, []string) (*client.NetworkPolicyStatus, error)
	add := func(use, short string, low, high int, do change) {
		names := strings.TrimSpace(strings.TrimPrefix(use, strings.Fields(use)[0]))
		cmd.AddCommand(&cobra.Command{Use: use, Short: short, Args: args(low, high, names),
			RunE: func(cmd *cobra.Command, args []string) error { return a.policy(cmd, args, do) }})
	}
	add("get ID", "Show the policy", 1, 1, func(ctx context.Context, c *connection, args []string) (*client.NetworkPolicyStatus, error) {
		return c.NetworkPolicy(ctx, args[0])
	})
	add("set ID FILE|JSON|-", "Replace the policy", 2, 2, func(ctx context.Context, c *connection, args []string) (*client.NetworkPolicyStatus, error) {
		p, err := a.readPolicy(ctx, args[1])
		if err != nil {
			return nil, err
		}
		return c.SetNetworkPolicy(ctx, args[0], p)
	})
	for action, short := range map[string]string{client.Allow: "Allow targets, before all other rules", client.Deny: "Deny targets, before all other rules"} {
		add(action+" ID TARGET...", short, 2, -1, func(ctx context.Context, c *connection, args []string) (*client.NetworkPolicyStatus, error) {
			return c.PatchNetworkPolicy(ctx, args[0], rulesFor(action, args[1:])...)
		})
	}
	add("rm ID TARGET...", "Take the rules for targets away", 2, -1, func(ctx context.Context, c *connection, args []string) (*client.NetworkPolicyStatus, error) {
		return c.DeleteNetworkRules(ctx, args[0], args[1:]...)
	})
	return cmd
}

// policy runs one of the commands and shows the policy that is then in force.
func (a *app) policy(cmd *cobra.Command, args []string, do func(context.Context, *connection, []string) (*client.NetworkPolicyStatus, error)) error {
	conn, err := a.connect(cmd.Context())
	if err != nil {
		return err
	}
	defer conn.close()
	st, err := do(cmd.Context(), conn, args)
	var bad *policyError
	if errors.As(err, &bad) {
		return usagef(cmd, "%s", bad)
	}
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.json(st)
	}
	rows := make([][]string, 0, len(st.Policy.Egress)+1)
	for _, r := range st.Policy.Egress {
		rows = append(rows, []string{sanitize(r.Action), sanitize(r.Target), sanitize(requestsOf(r.HTTP))})
	}
	rows = append(rows, []string{sanitize(st.Policy.DefaultAction), "everything else", "-"})
	return a.table([]string{"ACTION", "TARGET", "REQUESTS"}, rows)
}

// requestsOf words the part of a rule that is about HTTP.
func requestsOf(h *client.NetworkRuleHTTP) string {
	if h == nil {
		return "-"
	}
	text := strings.TrimSpace(strings.Join(h.Methods, ",") + " " + strings.Join(h.Paths, ","))
	if h.Mode == "audit" {
		text += " (audit)"
	}
	return text
}

func rulesFor(action string, targets []string) []client.NetworkRule {
	rules := make([]client.NetworkRule, len(targets))
	for i, t := range targets {
		rules[i] = client.NetworkRule{Action: action, Target: t}
	}
	return rules
}

// policyError is a policy that can't be read.
type policyError struct{ message string }

func (e *policyError) Error() string { return e.message }

// readPolicy reads a policy from the argument itself, when that is JSON, else
// from a file, or from standard input for "-". The server checks what it means.
func (a *app) readPolicy(ctx context.Context, arg string) (*client.NetworkPolicy, error) {
	data, from := []byte(arg), "the policy"
	if !strings.HasPrefix(strings.TrimSpace(arg), "{") {
		in := newInterruptible(ctx, a.streams.In)
		if from = "standard input"; arg != "-" {
			f, err := os.Open(arg)
			if err != nil {
				return nil, &policyError{fmt.Sprintf("the policy %q is neither JSON that begins with { nor a file that can be read: %v", arg, err)}
			}
			defer f.Close()
			in, from = f, arg
		}
		var err error
		if data, err = io.ReadAll(io.LimitReader(in, maxPolicyFile+1)); err != nil {
			return nil, err
		}
		if len(data) > maxPolicyFile {
			return nil, &policyError{from + " is larger than " + strconv.Itoa(maxPolicyFile) + " bytes"}
		}
	}
	p := new(client.NetworkPolicy)
	dec := json.NewDecoder(bytes.NewReader(data))
	// A rule that is silently dropped would open or close what it is about.
	dec.DisallowUnknownFields()
	err := dec.Decode(p)
	if err == nil {
		if _, more := dec.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("there is something after its end")
		}
	}
	if err != nil {
		return nil, &policyError{fmt.Sprintf(`%s is no policy: %v; want {"defaultAction":"deny","egress":[{"action":"allow","target":"HOST"}]}`, from, err)}
	}
	return p, nil
}
