package harness

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/paddock-sandbox/paddock/client"
)

const (
	// EnvBinary names the paddock binary; `make build` puts it where it is
	// looked for by default.
	EnvBinary = "PADDOCK_BIN"
	// EnvRequire, when set, turns tests that would be skipped because the
	// machine lacks something into failures.
	EnvRequire = "PADDOCK_TEST_REQUIRE"

	startTimeout = 60 * time.Second
	stopTimeout  = 30 * time.Second
)

// Options say what server to start.
type Options struct {
	// Binary is the paddock binary.
	Binary string
	// DataDir is the data directory; it is made when it does not exist.
	DataDir string
	// RunDir is the run directory, shared by all servers of this process.
	RunDir string
	// Settings are configuration keys, such as "pool.size", and their values.
	Settings map[string]string
	// Args are further arguments of `paddock serve`.
	Args []string
}

// Server is one paddock server, which may be running or not.
type Server struct {
	URL     string
	Key     string
	DataDir string
	RunDir  string
	Client  *client.Client

	o    Options
	addr string
	log  string // path
	http http.RoundTripper

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
	err  error         // how it ended
}

// FreePort returns a loopback port that nobody listens on. It lies below the
// ports that the kernel gives to outgoing connections: one of those could take
// the port while a killed server is down, a client that dials it even by
// connecting to itself.
func FreePort() (int, error) {
	const low, high, tries = 10000, 32000, 100
	var err error
	for range tries {
		var l net.Listener
		port := low + rand.IntN(high-low)
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			l.Close()
			return port, nil
		}
	}
	return 0, fmt.Errorf("no free port found: %w", err)
}

// Launch starts a server and returns when it answers.
func Launch(ctx context.Context, o Options) (*Server, error) {
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.DataDir, 0o700); err != nil {
		return nil, err
	}
	s := &Server{
		o: o, DataDir: o.DataDir, RunDir: o.RunDir,
		addr: fmt.Sprintf("127.0.0.1:%d", port),
		log:  filepath.Join(o.DataDir, "test-server.log"),
	}
	if err := s.Start(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// Start starts the server again on the same directories and the same port, and
// returns when it answers.
func (s *Server) Start(ctx context.Context) error {
	if err := s.locate(); err != nil {
		return err
	}
	logFile, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer logFile.Close()
	cmd := exec.Command(s.o.Binary, append([]string{"serve"}, s.o.Args...)...)
	cmd.Env = s.Environ()
	cmd.Stdout, cmd.Stderr = logFile, logFile
	// The server does not outlive a test process that is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	s.mu.Lock()
	s.cmd, s.done = cmd, done
	s.mu.Unlock()
	go func() {
		err := cmd.Wait()
		s.mu.Lock()
		s.err = err
		s.mu.Unlock()
		close(done)
	}()
	if err := s.awaitHealth(ctx, done); err != nil {
		s.Kill()
		return fmt.Errorf("%w; its log ends with:\n%s", err, s.LogTail(4<<10))
	}
	key, err := os.ReadFile(filepath.Join(s.DataDir, "api-key"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	s.Key = strings.TrimSpace(string(key))
	if configured := s.o.Settings["server.api_key"]; configured != "" {
		s.Key = configured
	}
	if s.Client == nil || s.Client.Server() != s.URL {
		o := client.Options{Server: s.URL, APIKey: s.Key}
		if s.http != nil {
			o.HTTPClient = &http.Client{Transport: s.http}
		}
		s.Client, err = client.New(o)
	}
	return err
}

// locate says how the server is to be reached: by TLS where the settings have a
// certificate, which is trusted as it is.
func (s *Server) locate() error {
	s.URL, s.http = "http://"+s.addr, nil
	path := s.o.Settings["server.tls_cert"]
	if path == "" {
		return nil
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s holds no certificate", path)
	}
	// Upgrades, of the client's terminals and tunnels, are HTTP/1.1's.
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	s.URL, s.http = "https://"+s.addr, &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, Protocols: &protocols}
	return nil
}

// awaitHealth asks until the server answers, or has ended, or time is up.
func (s *Server) awaitHealth(ctx context.Context, done <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if s.http != nil {
		hc.Transport = s.http
	}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/health", nil)
		if err != nil {
			return err
		}
		if resp, err := hc.Do(req); err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-done:
			return errors.New("the server ended at once")
		case <-ctx.Done():
			return errors.New("the server did not answer in time")
		case <-tick.C:
		}
	}
}

// Environ is the environment of the server, in which the command line finds it
// too.
func (s *Server) Environ() []string {
	env := CleanEnviron()
	env = append(env,
		"PADDOCK_CONFIG="+os.DevNull,
		"PADDOCK_DATA_DIR="+s.DataDir,
		"PADDOCK_STORAGE_RUN_DIR="+s.RunDir,
		"PADDOCK_STORAGE_MIN_FREE=64Mi",
		"PADDOCK_LOG_LEVEL=debug",
	)
	if s.addr != "" {
		// One that only sweeps never listened.
		env = append(env, "PADDOCK_SERVER_LISTEN="+s.addr)
	}
	keys := make([]string, 0, len(s.o.Settings))
	for k := range s.o.Settings {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		env = append(env, "PADDOCK_"+strings.ToUpper(strings.ReplaceAll(k, ".", "_"))+"="+s.o.Settings[k])
	}
	return env
}

// CleanEnviron is this process's environment without paddock's variables.
func CleanEnviron() []string {
	var env []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PADDOCK_") {
			env = append(env, kv)
		}
	}
	return env
}

// Set changes a configuration key for the next start.
func (s *Server) Set(key, value string) {
	if s.o.Settings == nil {
		s.o.Settings = map[string]string{}
	}
	s.o.Settings[key] = value
}

// PID is the process id of the server, 0 when it does not run.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil || s.ended() {
		return 0
	}
	return s.cmd.Process.Pid
}

func (s *Server) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// Done is closed when the present process has ended.
func (s *Server) Done() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.done
}

// Kill ends the server with SIGKILL and waits until it is gone.
func (s *Server) Kill() {
	s.mu.Lock()
	cmd, done := s.cmd, s.done
	s.mu.Unlock()
	if cmd == nil {
		return
	}
	cmd.Process.Kill()
	<-done
	if s.Client != nil {
		s.Client.Close()
	}
}

// Stop ends the server with SIGTERM. An exit code other than 0, or no end in
// time, is an error.
func (s *Server) Stop() error {
	s.mu.Lock()
	cmd, done := s.cmd, s.done
	s.mu.Unlock()
	if cmd == nil {
		return nil
	}
	if s.Client != nil {
		s.Client.Close()
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-done:
	case <-time.After(stopTimeout):
		s.Kill()
		return fmt.Errorf("the server did not end within %s of SIGTERM", stopTimeout)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return fmt.Errorf("the server ended with %w", s.err)
	}
	return nil
}

// LogTail returns the end of the server's log.
func (s *Server) LogTail(max int64) string {
	f, err := os.Open(s.log)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > max {
		f.Seek(-max, io.SeekEnd)
	}
	b, _ := io.ReadAll(io.LimitReader(f, max))
	return string(b)
}

// LogPath is where the server's log is written.
func (s *Server) LogPath() string { return s.log }

// Instance is the name under which everything of this server can be found on
// the host.
func (s *Server) Instance() string {
	sum := sha256.Sum256([]byte(s.DataDir))
	return hex.EncodeToString(sum[:4])
}
