package server

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// request is one API request on its way to its handler.
type request struct {
	*http.Request
	w     http.ResponseWriter
	id    string   // of the request
	mount string   // "/v1", or "" for the same route without it
	route *route   // nil when there is none
	args  []string // what stands in the path where the route has names
	// theirs is set when the request failed through a program in a sandbox.
	theirs bool
	// ingress is set when the request came by another way than the API.
	ingress bool
}

// handler answers a request or returns an error, never both.
type handler func(r *request) error

// route is a path with its methods.
type route struct {
	// pattern is the path, with names in braces; it is what metrics and logs
	// call the route.
	pattern string
	methods map[string]handler
	allow   string
	open    bool // needs no key
}

// node is one step of the paths of all routes. A step is either fixed or a name,
// and fixed ones win.
type node struct {
	fixed map[string]*node
	named *node
	bare  *route // at this path without the mount prefix
	v1    *route // under /v1
}

func (n *node) add(pattern string) *node {
	for step := range strings.SplitSeq(strings.TrimPrefix(pattern, "/"), "/") {
		if strings.HasPrefix(step, "{") {
			if n.named == nil {
				n.named = new(node)
			}
			n = n.named
			continue
		}
		if n.fixed == nil {
			n.fixed = make(map[string]*node)
		}
		if n.fixed[step] == nil {
			n.fixed[step] = new(node)
		}
		n = n.fixed[step]
	}
	return n
}

// find returns the route of a path in its escaped form, the mount that it was
// asked under, and the named steps of the path, unescaped. There is no route
// with a step that can't be unescaped.
func (n *node) find(path string) (r *route, mount string, args []string) {
	if rest, ok := strings.CutPrefix(path, "/v1/"); ok {
		mount, path = "/v1", "/"+rest
	}
	rest, ok := strings.CutPrefix(path, "/")
	if !ok {
		return nil, mount, nil
	}
	for more := true; more; {
		var step string
		step, rest, more = strings.Cut(rest, "/")
		if next := n.fixed[step]; next != nil {
			n = next
			continue
		}
		if n.named == nil || step == "" {
			return nil, mount, nil
		}
		n = n.named
		arg, err := url.PathUnescape(step)
		if err != nil {
			return nil, mount, nil
		}
		args = append(args, arg)
	}
	if mount != "" {
		return n.v1, mount, args
	}
	return n.bare, mount, args
}

func newRoute(pattern string, methods map[string]handler) *route {
	names := make([]string, 0, len(methods)+1)
	for m := range methods {
		names = append(names, m)
	}
	slices.Sort(names)
	return &route{pattern: pattern, methods: methods, allow: strings.Join(names, ", ")}
}
