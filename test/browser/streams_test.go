package browser

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/chromedp"
)

const socketScript = `
const socket = new WebSocket(ARG0, ['first', 'second']), got = [];
socket.binaryType = 'arraybuffer';
const message = () => new Promise((resolve, reject) => {
  socket.onmessage = e => resolve(e.data);
  socket.onclose = e => reject(new Error('closed with ' + e.code));
});
await new Promise((resolve, reject) => { socket.onopen = resolve; socket.onerror = () => reject(new Error('no connection')) });
socket.send('grüß');
const text = await message();
socket.send(new Uint8Array(100000).fill(7));
const bytes = new Uint8Array(await message());
const closed = new Promise(resolve => { socket.onclose = e => resolve(e.code) });
socket.close(3001, 'enough');
return {protocol: socket.protocol, text, length: bytes.length, sum: bytes.reduce((a, b) => a + b, 0), code: await closed}`

type socket struct {
	Protocol, Text    string
	Length, Sum, Code int
}

func checkSocket(p *tab, url string) {
	p.t.Helper()
	if got := js[socket](p, socketScript, url); got != (socket{"first", "grüß", 100000, 700000, 3001}) {
		p.t.Errorf("the socket gave %+v", got)
	}
}

// The application sends an event only when the one before has arrived, and ends
// the answer after three, whereupon the browser asks again from there.
const eventsScript = `
const key = crypto.getRandomValues(new Uint32Array(2)).join('-');
const source = new EventSource(ARG0 + '?key=' + key), got = [];
await new Promise((resolve, reject) => {
  source.onmessage = async e => {
    got.push(e.lastEventId + ' ' + e.data);
    if (got.length == 4) return resolve();
    await fetch(ARG1 + '?key=' + key + '&n=' + e.lastEventId);
  };
  source.onerror = e => { if (source.readyState == EventSource.CLOSED) reject(new Error('no events')) };
});
source.close();
await fetch(ARG1 + '?key=' + key + '&n=1000');
return got`

func checkEvents(p *tab, url, acknowledge string) {
	p.t.Helper()
	got := js[[]string](p, eventsScript, url, acknowledge)
	if len(got) != 4 || got[0] != "1 event 1" || got[3] != "4 event 4" {
		p.t.Errorf("the events were %q", got)
	}
}

func checkStreams(t *testing.T) {
	one, _ := sites(t)
	p := profile(t)
	p.open(one.signed + "/")
	pages, sockets, _ := scheme()
	checkSocket(p, sockets+strings.TrimPrefix(one.origin, pages)+"/ws")
	checkEvents(p, "/events", "/acknowledge")
}

// bigSum is the SHA-256 of what the application gives to be saved: 50 MiB.
func bigSum() string {
	block, h := sha256.Sum256([]byte("paddock")), sha256.New()
	for range 50 << 20 / len(block) {
		h.Write(block[:])
	}
	return hex.EncodeToString(h.Sum(nil))
}

func checkDownloads(t *testing.T) {
	one, _ := sites(t)
	p := profile(t)
	p.open(one.signed + "/")
	checkDownload(p, chromedp.Click(chromedp.CSS("#save")))
}

// checkDownload does something that makes the browser save the application's
// big file, and looks at what it has saved.
func checkDownload(p *tab, begin chromedp.Action[chromedp.Void]) {
	t := p.t
	t.Helper()
	dir, events := t.TempDir(), true
	c := chromedp.FromContext(p.ctx)
	if _, err := chromedp.CallBrowser(p.ctx, browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{
		Behavior: browser.SetDownloadBehaviorBehaviorAllow, BrowserContextID: c.BrowserContextID, DownloadPath: dir, EventsEnabled: &events,
	}); err != nil {
		t.Fatal(err)
	}
	name, ended := make(chan string, 1), make(chan browser.DownloadProgressState, 1)
	ctx, cancel := p.limited()
	defer cancel()
	if err := chromedp.ListenBrowser(ctx, func(ev any) {
		switch ev := ev.(type) {
		case *browser.EventDownloadWillBegin:
			select {
			case name <- ev.SuggestedFilename:
			default:
			}
		case *browser.EventDownloadProgress:
			if ev.State == browser.DownloadProgressStateInProgress {
				return
			}
			select {
			case ended <- ev.State:
			default:
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	p.do(begin)
	select {
	case state := <-ended:
		if state != browser.DownloadProgressStateCompleted {
			t.Fatalf("the download was %s", state)
		}
	case <-ctx.Done():
		t.Fatal("the download does not end")
	}
	saved := <-name
	f, err := os.Open(filepath.Join(dir, saved))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if got := hex.EncodeToString(h.Sum(nil)); err != nil || saved != "big.bin" || n != 50<<20 || got != bigSum() {
		t.Errorf("%s with %d bytes, %s, was saved: %v", saved, n, got, err)
	}
}
