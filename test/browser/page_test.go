package browser

import (
	"fmt"
	"html"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// look is what of a page its own scripts see.
type look struct {
	URL, Title, Color, Indent, Cookie, Referrer, Protocol string
	Image                                                 int
	Classic                                               bool
	Module                                                int
	Parts                                                 map[string]string // protocols
}

const lookScript = `
const style = getComputedStyle(document.querySelector('#title'));
return {url: location.href, title: document.title, color: style.color, indent: style.textIndent, cookie: document.cookie, referrer: document.referrer,
  protocol: performance.getEntriesByType('navigation')[0].nextHopProtocol, image: document.querySelector('#image').naturalWidth,
  classic: !!window.classic, module: window.module || 0,
  parts: Object.fromEntries(performance.getEntriesByType('resource').map(e => [new URL(e.name).pathname, e.nextHopProtocol]))}`

// Both ways to serve: as a server on the internet should, and as one on a
// developer's machine does.
func TestSecure(t *testing.T) { checkSites(t, true) }
func TestPlain(t *testing.T)  { checkSites(t, false) }

func checkSites(t *testing.T, secure bool) {
	serve(t, secure)
	t.Run("page", checkPage)
	t.Run("form", checkForm)
	t.Run("expired", checkExpired)
	t.Run("streams", checkStreams)
	if secure { // and the same without
		t.Run("strict", checkStrict)
		t.Run("download", checkDownloads)
	}
	t.Run("frame", checkFrame)
	t.Run("siblings", checkSiblings)
	t.Run("path", checkPathForm)
	t.Run("command line", checkCommands)
}

// A signed address opens the page, and all that the page loads; the signature is
// neither in the address that is left nor in what the application sees.
func checkPage(t *testing.T) {
	one, _ := sites(t)
	p := profile(t)
	pages, _, protocol := scheme()
	r := p.open(one.signed + "/?q=1#part")
	if r.Status != 200 || r.Protocol != protocol {
		t.Fatalf("%d by %s: %s", r.Status, r.Protocol, p.text())
	}
	got := js[look](p, lookScript)
	if got.URL != one.origin+"/?q=1#part" || got.Title != "one" || got.Color != "rgb(1, 2, 3)" || got.Indent != "7px" || got.Image != 11 || !got.Classic || got.Module != 42 {
		t.Errorf("the page is %+v", got)
	}
	if got.Cookie != "" || got.Referrer != "" {
		t.Errorf("the page sees the cookie %q and the referrer %q", got.Cookie, got.Referrer)
	}
	for part, by := range got.Parts {
		if by != protocol {
			t.Errorf("%s came by %q", part, by)
		}
	}
	_, signature, _ := strings.Cut(one.signed, one.origin)
	for _, a := range seen(t, one.id, "") {
		for k, v := range a.Headers {
			if strings.Contains(v, signature) || strings.Contains(v, "paddock-access") {
				t.Errorf("%s has the header %s: %s", a.Path, k, v)
			}
		}
	}
	a := p.echo("/api/echo", map[string]any{"method": "PUT", "headers": map[string]string{"Authorization": "Bearer of-the-app", "X-Mine": "1"}, "body": "text"})
	if a.Method != "PUT" || a.Headers["authorization"] != "Bearer of-the-app" || a.Headers["x-mine"] != "1" || a.Body != "text" ||
		a.Headers["x-forwarded-proto"] != pages || pages+"://"+a.Headers["host"] != one.origin || a.Headers["origin"] != one.origin {
		t.Errorf("the application saw %+v", a)
	}
	// The address without the signature is enough from now on, in this profile.
	if r := p.beside().open(one.origin + "/again"); r.Status != 200 {
		t.Errorf("another tab: %d", r.Status)
	}
	stranger := profile(t)
	if r := stranger.open(one.origin + "/"); r.Status != 401 || !strings.Contains(stranger.text(), "open the signed address") {
		t.Errorf("another profile: %d %s", r.Status, stranger.text())
	}
}

// A form logs in: the answer leads on, and its cookies come back with everything
// that follows.
func checkForm(t *testing.T) {
	one, _ := sites(t)
	p := profile(t)
	p.open(one.signed + "/")
	if r := p.follow(chromedp.Click(chromedp.CSS("#go"))); r.Status != 200 || r.URL != one.origin+"/welcome" {
		t.Fatalf("the form leads to %d %s", r.Status, r.URL)
	}
	if logins := seen(t, one.id, "/login"); len(logins) == 0 || logins[len(logins)-1].Method != "POST" || logins[len(logins)-1].Headers["origin"] != one.origin {
		t.Errorf("the application saw %+v", logins)
	}
	const want = "session=of-one; wide=1"
	for _, open := range []func(*tab){
		func(p *tab) {}, func(p *tab) { p.follow(chromedp.Reload()) }, func(p *tab) { p.open(one.signed + "/") },
	} {
		open(p)
		if got := p.echo("/api/echo", nil).Headers["cookie"]; got != want {
			t.Errorf("the application got the cookies %q", got)
		}
	}
	if got := js[string](p, "return document.cookie"); got != "wide=1" {
		t.Errorf("scripts see %q", got)
	}
	// The application knows nothing of TLS.
	if got := js[string](p, `return (await fetch('/login?absolute=http&next=/welcome', {method: 'POST', body: ''})).url`); got != one.origin+"/welcome" {
		t.Errorf("an absolute redirect leads to %s", got)
	}
	a := js[asked](p, `
const form = new FormData(); form.append('file', new File([new Uint8Array(100000).fill(65)], 'a.txt', {type: 'text/plain'}));
return await (await fetch('/api/echo', {method: 'POST', body: form})).json()`)
	if !strings.HasPrefix(a.Headers["content-type"], "multipart/form-data; boundary=") || strings.Count(a.Body, "A") < 100000 {
		t.Errorf("an upload arrived with %d bytes as %q", len(a.Body), a.Headers["content-type"])
	}
}

// A page of another site shows a signed address in a frame, where browsers keep
// cookies apart from those of everywhere else. What the framed page loads from
// its root comes there as well.
func checkFrame(t *testing.T) {
	one, two := sites(t)
	outer := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `<!doctype html><script>window.told = new Promise(resolve => addEventListener('message', e => resolve(e.data)))</script>
<iframe src="%s"></iframe>`, html.EscapeString(r.URL.Query().Get("frame")))
	}))
	defer outer.Close()
	type framed struct {
		Color, Indent  string
		Classic        bool
		Module, Status int
	}
	p := profile(t)
	p.open(outer.URL + "/?frame=" + url.QueryEscape(one.signed))
	if got := js[framed](p, "return await window.told"); got != (framed{"rgb(1, 2, 3)", "7px", true, 42, 200}) {
		t.Errorf("the framed page is %+v", got)
	}
	// Nobody else can frame what this page may: not another site, nor without
	// the signature another sandbox on this page.
	before := len(seen(t, one.id, "/in-frame"))
	p.open(two.signed + "/")
	js[string](p, `return await new Promise(resolve => {
const f = document.createElement('iframe'); f.onload = () => resolve('loaded'); f.src = ARG0; document.body.append(f) })`, one.origin+"/in-frame")
	if after := seen(t, one.id, "/in-frame"); len(after) != before {
		t.Errorf("the application got %+v", after[before:])
	}
}

// Browsers hide the origin of what a page with a strict policy sends, even to
// itself.
func checkStrict(t *testing.T) {
	one, _ := sites(t)
	p := profile(t)
	p.open(one.signed + "/strict")
	r := p.follow(chromedp.Evaluate[chromedp.Void]("document.querySelector('#form').submit()"))
	if r.Status != 200 || r.URL != one.origin+"/welcome" {
		t.Errorf("the form leads to %d %s: %s", r.Status, r.URL, p.text())
	}
	if logins := seen(t, one.id, "/login"); len(logins) == 0 || logins[len(logins)-1].Headers["origin"] != "null" {
		t.Errorf("the application saw %+v", logins)
	}
}

// An address that has expired says so, and neither it nor a cookie that was made
// by it opens anything.
func checkExpired(t *testing.T) {
	one, _ := sites(t)
	at := uint64(time.Now().Add(-time.Minute).Unix())
	p := profile(t)
	r := p.open(one.origin + "/" + signature(one.id, at) + "/page")
	if text := p.text(); r.Status != 401 || !strings.Contains(text, "expired") {
		t.Errorf("%d %s", r.Status, text)
	}
}
