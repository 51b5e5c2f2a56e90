package test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/test/harness"
)

// gone is a client that leaves in the middle of a stream.
type gone struct {
	s  *harness.Server
	id string
	// api has connections of its own, which a leaving client takes with it.
	api *client.Client
	// flowing is closed when the first piece of the stream has come.
	flowing chan struct{}
	once    sync.Once
}

func (g *gone) flows() { g.once.Do(func() { close(g.flowing) }) }

// Write is for streams that are written to somewhere.
func (g *gone) Write(p []byte) (int, error) {
	g.flows()
	return len(p), nil
}

// read reads a stream until it breaks.
func (g *gone) read(r io.ReadCloser, err error) error {
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(g, r)
	return err
}

// get reads the answer of a route until it breaks.
func (g *gone) get(ctx context.Context, method, route, body string) error {
	req, err := http.NewRequestWithContext(ctx, method, g.s.URL+"/v1/sandboxes/"+g.id+route, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("OPEN-SANDBOX-API-KEY", g.s.Key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		return fmt.Errorf("status %d: %s", resp.StatusCode, b)
	}
	return g.read(resp.Body, nil)
}

// stuck is content of which a part comes and the rest never.
type stuck struct {
	g   *gone
	ctx context.Context
	b   io.Reader
}

func (s *stuck) Read(p []byte) (int, error) {
	if n, err := s.b.Read(p); err == nil {
		return n, nil
	}
	s.g.flows()
	<-s.ctx.Done()
	return 0, context.Cause(s.ctx)
}

const (
	ticking = "while :; do echo tick; sleep 0.05; done"
	// talker serves a port that never stops to talk.
	talker = `import socketserver, time
class H(socketserver.BaseRequestHandler):
    def handle(self):
        while True:
            self.request.sendall(b"tick\n")
            time.sleep(0.05)
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(("127.0.0.1", 7777), H).serve_forever()`
)

// streams are all the kinds of streams that a client may leave in the middle.
// Each returns when its context ends.
var streams = map[string]func(ctx context.Context, g *gone) error{
	"command": func(ctx context.Context, g *gone) error {
		_, err := g.api.Run(ctx, g.id, client.Command{Shell: ticking}, client.Output{Stdout: g})
		return err
	},
	"command that floods": func(ctx context.Context, g *gone) error {
		_, err := g.api.Run(ctx, g.id, client.Command{Shell: "while :; do cat /dev/zero; done"}, client.Output{Stdout: g})
		return err
	},
	"silent command": func(ctx context.Context, g *gone) error {
		_, err := g.api.Run(ctx, g.id, client.Command{Shell: "sleep 98765 | cat"}, client.Output{OnStart: func(string) { g.flows() }})
		return err
	},
	"command that closed its pipes": func(ctx context.Context, g *gone) error {
		_, err := g.api.Run(ctx, g.id, client.Command{Shell: "echo x; exec <&- >&- 2>&-; sleep 98765"}, client.Output{Stdout: g})
		return err
	},
	"session run": func(ctx context.Context, g *gone) error {
		session, err := g.api.CreateSession(ctx, g.id, "")
		if err != nil {
			return err
		}
		defer g.api.DeleteSession(context.WithoutCancel(ctx), g.id, session)
		_, err = g.api.RunInSession(ctx, g.id, session, client.SessionCommand{Shell: ticking}, client.Output{Stdout: g})
		return err
	},
	"code": func(ctx context.Context, g *gone) error {
		c, err := g.api.CreateCodeContext(ctx, g.id, "python", "")
		if err != nil {
			return err
		}
		defer g.api.DeleteCodeContext(context.WithoutCancel(ctx), g.id, c.ID)
		_, err = g.api.RunCode(ctx, g.id, client.Code{Context: c.ID, Source: "while True: print('tick')"}, client.CodeOutput{Stdout: g})
		return err
	},
	"terminal": func(ctx context.Context, g *gone) error {
		session, err := g.api.CreatePTY(ctx, g.id, client.PTYRequest{Shell: ticking})
		if err != nil {
			return err
		}
		defer g.api.DeletePTY(context.WithoutCancel(ctx), g.id, session)
		term, err := g.api.AttachPTY(ctx, g.id, session, client.TerminalOptions{Reattach: -1})
		if err != nil {
			return err
		}
		_, err = term.Run(ctx, g)
		return err
	},
	"log": func(ctx context.Context, g *gone) error {
		return g.read(g.api.Logs(ctx, g.id, client.LogOptions{Follow: true}))
	},
	"events of the sandbox": func(ctx context.Context, g *gone) error {
		return g.api.FollowEvents(ctx, g.id, 0, func(client.Event) error { g.flows(); return nil })
	},
	"metrics": func(ctx context.Context, g *gone) error {
		return g.get(ctx, http.MethodGet, "/proxy/44772/metrics/watch", "")
	},
	"watched directory": func(ctx context.Context, g *gone) error {
		return g.get(ctx, http.MethodGet, "/proxy/44772/directories/watch?path=/etc", "")
	},
	"tar out": func(ctx context.Context, g *gone) error { return g.read(g.api.DownloadDir(ctx, g.id, "/big")) },
	"tar in": func(ctx context.Context, g *gone) error {
		_, err := g.api.UploadDir(ctx, g.id, "/tmp/in", &stuck{g, ctx, bytes.NewReader(tarHead())})
		return err
	},
	"download": func(ctx context.Context, g *gone) error {
		d, err := g.api.DownloadFile(ctx, g.id, "/big/file", client.DownloadOptions{})
		return g.read(d, err)
	},
	"upload": func(ctx context.Context, g *gone) error {
		return g.api.UploadFiles(ctx, g.id, client.UploadFile{Path: "/tmp/up", Size: 1 << 30,
			Content: &stuck{g, ctx, bytes.NewReader(make([]byte, 1<<20))}})
	},
	"tunnel": func(ctx context.Context, g *gone) error {
		tunnel, err := g.api.DialPort(ctx, g.id, 7777)
		if err != nil {
			return err
		}
		defer context.AfterFunc(ctx, func() { tunnel.Close() })()
		return g.read(tunnel, nil)
	},
}

// tarHead is the header of a file whose content is missing.
func tarHead() []byte {
	b := make([]byte, 512)
	copy(b, "file")
	copy(b[100:], "0000644\x000000000\x000000000\x0000010000000\x0000000000000\x00        0")
	copy(b[257:], "ustar\x0000")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return append(b, make([]byte, 4096)...)
}

// Clients that leave in the middle of any stream, several at once: what they had
// started ends, and neither the sandbox, execd nor the server keeps anything.
func TestClientGoneInEveryStream(t *testing.T) {
	s := harness.New(t, map[string]string{"pool.size": "0"})
	if err := s.ImportFile(t.Context(), harness.StarterImage(t), starterImage); err != nil {
		t.Fatal(err)
	}
	sb := s.Create(t, client.CreateRequest{Image: starterImage, Entrypoint: []string{"sh", "-c", "echo ready; exec sleep 7654321"}})
	s.Must(t, sb.ID, "mkdir /big; truncate -s 8G /big/file")
	if _, err := s.Client.Start(t.Context(), sb.ID, client.Command{Argv: []string{"python3", "-c", talker}}); err != nil {
		t.Fatal(err)
	}
	await(t, "the talker to talk", func() bool {
		tunnel, err := s.Client.DialPort(t.Context(), sb.ID, 7777)
		if err == nil {
			tunnel.Close()
		}
		return err == nil
	})
	names := make([]string, 0, len(streams))
	for name := range streams {
		names = append(names, name)
	}
	slices.Sort(names)
	// Once before the count, for what is made at the first use and stays.
	for _, name := range names {
		leave(t, s, sb.ID, name, 1)
	}
	before := settled(t, s, sb.ID)
	t.Logf("before: %v", before)
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			for range rounds {
				leave(t, s, sb.ID, name, leaving)
			}
			var now held
			deadline := time.Now().Add(30 * time.Second)
			for now = holds(t, s, sb.ID); !now.within(before) && time.Now().Before(deadline); now = holds(t, s, sb.ID) {
				time.Sleep(20 * time.Millisecond)
			}
			if !now.within(before) {
				t.Errorf("before %v, after %v", before, now)
			}
		})
	}
	if got := s.Must(t, sb.ID, "echo alive"); got != "alive" {
		t.Errorf("the sandbox says %q", got)
	}
	if err := s.Client.Delete(t.Context(), sb.ID); err != nil {
		t.Error(err)
	}
	for _, trace := range s.AwaitNoTraces(sb.ID) {
		t.Errorf("left: %s", trace)
	}
}

