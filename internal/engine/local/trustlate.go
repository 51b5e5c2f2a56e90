package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/internal/egress/intercept"
	"github.com/paddock-sandbox/paddock/internal/execd/hostapi"
	"github.com/paddock-sandbox/paddock/internal/image"
	"github.com/paddock-sandbox/paddock/internal/policy"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// A sandbox that gets its first credential, or its first rule with conditions on
// requests, while it runs was made without what trust.go mounts. Nothing can be
// mounted into it any more without following paths that it has shaped. Its execd
// writes the same files in the same places instead, from within, and gives the
// variables to all that it starts from then on.

const (
	// trustTimeout bounds what execd takes for that.
	trustTimeout = 10 * time.Second
	// maxRefusal is how much of execd's reason is repeated, in bytes: by then it
	// may say anything.
	maxRefusal = 200
	// trustMounted is state.Trust of a sandbox that was made with the files.
	trustMounted = "mounted"
)

// authorityName is state.Trust of a sandbox that was told of this authority.
func authorityName(pem []byte) string {
	sum := sha256.Sum256(pem)
	return hex.EncodeToString(sum[:8])
}

// ownTrustEnv picks those of a request's variables that are about trust. They
// stand.
func ownTrustEnv(spec *sandbox.Spec) map[string]string {
	own := map[string]string{}
	for k := range intercept.TrustEnvironment(true) {
		if v, ok := spec.Env[k]; ok {
			own[k] = v
		}
	}
	return own
}

// Trust has what a sandbox starts from now on trust the authority.
func (e *Engine) Trust(ctx context.Context, id string) error {
	s, err := e.find(id)
	if err != nil {
		return err
	}
	if len(e.opts.Authority) == 0 {
		return sandbox.Errorf(sandbox.KindNotImplemented, sandbox.CodeNotSupported, "This server has no authority for looking into connections.")
	}
	st, err := e.in.loadState(id)
	if err != nil {
		return err
	}
	name := authorityName(e.opts.Authority)
	if st.Trust == trustMounted || st.Trust == name {
		return nil
	}
	if frozen, err := s.group.Frozen(); err != nil || frozen {
		return sandbox.Errorf(sandbox.KindConflict, sandbox.CodeNotTrusted,
			"Sandbox %q is paused, so its programs can't be told to trust the server's authority, without which their connections can't be looked into. Resume it, then try again.", id)
	}
	if err := e.tellTrust(ctx, s, st.Image); err != nil {
		return trustError(id, err)
	}
	st.Trust = name
	e.log.Info("a sandbox was told to trust the server's authority", "sandbox", id)
	return e.in.saveState(st)
}

// tellTrust has execd place the files.
func (e *Engine) tellTrust(ctx context.Context, s *shell, digest string) error {
	ctx, cancel := context.WithTimeout(ctx, trustTimeout)
	defer cancel()
	img := e.opts.Images.ByDigest(digest)
	if img == nil {
		return fmt.Errorf("the image %s is not in the image store any more", digest)
	}
	told, err := e.trustOf(img, s.ownEnv)
	if err != nil {
		return err
	}
	conn, err := e.connect(ctx, s)
	if err != nil {
		return err
	}
	defer conn.Close()
	return sendTrust(ctx, conn, s.token, told)
}

// sendTrust hands it to an execd, of whose answer it believes no more than that
// it refused.
func sendTrust(ctx context.Context, conn *execdConn, token string, told *hostapi.Trust) error {
	body, err := json.Marshal(told)
	if err != nil {
		return err
	}
	status, answer, err := conn.call(ctx, http.MethodPost, hostapi.TrustPath, token, body)
	if err != nil || status == http.StatusOK {
		return err
	}
	refused := &claimError{}
	if err := json.Unmarshal(answer, &refused.answer); err != nil || refused.answer.Code != hostapi.CodeTrustUnwritable {
		return fmt.Errorf("execd answered with status %d", status)
	}
	return refused
}

// trustOf is what the programs of an image are to be told. own are the variables
// that the request set itself.
func (e *Engine) trustOf(img *image.Image, own map[string]string) (*hostapi.Trust, error) {
	java := inLayers(img.LayerDirs, javaPaths)
	files, err := e.trustFiles(img, java)
	if err != nil {
		return nil, err
	}
	told := &hostapi.Trust{Env: map[string]string{}}
	for _, f := range files {
		content, err := os.ReadFile(f.host)
		if err != nil {
			return nil, err
		}
		told.Files = append(told.Files, hostapi.TrustFile{Path: f.target, Content: content})
	}
	for _, kv := range img.Config.Env {
		if v, ok := strings.CutPrefix(kv, javaOptions+"="); ok && java {
			told.Env[javaOptions] = v
		}
	}
	addTrust(told.Env, intercept.TrustEnvironment(java), own)
	// What the request set stands, the image's part included.
	maps.DeleteFunc(told.Env, func(k, _ string) bool { _, theirs := own[k]; return theirs })
	return told, nil
}

func trustError(id string, err error) error {
	var refused *claimError
	if errors.As(err, &refused) {
		return sandbox.Errorf(sandbox.KindConflict, sandbox.CodeNotTrusted,
			"Sandbox %q has no place for the certificate that its programs must trust before their connections can be looked into: %s. Nothing was changed; make the sandbox with credentialProxy or with the rule.",
			id, printable(refused.answer.Message[:min(len(refused.answer.Message), maxRefusal)]))
	}
	return &sandbox.Error{Kind: sandbox.KindUnavailable, Code: sandbox.CodeNotTrusted, RetryAfter: trustTimeout, Err: err,
		Message: fmt.Sprintf("Sandbox %q could not be told to trust the server's authority, without which its connections can't be looked into. Nothing was changed; try again, or make the sandbox with credentialProxy or with the rule.", id)}
}

// trustFor is Trust where a policy needs it.
func (e *Engine) trustFor(ctx context.Context, id string, p *policy.Policy) error {
	if len(e.opts.Authority) == 0 || p == nil || !policy.Compile(*p).NeedsContent() {
		return nil
	}
	return e.Trust(ctx, id)
}

// trustAgain makes up for what a server that ended did not do any more. The
// policy is in force whether it succeeds or not; without it programs refuse the
// server's certificates. One that is paused is told when it is resumed.
func (e *Engine) trustAgain(ctx context.Context, s *shell, p *policy.Policy) {
	ctx, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	s.untold = nil
	if err := e.trustFor(ctx, s.id, p); err != nil {
		s.untold = p
		e.log.Warn("a sandbox could not be told to trust the server's authority", "sandbox", s.id, "error", err)
	}
}
