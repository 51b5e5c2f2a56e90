package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// remote is one image in its registry, spoken to on behalf of one caller. Its
// logins are not shared with other callers.
type remote struct {
	ref      ref
	resolver remotes.Resolver
	creds    *credentials
}

func (s *Store) remote(r ref, auth *sandbox.RegistryAuth) (*remote, error) {
	if r.repository == "" {
		return nil, sandbox.Errorf(sandbox.KindNotFound, sandbox.CodeImageNotFound,
			"Image %s is not in the image store, and a digest alone does not say which registry has it. Write name@%s.", r.digest, r.digest)
	}
	creds := &credentials{host: apiHost(r.host), registry: r.host, given: auth, file: s.opts.DockerConfig}
	client := &http.Client{Transport: s.transport}
	authorizer := docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthCreds(creds.lookup))
	hosts := func(host string) ([]docker.RegistryHost, error) {
		var out []docker.RegistryHost
		for _, scheme := range s.schemes(host) {
			out = append(out, docker.RegistryHost{
				Client: client, Authorizer: authorizer,
				Host: apiHost(host), Scheme: scheme, Path: "/v2",
				Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
			})
		}
		return out, nil
	}
	header := http.Header{"User-Agent": []string{"paddock"}}
	return &remote{
		ref: r, creds: creds,
		resolver: docker.NewResolver(docker.ResolverOptions{Hosts: hosts, Headers: header}),
	}, nil
}

// apiHost is where a registry's API is. Docker Hub's is not at its name.
func apiHost(host string) string {
	if host == "docker.io" {
		return "registry-1.docker.io"
	}
	return host
}

// schemes are the ways of speaking to a registry, in the order to try.
func (s *Store) schemes(host string) []string {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	if slices.Contains(s.opts.PlainHTTP, host) || slices.Contains(s.opts.PlainHTTP, name) {
		return []string{"http"}
	}
	if loopback, err := docker.MatchLocalhost(host); err == nil && loopback {
		return []string{"http", "https"}
	}
	return []string{"https"}
}

// resolve asks the registry what the name means now.
func (r *remote) resolve(ctx context.Context) (ocispec.Descriptor, remotes.Fetcher, error) {
	_, desc, err := r.resolver.Resolve(ctx, r.ref.name)
	if err != nil {
		return desc, nil, &registryError{err}
	}
	fetcher, err := r.resolver.Fetcher(ctx, r.ref.name)
	return desc, registryFetcher{fetcher}, err
}

// registryError marks an error as said by a registry: "not found" there means
// something else than in the content store.
type registryError struct{ err error }

func (e *registryError) Error() string { return e.err.Error() }
func (e *registryError) Unwrap() error { return e.err }

// registryFetcher marks the errors of a fetcher, which come when it is read.
type registryFetcher struct{ next remotes.Fetcher }

func (f registryFetcher) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	rc, err := f.next.Fetch(ctx, d)
	if err != nil {
		return nil, &registryError{err}
	}
	return registryReader{rc}, nil
}

type registryReader struct{ io.ReadCloser }

func (r registryReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = &registryError{err}
	}
	return n, err
}

func (r registryReader) Seek(offset int64, whence int) (int64, error) {
	seeker, ok := r.ReadCloser.(io.Seeker)
	if !ok {
		return 0, errors.New("the download cannot be resumed")
	}
	return seeker.Seek(offset, whence)
}

// look finds the image for a platform in the registry. It downloads manifests
// and config only, into the content store, where a pull finds them: registries
// count requests for manifests against a limit.
func (s *Store) look(ctx context.Context, rem *remote, p sandbox.Platform) (*found, remotes.Fetcher, error) {
	rctx, cancel := context.WithTimeout(ctx, s.opts.ResolveTimeout)
	defer cancel()
	desc, fetcher, err := rem.resolve(rctx)
	if err == nil {
		var f *found
		f, err = s.find(rctx, desc, p, func(ctx context.Context, d ocispec.Descriptor) error {
			return s.fetchBlob(ctx, fetcher, d)
		})
		if err == nil {
			return f, fetcher, nil
		}
	}
	// The library may hide the deadline behind what it broke.
	if rctx.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w: %w", context.DeadlineExceeded, errors.New(scrubbed(err).Error()))
	} else if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	return nil, nil, err
}

// Time-outs of a connection to a registry. What a whole request may take is
// bounded by ResolveTimeout, or by stallTimeout for a download.
const (
	dialTimeout   = 10 * time.Second
	tlsTimeout    = 10 * time.Second
	headerTimeout = 30 * time.Second
)

// transport turns answers 429 into errors, so that the library does not repeat
// the request at once, which makes the limit worse.
type transport struct{ next http.RoundTripper }

func newTransport() http.RoundTripper {
	return &transport{next: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		MaxIdleConns:          16,
		MaxIdleConnsPerHost:   defaultMaxDownloads,
		IdleConnTimeout:       30 * time.Second,
		TLSHandshakeTimeout:   tlsTimeout,
		ResponseHeaderTimeout: headerTimeout,
		// Bodies are hashed as they come, so they must come as they are.
		DisableCompression:     true,
		MaxResponseHeaderBytes: 1 << 20,
	}}
}

func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusTooManyRequests {
		if !forBlob(req) {
			resp.Body = &limitedBody{Reader: io.LimitReader(resp.Body, maxAnswer), Closer: resp.Body}
		}
		return resp, nil
	}
	resp.Body.Close()
	return nil, &rateLimitError{host: req.URL.Host, after: retryAfter(resp.Header.Get("Retry-After"), time.Now())}
}

// maxAnswer bounds what a registry or its token service may say in answer to
// anything but a request for a blob; it is read into memory.
const maxAnswer = maxDocument

type limitedBody struct {
	io.Reader
	io.Closer
}

// forBlob reports whether a request, or the one that was redirected to it, is
// for a blob. Those are bounded by the size that the manifest says.
func forBlob(req *http.Request) bool {
	for req.Response != nil && req.Response.Request != nil {
		req = req.Response.Request
	}
	return strings.Contains(req.URL.Path, "/blobs/")
}

const (
	defaultRateRetry = time.Minute
	maxRateRetry     = time.Hour
)

// retryAfter reads the header of RFC 9110, section 10.2.3: seconds or a date.
func retryAfter(value string, now time.Time) time.Duration {
	wait := defaultRateRetry
	if seconds, err := strconv.ParseInt(value, 10, 32); err == nil {
		wait = time.Duration(seconds) * time.Second
	} else if date, err := http.ParseTime(value); err == nil {
		wait = date.Sub(now)
	}
	return min(max(wait, time.Second), maxRateRetry)
}