// leaving clients leave at once, round after round. Connections to execd that had
// no part in a broken stream are kept for later requests, two at most for each
// client that was there at once; what is kept of every stream is more than that.
const (
	leaving = 6
	rounds  = 3
	spare   = 2 * leaving
)

// leave has n clients leave in the middle of a stream.
func leave(t *testing.T, s *harness.Server, id, name string, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			api, err := client.New(client.Options{Server: s.URL, APIKey: s.Key, MaxRetries: -1})
			if err != nil {
				t.Error(err)
				return
			}
			defer api.Close()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			g := &gone{s: s, id: id, api: api, flowing: make(chan struct{})}
			ended := make(chan error, 1)
			go func() { ended <- streams[name](ctx, g) }()
			select {
			case <-g.flowing:
			case err := <-ended:
				t.Errorf("%s ended by itself: %v", name, err)
				return
			case <-time.After(time.Minute):
				t.Errorf("%s did not begin", name)
			}
			cancel()
			<-ended
		})
	}
	wg.Wait()
}

// held is what a sandbox, its execd and the server hold.
type held struct {
	processes, execd, server int
}

func (h held) within(limit held) bool {
	// An interpreter may be kept ready for the next code.
	return h.processes <= limit.processes+leaving && h.execd <= limit.execd+spare && h.server <= limit.server+spare
}

func holds(t *testing.T, s *harness.Server, id string) held {
	t.Helper()
	var h held
	for _, pid := range hostPIDs(t, id) {
		b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
		fields := statusFields(string(b))
		if err != nil || strings.HasPrefix(fields["State"], "Z") {
			continue
		}
		h.processes++
		if f := strings.Fields(fields["NSpid"]); len(f) > 1 && f[len(f)-1] == "1" {
			h.execd = descriptors(pid)
		}
	}
	h.server = descriptors(s.PID())
	return h
}

// descriptors counts open files but those without a name, in which execd keeps
// what ended commands have printed.
func descriptors(pid int) int {
	links, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "fd", "*"))
	n := 0
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && !strings.HasSuffix(target, "(deleted)") {
			n++
		}
	}
	return n
}

// settled is what is held once the number of processes does not change any more.
func settled(t *testing.T, s *harness.Server, id string) held {
	t.Helper()
	last, same := holds(t, s, id), 0
	await(t, "the sandbox to settle", func() bool {
		now := holds(t, s, id)
		if same++; now != last {
			last, same = now, 0
		}
		return same >= 30
	})
	return last
}
