package browser

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"github.com/paddock-sandbox/paddock/internal/gateway/address"
)

// patience bounds each step of a page.
const patience = 20 * time.Second

func keysOf(secret string) (*address.Keys, error) {
	key, err := hex.DecodeString(strings.TrimSpace(secret))
	if err != nil {
		return nil, err
	}
	return address.New(key, nil, "")
}

// site is the application of one sandbox under a host name of its own.
type site struct {
	id     string
	name   string // what the application is called
	origin string
	signed string // without a slash at the end
}

// scheme is that of the server, with another name for its sockets.
func scheme() (pages, sockets, protocol string) {
	if shared.secure {
		return "https", "wss", "h2"
	}
	return "http", "ws", "http/1.1"
}

// sites are both applications, at signed addresses that the API gave out.
func sites(t *testing.T) (one, two *site) {
	t.Helper()
	out := make([]*site, 2)
	for i, id := range shared.ids {
		awaitApp(t, id)
		endpoint := endpointOf(t, id, fmt.Sprintf("?expires=%d", time.Now().Add(time.Hour).Unix()))
		scheme, _, _ := scheme()
		host, _, _ := strings.Cut(endpoint, "/")
		out[i] = &site{id: id, name: []string{"one", "two"}[i], origin: scheme + "://" + host, signed: scheme + "://" + endpoint}
	}
	return out[0], out[1]
}

func endpointOf(t *testing.T, id, query string) string {
	t.Helper()
	r := shared.server.Do(t, http.MethodGet, fmt.Sprintf("/v1/sandboxes/%s/endpoints/%d%s", id, appPort, query), nil)
	if r.Status != http.StatusOK {
		t.Fatalf("the endpoint: %d %s", r.Status, r.Body)
	}
	var e struct{ Endpoint string }
	r.JSON(t, &e)
	return e.Endpoint
}

// awaitApp waits until an application listens.
func awaitApp(t *testing.T, id string) {
	t.Helper()
	for until := time.Now().Add(patience); ; {
		r := shared.server.Do(t, http.MethodGet, fmt.Sprintf("/v1/sandboxes/%s/proxy/%d/seen", id, appPort), nil)
		if r.Status == http.StatusOK {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("the application does not answer: %d %s", r.Status, r.Body)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// asked is a request as an application saw it.
type asked struct {
	Method, Path string
	Headers      map[string]string
	Body         string
}

// seen is what an application was asked for paths that contain some text.
func seen(t *testing.T, id, path string) (found []asked) {
	t.Helper()
	var all []asked
	shared.server.Do(t, http.MethodGet, fmt.Sprintf("/v1/sandboxes/%s/proxy/%d/seen", id, appPort), nil).JSON(t, &all)
	for _, a := range all {
		if strings.Contains(a.Path, path) {
			found = append(found, a)
		}
	}
	return found
}

// tab is a page of the browser.
type tab struct {
	t   *testing.T
	ctx context.Context
}

// profile opens a tab in a new profile: no cookies, no storage.
func profile(t *testing.T) *tab {
	t.Helper()
	return newTab(t, shared.browser, chromedp.WithNewBrowserContext())
}

// beside opens another tab in the same profile.
func (p *tab) beside() *tab {
	p.t.Helper()
	return newTab(p.t, p.ctx)
}

func newTab(t *testing.T, parent context.Context, opts ...chromedp.ContextOption) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(parent, opts...)
	t.Cleanup(cancel)
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("opening a tab: %v", err)
	}
	return &tab{t, ctx}
}

// limited is the tab's context for one step.
func (p *tab) limited() (context.Context, context.CancelFunc) {
	return context.WithTimeout(p.ctx, patience)
}

// do runs steps.
func (p *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := p.limited()
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		p.t.Fatal(err)
	}
}

// open opens an address, and returns when the page is loaded.
func (p *tab) open(address string) *network.Response {
	p.t.Helper()
	reach(p.t, address)
	return p.follow(chromedp.Navigate(address))
}

// reach lets the browser reach what an address leads to, which is on this machine.
func reach(t *testing.T, address string) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatalf("%s: %v", address, err)
	}
	shared.island.reach(t, port)
}

// follow does something that leads to another page, and returns when that is
// loaded.
func (p *tab) follow(steps ...chromedp.Action[chromedp.Void]) *network.Response {
	p.t.Helper()
	ctx, cancel := p.limited()
	defer cancel()
	r, err := chromedp.RunResponse(ctx, steps...)
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

// js runs the body of an asynchronous function in the page. Arguments stand in
// it as ARG0, ARG1 and so on.
func js[T any](p *tab, body string, args ...any) T {
	p.t.Helper()
	for i, a := range args {
		text, err := json.Marshal(a)
		if err != nil {
			p.t.Fatal(err)
		}
		body = strings.ReplaceAll(body, fmt.Sprintf("ARG%d", i), string(text))
	}
	ctx, cancel := p.limited()
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T]("(async () => {"+body+"})()", chromedp.EvalAwaitPromise))
	if err != nil {
		p.t.Fatalf("%s: %v", body, err)
	}
	return v
}

// echo fetches a path that answers with what the application was asked.
func (p *tab) echo(path string, init map[string]any) asked {
	p.t.Helper()
	if init == nil {
		init = map[string]any{}
	}
	return js[asked](p, `const r = await fetch(ARG0, ARG1); return r.ok ? await r.json() : {path: "status " + r.status + " " + await r.text()}`, path, init)
}

func (p *tab) text() string { p.t.Helper(); return js[string](p, "return document.body.innerText") }

// signature is what follows the host name in a signed address.
func signature(id string, expires uint64) string {
	return address.FormatExpires(expires) + "/" + shared.keys.Sign(id, appPort, expires)
}
