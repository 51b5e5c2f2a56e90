package server

import (
	"errors"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/paddock-sandbox/paddock/internal/policy"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

const (
	maxWord   = 32 // of an action or a mode, in bytes
	maxTarget = 1024
	// headerPolicyVersion carries the version of the policy in an answer; a
	// change may demand it with If-Match.
	headerPolicyVersion = "ETag"
)

// policyStatus is how a policy is shown (OpenSandbox egress API).
type policyStatus struct {
	Status          string        `json:"status"`
	Mode            string        `json:"mode"`
	EnforcementMode string        `json:"enforcementMode"`
	Reason          string        `json:"reason,omitempty"`
	Policy          policy.Policy `json:"policy"`
}

// statusOf describes the policy of a sandbox. One without a policy reaches what
// is public: that is the same as allowing all.
func statusOf(p *policy.Policy, reason string) policyStatus {
	st := policyStatus{Status: "ok", EnforcementMode: "dns+nft", Reason: reason, Policy: policy.Policy{DefaultAction: policy.Allow}}
	if p != nil {
		st.Policy = *p
	}
	if st.Policy.Egress == nil {
		st.Policy.Egress = []policy.Rule{}
	}
	switch {
	case len(st.Policy.Egress) > 0:
		st.Mode = "enforcing"
	case st.Policy.DefaultAction == policy.Allow:
		st.Mode = "allow_all"
	default:
		st.Mode = "deny_all"
	}
	return st
}

// networkPolicy reads a policy and puts it into normal form.
func (d *decoder) networkPolicy(v *value) *policy.Policy {
	if v == nil || !d.is(v, kindObject) {
		return nil
	}
	d.only(v, "defaultAction", "egress")
	var p policy.Policy
	if a := d.member(v, "defaultAction"); a != nil {
		p.DefaultAction = policy.Action(d.textOf(a, bytesRule{max: maxWord}))
	}
	if list := d.member(v, "egress"); list != nil && d.is(list, kindArray) {
		p.Egress = d.rules(list)
	}
	return d.normalPolicy(v.path, p)
}

// normalPolicy normalises a policy that stands at path in the body.
func (d *decoder) normalPolicy(path string, p policy.Policy) *policy.Policy {
	if d.err != nil {
		return nil
	}
	n, err := p.Normalize()
	var bad *policy.RuleError
	if errors.As(err, &bad) {
		if path != "" {
			path += "."
		}
		d.refuse(path+bad.Path(), "%s", bad.Message)
		return nil
	}
	return &n
}

func (d *decoder) rules(list *value) []policy.Rule {
	rules := make([]policy.Rule, 0, len(list.items))
	for _, v := range list.items {
		if d.err != nil || !d.is(v, kindObject) {
			return nil
		}
		d.only(v, "action", "target", "http")
		rules = append(rules, policy.Rule{
			Action: policy.Action(d.required(v, "action", bytesRule{max: maxWord})),
			Target: d.required(v, "target", bytesRule{max: maxTarget}),
			HTTP:   d.ruleHTTP(v),
		})
	}
	return rules
}

func (d *decoder) ruleHTTP(rule *value) *policy.HTTP {
	v := d.object(rule, "http")
	if v == nil {
		return nil
	}
	d.only(v, "methods", "paths", "mode")
	h := new(policy.HTTP)
	h.Methods = d.texts(v, "methods")
	h.Paths = d.texts(v, "paths")
	if m := d.member(v, "mode"); m != nil {
		h.Mode = policy.Mode(d.textOf(m, bytesRule{max: maxWord}))
	}
	return h
}

// texts reads a list of strings; how many there may be is the policy's matter.
func (d *decoder) texts(obj *value, name string) (out []string) {
	for _, v := range d.list(obj, name, policy.MaxRules) {
		out = append(out, d.textOf(v, bytesRule{max: 4096}))
	}
	return out
}

// policyAPI reads or changes the policy of a sandbox: both the route of the
// control plane and the egress API are this.
func (s *Server) policyAPI(r *request, id string) (policyStatus, error) {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		sb, err := s.manager.Get(id)
		if err != nil {
			return policyStatus{}, err
		}
		r.w.Header().Set(headerPolicyVersion, versionTag(sb.PolicyVersion))
		return statusOf(sb.Spec.NetworkPolicy, ""), nil
	}
	version, err := wantedVersion(r.Header)
	if err != nil {
		return policyStatus{}, err
	}
	edit, reason, err := s.policyEdit(r)
	if err != nil {
		return policyStatus{}, err
	}
	sb, err := s.manager.SetPolicy(r.Context(), id, version, s.keepingCredentials(id, edit))
	if err != nil {
		return policyStatus{}, err
	}
	r.w.Header().Set(headerPolicyVersion, versionTag(sb.PolicyVersion))
	return statusOf(sb.Spec.NetworkPolicy, *reason), nil
}

// keepingCredentials refuses an edit after which a credential of the sandbox
// would be for a host that no rule allows.
func (s *Server) keepingCredentials(id string, edit policyEdit) policyEdit {
	if s.opts.Vaults == nil {
		return edit
	}
	return func(old *policy.Policy) (*policy.Policy, error) {
		next, err := edit(old)
		if err != nil {
			return nil, err
		}
		if err := s.opts.Vaults.CheckPolicy(id, orOpen(next).Egress); err != nil {
			return nil, invalid(sandbox.CodeInvalidParameter, "%w", err)
		}
		return next, nil
	}
}

func versionTag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// ifMatch is what If-Match may say: the ETag of an answer, or that any will do.
var ifMatch = regexp.MustCompile(`^(\*|"([0-9]{1,18})")$`)

// wantedVersion is -1 when any will do.
func wantedVersion(h http.Header) (int64, error) {
	tags := h["If-Match"]
	if len(tags) == 0 {
		return -1, nil
	}
	m := ifMatch.FindStringSubmatch(tags[0])
	if len(tags) > 1 || m == nil {
		return 0, invalid(sandbox.CodeInvalidParameter, "The header If-Match is %s; it must be the ETag of an earlier answer, with its quotes, or *.", quote(strings.Join(tags, ", ")))
	}
	if m[2] == "" {
		return -1, nil
	}
	return strconv.ParseInt(m[2], 10, 64) // 18 digits fit
}

// orOpen is what holds for a sandbox without a policy.
func orOpen(p *policy.Policy) policy.Policy {
	if p == nil {
		return policy.Policy{DefaultAction: policy.Allow}
	}
	return *p
}

// networkPolicy is the route of the control plane.
func (s *Server) networkPolicy(r *request) error {
	id, err := r.sandboxID()
	if err != nil {
		return err
	}
	if r.Method != http.MethodGet && r.ContentLength != 0 {
		if err := checkMediaType(r.Header, nil); err != nil {
			return err
		}
	}
	st, err := s.policyAPI(r, id)
	if err != nil {
		return err
	}
	writeJSON(r.w, http.StatusOK, st)
	return nil
}
