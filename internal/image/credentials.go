package image

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// credentials finds the login for one image: what the caller gave, else what
// Docker's config.json has for the registry.
type credentials struct {
	// host is where the registry's API is. Nobody else is given the login,
	// wherever the registry may redirect to.
	host string
	// registry is its name in image references and in config.json.
	registry string
	given    *sandbox.RegistryAuth
	file     string

	once         sync.Once
	user, secret string
	err          error
}

// lookup has the form that containerd's authorizer wants. An empty user with a
// secret means that the secret is a refresh token.
func (c *credentials) lookup(host string) (user, secret string, err error) {
	if host != c.host {
		return "", "", nil
	}
	if c.given != nil && (c.given.Username != "" || c.given.Password != "") {
		return c.given.Username, c.given.Password, nil
	}
	c.once.Do(func() { c.user, c.secret, c.err = dockerLogin(c.file, c.registry) })
	return c.user, c.secret, c.err
}

// any reports whether there is a login for the registry.
func (c *credentials) any() bool {
	user, secret, err := c.lookup(c.host)
	return err == nil && (user != "" || secret != "")
}

// dockerConfig is the part of Docker's config.json that concerns logins.
type dockerConfig struct {
	Auths       map[string]dockerAuth `json:"auths"`
	CredHelpers map[string]string     `json:"credHelpers"`
	CredsStore  string                `json:"credsStore"`
}

type dockerAuth struct {
	// Auth is base64 of "user:password".
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
}

const (
	maxDockerConfig = 1 << 20
	// hubKey is Docker Hub's key in config.json, for historical reasons.
	hubKey        = "https://index.docker.io/v1/"
	helperTimeout = 10 * time.Second
)

// dockerLogin reads the login for a registry from a config.json. A missing
// file is no login.
func dockerLogin(path, registry string) (user, secret string, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) || path == "" {
		return "", "", nil
	} else if err != nil {
		return "", "", badDockerConfig(path, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxDockerConfig))
	if err != nil {
		return "", "", badDockerConfig(path, err)
	}
	return parseDockerLogin(path, data, registry)
}

func parseDockerLogin(path string, data []byte, registry string) (user, secret string, err error) {
	var config dockerConfig
	if err := json.Unmarshal(data, &config); err != nil {
		// The text of a JSON error may quote what it could not read.
		return "", "", badDockerConfig(path, errors.New("it is not valid JSON"))
	}
	keys := registryKeys(registry)
	for _, key := range keys {
		if helper := config.CredHelpers[key]; helper != "" {
			return runHelper(path, helper, key)
		}
	}
	for _, key := range keys {
		if auth, ok := config.Auths[key]; ok {
			user, secret, err := auth.login()
			if err != nil {
				return "", "", badDockerConfig(path, fmt.Errorf("the entry auths[%q] is not base64 of user:password", key))
			}
			if user != "" || secret != "" {
				return user, secret, nil
			}
		}
	}
	if config.CredsStore != "" {
		return runHelper(path, config.CredsStore, keys[0])
	}
	return "", "", nil
}

// registryKeys are the keys under which Docker may have stored a login, the
// most likely first.
func registryKeys(registry string) []string {
	if registry == "docker.io" {
		return []string{hubKey, "docker.io", "index.docker.io", "registry-1.docker.io"}
	}
	return []string{registry, "https://" + registry, "http://" + registry,
		"https://" + registry + "/", "https://" + registry + "/v2/", "https://" + registry + "/v1/"}
}

func (a dockerAuth) login() (user, secret string, err error) {
	if a.IdentityToken != "" {
		return "", a.IdentityToken, nil
	}
	if a.Auth == "" {
		return a.Username, a.Password, nil
	}
	raw, err := base64.StdEncoding.DecodeString(a.Auth)
	if err != nil {
		return "", "", err
	}
	user, secret, ok := strings.Cut(string(raw), ":")
	if !ok {
		return "", "", errors.New("no colon")
	}
	return user, strings.TrimRight(secret, "\x00"), nil
}

var helperName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

// runHelper asks one of Docker's credential helpers. Protocol: the server's
// address on standard input, JSON on standard output
// (github.com/docker/docker-credential-helpers).
func runHelper(path, helper, server string) (user, secret string, err error) {
	if !helperName.MatchString(helper) {
		return "", "", badDockerConfig(path, fmt.Errorf("%q is not the name of a credential helper", helper))
	}
	ctx, cancel := context.WithTimeout(context.Background(), helperTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "docker-credential-"+helper, "get")
	cmd.Stdin = strings.NewReader(server)
	var out limitedBuffer
	cmd.Stdout = &out
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		if strings.Contains(out.buf.String(), "credentials not found") {
			return "", "", nil
		}
		return "", "", badDockerConfig(path, fmt.Errorf("the credential helper docker-credential-%s failed", helper))
	}
	var answer struct{ Username, Secret string }
	if err := json.Unmarshal(out.buf.Bytes(), &answer); err != nil {
		return "", "", badDockerConfig(path, fmt.Errorf("the credential helper docker-credential-%s did not answer in JSON", helper))
	}
	if answer.Username == "<token>" {
		return "", answer.Secret, nil
	}
	return answer.Username, answer.Secret, nil
}

// limitedBuffer keeps the beginning of what is written to it. It does not
// embed the buffer, whose ReadFrom would go past the limit.
type limitedBuffer struct{ buf bytes.Buffer }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if room := maxDockerConfig - b.buf.Len(); room > 0 {
		b.buf.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

func badDockerConfig(path string, err error) error {
	return &sandbox.Error{
		Kind: sandbox.KindInternal, Code: sandbox.CodeImagePullFailed, Reason: sandbox.ReasonImagePullFailed,
		Message: "The registry logins of this server could not be read. Its log says why.",
		Err:     fmt.Errorf("reading registry logins from %s: %w", path, err),
	}
}
