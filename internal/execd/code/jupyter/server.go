package jupyter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	// requestTimeout bounds one request to a server that has no other bound.
	// Starting a kernel may take seconds.
	requestTimeout = 30 * time.Second
	// maxAnswer bounds a server's answer in bytes. A list of kernels has a few
	// thousand.
	maxAnswer = 1 << 20
)

// ErrRefused is returned when a server does not accept the token.
var ErrRefused = errors.New("the Jupyter server refuses the token")

// Server is a Jupyter server, which starts kernels and passes messages on
// (jupyter-server.readthedocs.io, "The REST API"). Its methods may be called in
// parallel. It keeps no connections.
type Server struct {
	base   *url.URL
	token  string
	client *http.Client
}

// NewServer returns the server at an address like http://127.0.0.1:44771, with a
// path if it is not at the root.
func NewServer(address, token string) (*Server, error) {
	base, err := url.Parse(address)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" {
		return nil, fmt.Errorf("%q is not the address of a Jupyter server; it must be like http://127.0.0.1:44771", address)
	}
	base.RawQuery, base.Fragment = "", ""
	// No proxy: the address is meant as it is. The token goes to nobody else,
	// so redirections are not followed.
	return &Server{base: base, token: token, client: &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Address is the server's address without a password that may be in it.
func (s *Server) Address() string { return s.base.Redacted() }

func (s *Server) header() http.Header {
	h := http.Header{}
	if s.token != "" {
		h.Set("Authorization", "token "+s.token)
	}
	return h
}

// call makes a request below /api and decodes the answer into out unless that
// is nil.
func (s *Server) call(ctx context.Context, method string, path []string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	where := s.base.JoinPath(append([]string{"api"}, path...)...)
	req, err := http.NewRequestWithContext(ctx, method, where.String(), body)
	if err != nil {
		return err
	}
	req.Header = s.header()
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		return ErrRefused
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		return fmt.Errorf("the Jupyter server answered %s: %s", resp.Status, complaint(b))
	case err != nil:
		return err
	case len(b) > maxAnswer:
		return fmt.Errorf("the Jupyter server's answer is longer than %d bytes", maxAnswer)
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("the Jupyter server's answer can't be read: %w", err)
	}
	return nil
}

// complaint is the message in a server's refusal.
func complaint(b []byte) string {
	var e struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(b, &e) != nil || e.Message == "" {
		e.Message = string(b)
	}
	return strings.ToValidUTF8(e.Message[:min(len(e.Message), 500)], "")
}

// Specs lists the server's kernels by name.
func (s *Server) Specs(ctx context.Context) ([]*Spec, error) {
	var list struct {
		Specs map[string]struct {
			Spec *Spec `json:"spec"`
		} `json:"kernelspecs"`
	}
	if err := s.call(ctx, http.MethodGet, []string{"kernelspecs"}, nil, &list); err != nil {
		return nil, err
	}
	var all []*Spec
	for name, k := range list.Specs {
		if k.Spec != nil && validName(name) {
			k.Spec.Name = name
			all = append(all, k.Spec)
		}
	}
	slices.SortFunc(all, func(a, b *Spec) int { return strings.Compare(a.Name, b.Name) })
	return all[:min(len(all), maxSpecs)], nil
}

// Session is a kernel on a server.
type Session struct {
	server     *Server
	id, kernel string
}

// Start starts a kernel. It works in the directory of path, which the server
// takes relative to its own root; where there is no such directory, in one above
// it.
func (s *Server) Start(ctx context.Context, kernel, path string) (*Session, error) {
	var made struct {
		ID     string `json:"id"`
		Kernel struct {
			ID string `json:"id"`
		} `json:"kernel"`
	}
	err := s.call(ctx, http.MethodPost, []string{"sessions"}, map[string]any{
		"path": path, "name": "", "type": "notebook", "kernel": map[string]string{"name": kernel},
	}, &made)
	if err != nil {
		return nil, err
	}
	if !validName(made.ID) || !validName(made.Kernel.ID) {
		return nil, errors.New("the Jupyter server's answer names no kernel")
	}
	return &Session{server: s, id: made.ID, kernel: made.Kernel.ID}, nil
}

// Interrupt interrupts what the kernel runs.
func (k *Session) Interrupt(ctx context.Context) error {
	return k.server.call(ctx, http.MethodPost, []string{"kernels", k.kernel, "interrupt"}, struct{}{}, nil)
}

// Alive returns nil if the server still has the kernel.
func (k *Session) Alive(ctx context.Context) error {
	return k.server.call(ctx, http.MethodGet, []string{"kernels", k.kernel}, nil, nil)
}

// Delete ends the kernel.
func (k *Session) Delete(ctx context.Context) error {
	return k.server.call(ctx, http.MethodDelete, []string{"sessions", k.id}, nil, nil)
}
