package browser

import (
	"net/url"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// Two sandboxes are open in one browser, with everything that one may keep there.
// Nothing of it reaches the other, and neither can use what the browser may open
// at the other.
func checkSiblings(t *testing.T) {
	one, two := sites(t)
	a := profile(t)
	a.open(one.signed + "/login?next=/")
	b := a.beside()
	b.open(two.signed + "/")
	host, err := url.Parse(one.origin)
	if err != nil {
		t.Fatal(err)
	}
	_, parent, _ := strings.Cut(host.Hostname(), ".")
	worker := js[string](a, `
document.cookie = 'mine=1; path=/';
document.cookie = 'wide-script=1; path=/; domain=' + ARG0;
document.cookie = 'theirs=1; path=/; domain=' + ARG1;
document.cookie = '__Host-paddock-access=forged; path=/; secure; domain=' + ARG0;
document.cookie = 'paddock-access=forged; path=/; domain=' + ARG0;
document.cookie = 'paddock-access=forged; path=/from';
localStorage.setItem('mine', '1');
const db = await new Promise((resolve, reject) => { const r = indexedDB.open('mine'); r.onsuccess = () => resolve(r.result); r.onerror = () => reject(r.error) });
db.close();
await navigator.serviceWorker.register('/sw.js');
await navigator.serviceWorker.ready;
return await (await fetch('/from-worker')).text()`, parent, host.Hostname()[1:])
	if worker != "worker" {
		// The page that registers it may be without it until the next.
		a.open(one.origin + "/")
		worker = js[string](a, "return await (await fetch('/from-worker')).text()")
	}
	if worker != "worker" {
		t.Errorf("the service worker did not answer: %s", worker)
	}
	b.open(two.origin + "/")
	type kept struct {
		Cookie, Storage, Worker string
		Databases               int
	}
	got := js[kept](b, `return {cookie: document.cookie, storage: JSON.stringify(localStorage), databases: (await indexedDB.databases()).length,
  worker: navigator.serviceWorker.controller ? 'controlled' : await (await fetch('/from-worker')).text()}`)
	if got.Storage != "{}" || got.Databases != 0 || strings.HasPrefix(got.Worker, "worker") || got.Worker == "controlled" {
		t.Errorf("the other sandbox's page found %+v", got)
	}
	want := ""
	if shared.secure {
		// Its domain is no public suffix, so scripts can set cookies for all
		// of it; answers of applications can't.
		want = "wide-script=1"
	}
	if sent := b.echo("/api/echo", nil).Headers["cookie"]; got.Cookie != want && got.Cookie != want+"; paddock-access=forged" || sent != want {
		t.Errorf("the other sandbox's page found the cookies %q, its application %q", got.Cookie, sent)
	}
	// What was forged does not lock out.
	if r := a.open(one.origin + "/from/there"); r.Status != 200 {
		t.Errorf("the page itself: %d %s", r.Status, a.text())
	}
	checkForgeries(a, two)
}

// crossScript tries what pages can have a browser do at other origins.
const crossScript = `
const at = ARG0 + '/from-one-', results = {};
const quietly = async (name, p) => { try { results[name] = await p } catch (e) { results[name] = 'refused' } };
await quietly('fetch', fetch(at + 'no-cors', {mode: 'no-cors', credentials: 'include'}).then(r => r.type));
await quietly('cors', fetch(at + 'cors', {credentials: 'include'}).then(r => r.text()));
await quietly('post', fetch(at + 'post', {method: 'POST', mode: 'no-cors', credentials: 'include', body: 'x'}).then(r => r.type));
await quietly('preflight', fetch(at + 'put', {method: 'PUT', credentials: 'include', body: 'x'}).then(r => r.text()));
const element = (name, attribute, path) => new Promise(resolve => {
  const e = document.createElement(name);
  e.onload = () => resolve('loaded'); e.onerror = () => resolve('refused');
  e[attribute] = at + path;
  document.body.append(e);
});
await quietly('image', element('img', 'src', 'image.svg'));
await quietly('script', element('script', 'src', 'script.js'));
await quietly('frame', element('iframe', 'src', 'frame'));
await quietly('socket', new Promise(resolve => {
  const s = new WebSocket((ARG0 + '/from-one-ws').replace('http', 'ws'));
  s.onopen = () => resolve('open'); s.onerror = () => resolve('refused');
}));
await quietly('events', new Promise(resolve => {
  const s = new EventSource(ARG0 + '/from-one-events', {withCredentials: true});
  s.onopen = () => resolve('open'); s.onerror = () => { s.close(); resolve('refused') };
}));
navigator.sendBeacon(at + 'beacon', 'x');
const form = document.createElement('form');
form.method = 'post'; form.action = at + 'form'; form.target = 'inner';
const inner = document.createElement('iframe'); inner.name = 'inner';
document.body.append(inner, form);
await quietly('form', new Promise(resolve => { inner.onload = () => resolve('loaded'); form.submit() }));
return results`

// checkForgeries has the page of one sandbox use another's while the browser may
// open both: none of it reaches the application, but that a link may be followed.
func checkForgeries(p *tab, other *site) {
	t := p.t
	t.Helper()
	before := len(seen(t, other.id, "/from-one-"))
	got := js[map[string]string](p, crossScript, other.origin)
	for _, name := range []string{"cors", "preflight", "image", "script", "socket", "events"} {
		if got[name] != "refused" {
			t.Errorf("%s: %q", name, got[name])
		}
	}
	// Whoever posts opens no page either, even in a window of its own.
	p.follow(chromedp.Evaluate[chromedp.Void](`(() => {
const form = document.createElement('form');
form.method = 'post'; form.action = '` + other.origin + `/from-one-posted';
document.body.append(form); form.submit() })()`))
	if text := p.text(); !strings.Contains(text, "OpenSandbox Ingress") {
		t.Errorf("a form of another sandbox leads to %s", text)
	}
	if after := seen(t, other.id, "/from-one-"); len(after) != before {
		t.Errorf("the other application got %+v", after[before:])
	}
	r := p.follow(chromedp.Evaluate[chromedp.Void]("location.href = '" + other.origin + "/from-one-linked'"))
	if after := seen(t, other.id, "/from-one-"); r.Status != 200 || len(after) != before+1 {
		t.Errorf("a link: %d, and the other application got %+v", r.Status, after[before:])
	}
}
