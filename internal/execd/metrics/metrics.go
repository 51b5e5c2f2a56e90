package metrics

import (
	"context"
	"encoding/json"
	"net/http"
	"runtime"
	"sync"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

const (
	// window is the shortest time over which CPU use is measured.
	window = 100 * time.Millisecond
	// staleAfter is when an earlier measurement no longer says anything about
	// the present.
	staleAfter = 10 * time.Second
	// writeTimeout is how long a watcher may accept nothing.
	writeTimeout = 30 * time.Second

	mib = 1 << 20
)

// Sample is one measurement, as it is answered.
type Sample struct {
	CPUCount    float64 `json:"cpu_count"`
	CPUUsedPct  float64 `json:"cpu_used_pct"`
	MemTotalMiB float64 `json:"mem_total_mib"`
	MemUsedMiB  float64 `json:"mem_used_mib"`
	// Timestamp is Unix milliseconds.
	Timestamp int64 `json:"timestamp"`
}

// Limits are the sandbox's; zero means none.
type Limits struct {
	CPUMillis   int64
	MemoryBytes int64
}

// API measures. It may be used in parallel.
type API struct {
	limits func() Limits
	source source
	// watchEvery is the pace of /metrics/watch, a field for tests.
	watchEvery time.Duration

	mu   sync.Mutex
	last usage
}

// usage is the CPU time that was used until a moment.
type usage struct {
	at  time.Time
	cpu time.Duration
}

// New makes the API for a sandbox with these limits. root is the directory that
// has proc and sys in it; empty means "/".
func New(limits func() Limits, root string) *API {
	// Every two seconds, says the OpenSandbox execd API.
	return &API{limits: limits, source: source{root: root}, watchEvery: 2 * time.Second}
}

// Routes adds the routes.
func (a *API) Routes(mux *http.ServeMux) {
	mux.HandleFunc("GET /metrics", a.once)
	mux.HandleFunc("GET /metrics/watch", a.watch)
}

func (a *API) once(w http.ResponseWriter, r *http.Request) {
	s, err := a.sample(r.Context())
	if err != nil {
		web.Fail(w, web.Errorf(http.StatusInternalServerError, web.CodeRuntime, "the sandbox can't be measured: %v", err))
		return
	}
	web.JSON(w, http.StatusOK, s)
}

// watch sends one JSON object a line until the client goes.
func (a *API) watch(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-cache")
	h.Set("Connection", "keep-alive")
	h.Set("X-Accel-Buffering", "no")
	ctl := http.NewResponseController(w)
	tick := time.NewTicker(a.watchEvery)
	defer tick.Stop()
	for {
		var v any
		s, err := a.sample(r.Context())
		if v = s; err != nil {
			v = map[string]string{"error": err.Error()}
		}
		// Neither value can fail to encode.
		line, _ := json.Marshal(v)
		// A server without deadlines, as in some tests, is no reason to fail.
		_ = ctl.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, err := w.Write(append(line, '\n')); err != nil {
			return
		}
		if ctl.Flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		}
	}
}

func (a *API) sample(ctx context.Context) (*Sample, error) {
	limits := a.limits()
	cpus := float64(runtime.NumCPU())
	if limits.CPUMillis > 0 {
		cpus = min(cpus, float64(limits.CPUMillis)/1000)
	}
	pct, err := a.cpuPercent(ctx, cpus)
	if err != nil {
		return nil, err
	}
	total, used, err := a.source.memory(limits.MemoryBytes)
	if err != nil {
		return nil, err
	}
	return &Sample{
		CPUCount:    cpus,
		CPUUsedPct:  pct,
		MemTotalMiB: float64(total) / mib,
		MemUsedMiB:  float64(used) / mib,
		Timestamp:   time.Now().UnixMilli(),
	}, nil
}

// cpuPercent is the use of CPU since the previous call, if that was not long
// ago; else it waits for a short time.
func (a *API) cpuPercent(ctx context.Context, cpus float64) (float64, error) {
	now, err := a.source.cpu()
	if err != nil {
		return 0, err
	}
	before := a.replace(now)
	if age := now.at.Sub(before.at); age < window || age > staleAfter {
		before = now
		select {
		case <-time.After(window):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		if now, err = a.source.cpu(); err != nil {
			return 0, err
		}
	}
	span := now.at.Sub(before.at)
	if span <= 0 || now.cpu <= before.cpu {
		return 0, nil
	}
	// Accounting is coarser than the clock; more than all is none.
	return min(100, float64(now.cpu-before.cpu)/float64(span)/cpus*100), nil
}

// replace remembers a measurement and returns the one before. One that follows
// too closely is not remembered: callers who ask often would see only noise.
func (a *API) replace(now usage) usage {
	a.mu.Lock()
	defer a.mu.Unlock()
	before := a.last
	if now.at.Sub(before.at) >= window {
		a.last = now
	}
	return before
}
