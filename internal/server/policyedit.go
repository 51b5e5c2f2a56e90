package server

import (
	"bytes"
	"net/http"
	"strconv"
	"strings"

	"github.com/paddock-sandbox/paddock/internal/policy"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// policyEdit makes the new policy of the present one, nil for none.
type policyEdit = func(*policy.Policy) (*policy.Policy, error)

// policyEdit reads what is to be done to the policy. The reason is known only
// when the edit was made.
func (s *Server) policyEdit(r *request) (edit policyEdit, reason *string, err error) {
	body, err := s.readBody(r)
	if err != nil {
		return nil, nil, err
	}
	reason = new(string)
	switch r.Method {
	case http.MethodPost, http.MethodPut:
		edit, err = replacing(body, reason)
	case http.MethodPatch:
		edit, err = adding(body)
	default:
		edit, err = removing(body, reason)
	}
	return edit, reason, err
}

// replacing is the edit of a whole policy. Without one everything is denied.
func replacing(body []byte, reason *string) (policyEdit, error) {
	p, reset := &policy.Policy{DefaultAction: policy.Deny}, true
	if len(bytes.TrimSpace(body)) > 0 {
		v, err := parseJSON(body)
		if err != nil {
			return nil, err
		}
		if v.kind != kindNull {
			d := new(decoder)
			if list := d.member(v, "egress"); list != nil && len(list.items) > policy.MaxRules {
				return nil, errTooManyRules(len(list.items))
			}
			if p = d.networkPolicy(v); d.err != nil {
				return nil, d.err
			}
			reset = len(v.members) == 0
		}
	}
	if reset {
		*reason = "policy reset to default deny-all"
	}
	return func(*policy.Policy) (*policy.Policy, error) { return p, nil }, nil
}

// adding is the edit of a list of rules, which go in front.
func adding(body []byte) (policyEdit, error) {
	v, err := nonEmptyList(body, "rules")
	if err != nil {
		return nil, err
	}
	if len(v.items) > policy.MaxRules {
		return nil, errTooManyRules(len(v.items))
	}
	d := new(decoder)
	fresh := d.normalPolicy("", policy.Policy{Egress: d.rules(v)})
	if d.err != nil {
		// A rule is named by its place in the list that was sent.
		e := *d.err
		e.Message = strings.TrimPrefix(e.Message, "egress")
		return nil, &e
	}
	return func(old *policy.Policy) (*policy.Policy, error) {
		merged := orOpen(old).Merge(fresh.Egress)
		if n := len(merged.Egress); n > policy.MaxRules {
			return nil, errTooManyRules(n)
		}
		return &merged, nil
	}, nil
}

// removing is the edit of a list of targets, whose rules go.
func removing(body []byte, reason *string) (policyEdit, error) {
	v, err := nonEmptyList(body, "targets")
	if err != nil {
		return nil, err
	}
	d := new(decoder)
	var targets []string
	for _, t := range v.items {
		targets = append(targets, d.textOf(t, bytesRule{max: maxTarget}))
	}
	if d.err != nil {
		return nil, d.err
	}
	return func(old *policy.Policy) (*policy.Policy, error) {
		left, n := orOpen(old).Without(targets)
		if n == 0 {
			*reason = "no matching targets found"
			return old, nil
		}
		return &left, nil
	}, nil
}

func errTooManyRules(n int) error {
	return &httpError{status: http.StatusRequestEntityTooLarge, code: codeTooLarge,
		message: "The policy would have " + strconv.Itoa(n) + " rules; at most " + strconv.Itoa(policy.MaxRules) + " are allowed. A range in CIDR form or *.domain can replace many."}
}

func nonEmptyList(body []byte, what string) (*value, error) {
	if len(bytes.TrimSpace(body)) == 0 {
		body = []byte("[]") // as wrong as that
	}
	v, err := parseJSON(body)
	if err != nil {
		return nil, err
	}
	if v.kind != kindArray || len(v.items) == 0 {
		return nil, invalid(sandbox.CodeInvalidParameter, "The body must be an array of %s that is not empty.", what)
	}
	return v, nil
}
