package metrics

import (
	"bufio"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/answer"
)

const (
	// watchInterval is the pace of /metrics/watch (behaviour.md 10.8).
	watchInterval = 2 * time.Second
	// firstSample is how long the first CPU measurement takes; later ones
	// compare with the one before.
	firstSample = 100 * time.Millisecond
	// ticksPerSecond is USER_HZ, which is 100 on every Linux architecture
	// that execd is built for (proc(5)).
	ticksPerSecond = 100
)

// Sample is one measurement.
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
	proc   string

	mu   sync.Mutex
	last reading
}

// reading is the CPU time of all processes at an instant. A process that ended
// in between takes its time along, which makes the difference too small, never
// negative.
type reading struct {
	at  time.Time
	cpu map[int]time.Duration
	pct float64
}

// New makes the API for a sandbox with these limits. proc is where /proc is
// mounted; empty means there.
func New(limits func() Limits, proc string) *API {
	if proc == "" {
		proc = "/proc"
	}
	return &API{limits: limits, proc: proc}
}

// Routes adds the routes.
func (a *API) Routes(mux *http.ServeMux) {
	mux.HandleFunc("GET /metrics", a.once)
	mux.HandleFunc("GET /metrics/watch", a.watch)
}

func (a *API) once(w http.ResponseWriter, r *http.Request) {
	s, err := a.sample(r)
	if err != nil {
		answer.Error(w, http.StatusInternalServerError, answer.RuntimeError, "The sandbox can't be measured: %v", err)
		return
	}
	answer.JSON(w, http.StatusOK, s)
}

// watch sends one JSON object a line until the client goes.
func (a *API) watch(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("X-Accel-Buffering", "no")
	out := http.NewResponseController(w)
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for {
		var line []byte
		if s, err := a.sample(r); err != nil {
			line, _ = json.Marshal(map[string]string{"error": err.Error()})
		} else {
			line, _ = json.Marshal(s)
		}
		if _, err := w.Write(append(line, '\n')); err != nil {
			return
		}
		if err := out.Flush(); err != nil {
			return
		}
		select {
		case <-ticker.C:
		case <-r.Context().Done():
			return
		}
	}
}

func (a *API) sample(r *http.Request) (*Sample, error) {
	limits := a.limits()
	cpus := float64(runtime.NumCPU())
	if limits.CPUMillis > 0 {
		cpus = min(cpus, float64(limits.CPUMillis)/1000)
	}
	pct, rss, err := a.measure(r, cpus)
	if err != nil {
		return nil, err
	}
	total := limits.MemoryBytes
	if total == 0 {
		if total, err = a.memTotal(); err != nil {
			return nil, err
		}
	}
	return &Sample{
		CPUCount: cpus, CPUUsedPct: pct,
		MemTotalMiB: float64(total) / (1 << 20), MemUsedMiB: float64(rss) / (1 << 20),
		Timestamp: time.Now().UnixMilli(),
	}, nil
}

// measure returns the use of CPU since the last measurement, in per cent of
// what the sandbox may use, and the memory that its processes occupy, in bytes.
func (a *API) measure(r *http.Request, cpus float64) (pct float64, rss int64, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last.cpu == nil {
		if a.last.cpu, _, err = a.processes(); err != nil {
			return 0, 0, err
		}
		a.last.at = time.Now()
		select {
		case <-time.After(firstSample):
		case <-r.Context().Done():
			return 0, 0, r.Context().Err()
		}
	}
	cpu, rss, err := a.processes()
	if err != nil {
		return 0, 0, err
	}
	now := time.Now()
	wall := now.Sub(a.last.at)
	if wall < firstSample/2 {
		return a.last.pct, rss, nil // too short to tell
	}
	var used time.Duration
	for pid, t := range cpu {
		if d := t - a.last.cpu[pid]; d > 0 {
			used += d
		}
	}
	pct = min(100, 100*used.Seconds()/wall.Seconds()/cpus)
	a.last = reading{at: now, cpu: cpu, pct: pct}
	return pct, rss, nil
}

// processes adds up all processes of the PID namespace, which is the sandbox.
func (a *API) processes() (map[int]time.Duration, int64, error) {
	dir, err := os.Open(a.proc)
	if err != nil {
		return nil, 0, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, 0, err
	}
	cpu := map[int]time.Duration{}
	var rss int64
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		t, pages, ok := a.process(name)
		if ok {
			cpu[pid] = t
			rss += pages * int64(os.Getpagesize())
		}
	}
	return cpu, rss, nil
}

// process reads fields 14, 15 (user and system time) and 24 (resident pages) of
// /proc/pid/stat.
func (a *API) process(pid string) (time.Duration, int64, bool) {
	b, err := os.ReadFile(filepath.Join(a.proc, pid, "stat"))
	if err != nil {
		return 0, 0, false
	}
	// The command's name may hold anything; fields begin after its last ")".
	i := strings.LastIndexByte(string(b), ')')
	f := strings.Fields(string(b[i+1:]))
	if i < 0 || len(f) < 22 {
		return 0, 0, false
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	pages, err3 := strconv.ParseInt(f[21], 10, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		return 0, 0, false
	}
	return time.Duration(user+system) * (time.Second / ticksPerSecond), pages, true
}

// memTotal is the machine's memory, for a sandbox without a limit.
func (a *API) memTotal() (int64, error) {
	f, err := os.Open(filepath.Join(a.proc, "meminfo"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), "MemTotal:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, lines.Err()
}
