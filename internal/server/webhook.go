package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Bounds of the webhook for denials (OpenSandbox egress API, and ours on how many
// wait).
const (
	webhookTimeout = 5 * time.Second
	webhookRetries = 3
	webhookBackoff = time.Second // doubles
	webhookQueue   = 1024
	webhookWorkers = 4
	// webhookDrain is how much of an answer is read, so that its connection can
	// serve the next call.
	webhookDrain = 64 << 10
)

// DenialWebhook posts what network policies refused to a URL, one call for each
// destination of a sandbox and second at most. Calls that fail are repeated a
// few times; when too many wait, new ones are dropped.
type DenialWebhook struct {
	url     string
	log     *slog.Logger
	client  *http.Client
	backoff time.Duration

	queue   chan denialEvent
	dropped atomic.Int64
	ctx     context.Context
	cancel  context.CancelFunc
	wg      sync.WaitGroup
}

// denialEvent is the body of a call. The first four members are those of the
// protocol, where a hostname is always a name.
type denialEvent struct {
	// Hostname is the name that was asked for, or the address.
	Hostname  string `json:"hostname"`
	Timestamp string `json:"timestamp"`
	Source    string `json:"source"`
	SandboxID string `json:"sandboxId"`

	Protocol string `json:"protocol"`
	// Address is where it was to go, as "address:port"; left out for a name
	// that was not looked up.
	Address string `json:"address,omitempty"`
	// Rule is the index of the rule that decided, -1 for the default action.
	Rule   int    `json:"rule"`
	Target string `json:"target,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Audit is set when it was let through all the same.
	Audit bool `json:"audit,omitempty"`
	// Count is how often within the last second.
	Count int `json:"count"`
}

// NewDenialWebhook starts what posts to a URL. Close it when done.
func NewDenialWebhook(to string, log *slog.Logger) (*DenialWebhook, error) {
	u, err := url.Parse(to)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, errors.New("the webhook for denials must be an http or https URL")
	}
	h := &DenialWebhook{url: to, log: log, backoff: webhookBackoff, queue: make(chan denialEvent, webhookQueue),
		client: &http.Client{
			Timeout: webhookTimeout,
			// An answer that leads elsewhere is no success, and the body is
			// for nobody else.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	for range webhookWorkers {
		h.wg.Go(h.work)
	}
	return h, nil
}

// Send queues a denial. It never blocks.
func (h *DenialWebhook) Send(d sandbox.Denial, count int) {
	e := denialEvent{Hostname: d.Name, Timestamp: d.At.UTC().Format(time.RFC3339Nano), Source: "opensandbox-egress", SandboxID: d.ID,
		Protocol: d.Protocol, Rule: d.Rule, Target: d.Target, Reason: d.Reason, Audit: d.Audit, Count: count}
	if d.To.IsValid() {
		e.Address = d.To.String()
		if e.Hostname == "" {
			e.Hostname = d.To.Addr().String()
		}
	}
	select {
	case h.queue <- e:
	default:
		if h.dropped.Add(1) == 1 {
			h.log.Warn("denials wait for the webhook and some are dropped", "queue", webhookQueue)
		}
	}
}

// Close ends the calls in flight; what waits is dropped.
func (h *DenialWebhook) Close() {
	h.cancel()
	h.wg.Wait()
	h.client.CloseIdleConnections()
}

func (h *DenialWebhook) work() {
	for {
		select {
		case e := <-h.queue:
			if err := h.deliver(e); err != nil && h.ctx.Err() == nil {
				h.log.Warn("a denial could not be sent to the webhook", "sandbox", e.SandboxID, "error", err)
			}
			if n := h.dropped.Swap(0); n > 0 {
				h.log.Warn("denials were not sent to the webhook: too many waited", "count", n)
			}
		case <-h.ctx.Done():
			return
		}
	}
}

// deliver posts an event, and again after failures that may pass.
func (h *DenialWebhook) deliver(e denialEvent) error {
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	wait := h.backoff
	for tried := 0; ; tried++ {
		again, err := h.post(body)
		if err == nil || !again || tried == webhookRetries {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-h.ctx.Done():
			timer.Stop()
			return h.ctx.Err()
		}
		wait *= 2
	}
}

// post makes one call. again is whether another one may fare better.
func (h *DenialWebhook) post(body []byte) (again bool, err error) {
	req, err := http.NewRequestWithContext(h.ctx, http.MethodPost, h.url, bytes.NewReader(body))
	if err != nil {
		return false, errors.New("its URL can't be used")
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := h.client.Do(req)
	if err != nil {
		// The URL, which this error repeats, may hold a secret.
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return true, err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, webhookDrain))
	switch {
	case resp.StatusCode < 300:
		return false, nil
	case resp.StatusCode < 500:
		return false, fmt.Errorf("it answered %s", resp.Status)
	}
	return true, fmt.Errorf("it answered %s", resp.Status)
}
