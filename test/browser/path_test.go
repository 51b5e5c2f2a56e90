package browser

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// Beneath a path, pages work as long as they name what they load relatively, but
// keep nothing: all sandboxes share the host name, and the API's.
func checkPathForm(t *testing.T) {
	one, _ := sites(t)
	base := fmt.Sprintf("%s/ingress/%s/%d/%s", shared.server.URL, one.id, appPort, signature(one.id, uint64(time.Now().Add(time.Hour).Unix())))
	p := profile(t)
	if r := p.open(base + "?q=1"); r.Status != 200 {
		t.Fatalf("%d %s", r.Status, p.text())
	}
	type page struct {
		URL, Indent, Cookie, Storage, Origin, Referrer string
		Module                                         int
	}
	got := js[page](p, `
const attempt = f => { try { return String(f()) } catch (e) { return e.name } };
return {url: location.href, indent: getComputedStyle(document.querySelector('#title')).textIndent, module: window.module || 0, origin: self.origin,
  cookie: attempt(() => { document.cookie = 'a=1'; return document.cookie }), storage: attempt(() => localStorage.length), referrer: document.referrer}`)
	if got != (page{base + "/?q=1", "7px", "SecurityError", "SecurityError", "null", "", 42}) {
		t.Errorf("the page is %+v", got)
	}
	a := p.echo(base+"/api/echo", map[string]any{"method": "PUT", "headers": map[string]string{"Authorization": "Bearer of-the-app", "X-Mine": "1"}, "body": "text"})
	if a.Method != "PUT" || a.Path != "/api/echo" || a.Headers["authorization"] != "Bearer of-the-app" || a.Headers["x-mine"] != "1" || a.Headers["cookie"] != "" || a.Headers["referer"] != "" {
		t.Errorf("the application saw %+v", a)
	}
	pages, sockets, _ := scheme()
	checkSocket(p, sockets+strings.TrimPrefix(base, pages)+"/ws")
	checkEvents(p, base+"/events", base+"/acknowledge")
	checkDownload(p, chromedp.Evaluate[chromedp.Void]("void(location.href = '"+base+"/big')"))
	// A form's answer leads to the application's own paths, and sets no cookie.
	r := p.follow(chromedp.Evaluate[chromedp.Void](`(() => { const f = document.querySelector('#login'); f.action = '` + base + `/login?next=/welcome'; f.submit() })()`))
	if r.Status != 200 || r.URL != base+"/welcome" {
		t.Errorf("the form leads to %d %s", r.Status, r.URL)
	}
	if c := p.echo(base+"/api/echo", nil).Headers["cookie"]; c != "" {
		t.Errorf("the application got the cookies %q", c)
	}
	// The page is a stranger to the API on the same host name.
	if got := js[string](p, `try { return 'status ' + (await fetch(ARG0 + '/v1/sandboxes', {credentials: 'include'})).status } catch (e) { return 'refused' }`, shared.server.URL); got != "refused" {
		t.Errorf("the API answered the page with %s", got)
	}
}
