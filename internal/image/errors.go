package image

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// errCorrupt is the root of errors about bytes that are not what their digest
// or their format promises.
var errCorrupt = errors.New("corrupt image")

// errStalled ends a download of which nothing has come for stallTimeout.
var errStalled = errors.New("the registry stopped sending")

// noSpaceError is returned when MinFreeBytes would be touched.
type noSpaceError struct{ free, want int64 }

func (e *noSpaceError) Error() string {
	return fmt.Sprintf("%d bytes free, %d to be left free", e.free, e.want)
}

func (e *noSpaceError) Unwrap() error { return syscall.ENOSPC }

// rateLimitError is a registry's answer 429.
type rateLimitError struct {
	host  string
	after time.Duration
}

func (e *rateLimitError) Error() string { return "registry " + e.host + " limits the rate of requests" }

// failure turns the error of a pull or import into one for the caller. It
// never shows text that a registry or a library wrote, because that may repeat
// credentials or signed addresses; the scrubbed original goes to the log.
func failure(r ref, loggedIn bool, err error) error {
	if err == nil {
		return nil
	}
	var own *sandbox.Error
	if errors.As(err, &own) {
		out := *own
		out.Reason = sandbox.ReasonImagePullFailed
		return &out
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("pulling image %q: %w", r.name, context.Canceled)
	}
	e := classify(r, loggedIn, err)
	e.Reason = sandbox.ReasonImagePullFailed
	e.Err = scrubbed(err)
	return e
}

func classify(r ref, loggedIn bool, err error) *sandbox.Error {
	var limited *rateLimitError
	var platform *wrongPlatformError
	var bomb *tooBigError
	switch {
	case errors.As(err, &limited):
		e := sandbox.Errorf(sandbox.KindBusy, sandbox.CodeImagePullFailed,
			"Registry %s refuses more requests for now, while pulling image %q. Try again later, or log in (image.auth) for a higher limit.", limited.host, r.name)
		e.RetryAfter = limited.after
		return e
	case errors.As(err, &platform):
		return sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeImageInvalid,
			"Image %q is built for %s, but %s is needed. Use an image that has it, or ask for another platform.", r.name, platform.has, platform.want)
	case errors.As(err, &bomb):
		return sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeImageInvalid,
			"Image %q is refused: %s.", r.name, bomb.what)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return sandbox.Errorf(sandbox.KindInternal, sandbox.CodeImagePullFailed,
			"There is not enough free disk space to store image %q. Free some on the file system of the image store, for example with paddock image prune.", r.name)
	case errors.Is(err, errCorrupt):
		return sandbox.Errorf(sandbox.KindInternal, sandbox.CodeImagePullFailed,
			"Image %q is damaged: %s. Nothing of the damaged part was kept. Push it again, or ask whoever runs the registry.", r.name, corruption(err))
	}
	if e := classifyAnswer(r, loggedIn, err); e != nil {
		return e
	}
	return unreachable(r, err)
}

// classifyAnswer deals with what a registry said, as opposed to silence.
func classifyAnswer(r ref, loggedIn bool, err error) *sandbox.Error {
	status := statusOf(err)
	var said *registryError
	refused := errors.Is(err, docker.ErrInvalidAuthorization) ||
		status == http.StatusUnauthorized || status == http.StatusForbidden
	switch {
	case refused && loggedIn:
		return sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeImageAuth,
			"Registry %s refused the credentials given for image %q. Check user name, password and whether they may pull it.", r.host, r.name)
	case refused:
		// Registries answer so for repositories that do not exist, in order
		// not to tell strangers which do.
		return sandbox.Errorf(sandbox.KindNotFound, sandbox.CodeImageNotFound,
			"Image %q does not exist in registry %s, or needs credentials. Check the name, or give image.auth.", r.name, r.host)
	case status == http.StatusNotFound || errdefs.IsNotFound(err) && errors.As(err, &said):
		return sandbox.Errorf(sandbox.KindNotFound, sandbox.CodeImageNotFound,
			"Image %q does not exist in registry %s. Check name and tag.", r.name, r.host)
	case status >= 500:
		e := sandbox.Errorf(sandbox.KindUnavailable, sandbox.CodeImagePullFailed,
			"Registry %s answered %d %s to the request for image %q. Try again later.", r.host, status, http.StatusText(status), r.name)
		e.RetryAfter = unavailableRetry
		return e
	case status >= 300:
		return sandbox.Errorf(sandbox.KindInternal, sandbox.CodeImagePullFailed,
			"Registry %s answered %d %s to the request for image %q. Is it a container registry?", r.host, status, http.StatusText(status), r.name)
	}
	return nil
}

