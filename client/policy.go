package client

import (
	"context"
	"net/http"
)

// Actions of a network policy.
const (
	Allow = "allow"
	Deny  = "deny"
)

// NetworkPolicy says what a sandbox may reach: the first rule that matches
// decides, and the default action when none does. The zero value denies
// everything.
type NetworkPolicy struct {
	DefaultAction string        `json:"defaultAction,omitempty"`
	Egress        []NetworkRule `json:"egress,omitempty"`
}

// NetworkRule allows or denies a target.
type NetworkRule struct {
	// Action is Allow or Deny.
	Action string `json:"action"`
	// Target is a domain, "*.example.com" for all beneath one, an address, or a
	// range of addresses in CIDR form.
	Target string `json:"target"`
	// HTTP narrows an allow rule for a domain to some requests.
	HTTP *NetworkRuleHTTP `json:"http,omitempty"`
}

// NetworkRuleHTTP is what of HTTP a rule allows. At least one of Methods and
// Paths has an entry.
type NetworkRuleHTTP struct {
	Methods []string `json:"methods,omitempty"`
	// Paths may have "*" for any text within a segment, and at the end for any
	// text.
	Paths []string `json:"paths,omitempty"`
	// Mode is "enforce", also when empty, or "audit", which only reports.
	Mode string `json:"mode,omitempty"`
}

// NetworkPolicyStatus is a policy that is in force.
type NetworkPolicyStatus struct {
	Status string `json:"status"`
	// Mode is "allow_all", "deny_all" or "enforcing".
	Mode            string        `json:"mode"`
	EnforcementMode string        `json:"enforcementMode"`
	Reason          string        `json:"reason,omitempty"`
	Policy          NetworkPolicy `json:"policy"`
}

// NetworkPolicy returns what a sandbox may reach. One that was made without a
// policy is shown as one that allows all.
func (c *Client) NetworkPolicy(ctx context.Context, id string) (*NetworkPolicyStatus, error) {
	return c.policy(ctx, id, http.MethodGet, nil)
}

// SetNetworkPolicy replaces what a sandbox may reach; nil denies everything.
// Connections that the new policy forbids are cut.
func (c *Client) SetNetworkPolicy(ctx context.Context, id string, p *NetworkPolicy) (*NetworkPolicyStatus, error) {
	if p == nil {
		p = new(NetworkPolicy)
	}
	return c.policy(ctx, id, http.MethodPut, p)
}

// PatchNetworkPolicy puts rules in front of those that there are. A new rule
// takes the place of old ones for the same target.
func (c *Client) PatchNetworkPolicy(ctx context.Context, id string, rules ...NetworkRule) (*NetworkPolicyStatus, error) {
	return c.policy(ctx, id, http.MethodPatch, rules)
}

// DeleteNetworkRules takes rules away by their targets. One that no rule has is
// no error.
func (c *Client) DeleteNetworkRules(ctx context.Context, id string, targets ...string) (*NetworkPolicyStatus, error) {
	return c.policy(ctx, id, http.MethodDelete, targets)
}

func (c *Client) policy(ctx context.Context, id, method string, in any) (*NetworkPolicyStatus, error) {
	p, err := sandboxPath(id)
	if err != nil {
		return nil, err
	}
	out := new(NetworkPolicyStatus)
	// Each of the changes has the same result when it is made twice.
	r := &request{method: method, path: p + "/networkpolicy", repeatable: true}
	if err := c.call(ctx, r, in, out); err != nil {
		return nil, err
	}
	return out, nil
}