// unavailableRetry is what a client is told to wait when a registry is down.
const unavailableRetry = 10 * time.Second

func unreachable(r ref, err error) *sandbox.Error {
	why := networkReason(err)
	if why == "" {
		return sandbox.Errorf(sandbox.KindInternal, sandbox.CodeImagePullFailed,
			"Image %q could not be stored. The log of the server says why.", r.name)
	}
	e := sandbox.Errorf(sandbox.KindUnavailable, sandbox.CodeImagePullFailed,
		"Registry %s could not be reached for image %q: %s. Check this machine's network, or load the image from a file with paddock image import.", r.host, r.name, why)
	e.RetryAfter = unavailableRetry
	return e
}

// networkReason says in our own words what went wrong between here and a
// registry, or "" when it was something else.
func networkReason(err error) string {
	var dns *net.DNSError
	var unknown x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	var netErr net.Error
	switch {
	case errors.As(err, &dns):
		return "its name could not be resolved"
	case errors.As(err, &unknown):
		return "its TLS certificate is signed by an authority that this machine does not trust"
	case errors.As(err, &hostname):
		return "its TLS certificate is for another name"
	case errors.As(err, &invalid):
		return "its TLS certificate is not valid"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "the connection was refused"
	case errors.Is(err, errStalled):
		return "it stopped sending"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return "it did not answer in time"
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "the connection was lost"
	case errors.As(err, &netErr), errors.Is(err, http.ErrSchemeMismatch):
		return "the connection failed"
	}
	return ""
}

func statusOf(err error) int {
	var answer remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &answer) {
		return answer.StatusCode
	}
	return 0
}

// corruption is the part of an errCorrupt error that we wrote ourselves.
func corruption(err error) string {
	var c *corruptError
	if errors.As(err, &c) {
		return c.what
	}
	return "its content does not match its digest"
}

// corruptError says what is wrong with an image. what is shown to callers.
type corruptError struct {
	what string
	err  error
}

func corruptf(err error, format string, args ...any) error {
	return &corruptError{what: fmt.Sprintf(format, args...), err: err}
}

func (e *corruptError) Error() string {
	if e.err == nil {
		return e.what
	}
	return e.what + ": " + e.err.Error()
}

func (e *corruptError) Is(target error) bool { return target == errCorrupt }
func (e *corruptError) Unwrap() error        { return e.err }

// tooBigError is returned for an image that unpacks to more than is allowed.
type tooBigError struct{ what string }

func (e *tooBigError) Error() string { return e.what }

// addressQuery finds the query and the user part of addresses in error texts:
// signed blob addresses and token requests carry secrets there.
var addressQuery = regexp.MustCompile(`\?[^\s"']*|//[^\s"'/@]*@`)

// scrubbed returns an error for the log without secrets in its text.
func scrubbed(err error) error {
	var u *url.Error
	if errors.As(err, &u) && u.Err != nil {
		// The wrapped error is the same without the address.
		err = fmt.Errorf("%s: %w", u.Op, u.Err)
	}
	return errors.New(addressQuery.ReplaceAllString(err.Error(), "…"))
}
