package metrics

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestThisMachine(t *testing.T) {
	// Something to measure.
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	a := New(func() Limits { return Limits{CPUMillis: 500, MemoryBytes: 64 << 20} }, "")
	mux := http.NewServeMux()
	a.Routes(mux)
	for range 2 {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		var s Sample
		if err := json.Unmarshal(w.Body.Bytes(), &s); err != nil || w.Code != 200 {
			t.Fatalf("%d %s: %v", w.Code, w.Body, err)
		}
		if s.CPUCount != 0.5 || s.MemTotalMiB != 64 || s.MemUsedMiB <= 0 || s.MemUsedMiB > 64 ||
			s.CPUUsedPct < 0 || s.CPUUsedPct > 100 || s.Timestamp == 0 {
			t.Errorf("%+v", s)
		}
	}
}

// tree makes a directory that looks like a part of the kernel's files.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const info = "MemTotalX: 1 kB\nMemTotal:       1048576 kB\nMemFree: 1 kB\n"

func stat(name, ticks string) string {
	return "7 (" + name + ") S 1 7 7 0 -1 4194560 1 1 1 1 " + ticks + " 20 0 1 0 1 1 1\n"
}

func TestSources(t *testing.T) {
	page := int64(os.Getpagesize())
	for name, c := range map[string]struct {
		files       map[string]string
		limit       int64
		cpu         time.Duration
		total, used int64
	}{
		"cgroup v2": {map[string]string{
			"proc/meminfo": info, "sys/fs/cgroup/cpu.stat": "usage_usec 1500\nuser_usec 1\n",
			"sys/fs/cgroup/memory.current": "5000\n", "sys/fs/cgroup/memory.max": "9000\n",
			"sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 2000\n",
		}, 0, 1500 * time.Microsecond, 9000, 3000},
		"cgroup v2 without limit": {map[string]string{
			"proc/meminfo": info, "sys/fs/cgroup/cpu.stat": "usage_usec 1\n",
			"sys/fs/cgroup/memory.current": "5000\n", "sys/fs/cgroup/memory.max": "max\n",
		}, 0, time.Microsecond, 1 << 30, 5000},
		"root of cgroup v2": {map[string]string{
			"proc/meminfo": info, "sys/fs/cgroup/cpu.stat": "usage_usec 1\n",
			"proc/7/stat": stat("a", "1 2 3 4"), "proc/7/statm": "100 30 10 1 0 1 0\n",
		}, 1 << 20, 100 * time.Millisecond, 1 << 20, 20 * page},
		"cgroup v1": {map[string]string{
			"proc/meminfo": info, "sys/fs/cgroup/cpuacct/cpuacct.usage": "77\n",
			"sys/fs/cgroup/memory/memory.usage_in_bytes": "5000\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
			"sys/fs/cgroup/memory/memory.stat":           "total_inactive_file 6000\n",
		}, 8000, 77, 8000, 5000},
		"hostile names and broken files": {map[string]string{
			"proc/meminfo": info,
			"proc/7/stat":  stat("a) R 1 (x) 9", "1 0 0 0"), "proc/7/statm": "100 10 30\n",
			"proc/8/stat": "8 (x", "proc/8/statm": "\n",
			"proc/9/stat": stat("", "-5 9223372036854775807 x 1"), "proc/9/statm": "1 x 1\n",
			"proc/10x/stat": "", "proc/self/stat": stat("a", "1 1 1 1"),
		}, 0, 20 * time.Millisecond, 1 << 30, 0},
		"more than all": {map[string]string{
			"proc/meminfo": info, "proc/7/statm": "9999999 9999999 0\n",
		}, 4096, 0, 4096, 4096},
	} {
		t.Run(name, func(t *testing.T) {
			s := source{root: tree(t, c.files)}
			u, err := s.cpu()
			if err != nil || u.cpu != c.cpu {
				t.Errorf("cpu %s, %v; want %s", u.cpu, err, c.cpu)
			}
			total, used, err := s.memory(c.limit)
			if err != nil || total != c.total || used != c.used {
				t.Errorf("memory %d, %d, %v; want %d, %d", total, used, err, c.total, c.used)
			}
		})
	}
}

func TestNothingToRead(t *testing.T) {
	a := New(func() Limits { return Limits{} }, t.TempDir())
	mux := http.NewServeMux()
	a.Routes(mux)
	w := httptest.NewRecorder()
	mux.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 500 || !strings.Contains(w.Body.String(), `"code":"RUNTIME_ERROR"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// TestCPUPercent runs on a clock of its own.
func TestCPUPercent(t *testing.T) {
	root := tree(t, map[string]string{"sys/fs/cgroup/memory.current": "0\n", "proc/meminfo": info})
	use := func(usec string) {
		if err := os.WriteFile(root+v2CPU, []byte("usage_usec "+usec+"\n"), 0o644); err != nil {
			t.Error(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		a := New(func() Limits { return Limits{} }, root)
		want := func(cpus, pct float64) {
			t.Helper()
			if got, err := a.cpuPercent(t.Context(), cpus); err != nil || got != pct {
				t.Errorf("%v%%, %v; want %v%%", got, err, pct)
			}
		}
		use("0")
		want(1, 0) // waits for a window
		time.Sleep(900 * time.Millisecond)
		use("500000")
		want(1, 50) // half of a second since the first
		time.Sleep(time.Second)
		use("1500000")
		want(2, 50)
		time.Sleep(time.Second)
		use("9500000")
		want(1, 100) // no more than all
		time.Sleep(time.Second)
		use("1")
		want(1, 0) // never less than nothing
		time.Sleep(time.Hour)
		use("3600000000")
		want(1, 0) // an hour ago says nothing about now

		time.Sleep(time.Hour)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := a.cpuPercent(ctx, 1); err == nil {
			t.Error("a client that has gone was waited for")
		}
	})
}

func TestWatch(t *testing.T) {
	a := New(func() Limits { return Limits{} }, "")
	a.watchEvery = 10 * time.Millisecond
	ended := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		a.watch(w, r)
	}))
	defer srv.Close()
	resp, err := http.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	if ct := resp.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Errorf("content type %q", ct)
	}
	lines := bufio.NewScanner(resp.Body)
	for range 3 {
		var s Sample
		if !lines.Scan() || json.Unmarshal(lines.Bytes(), &s) != nil || s.CPUCount != float64(runtime.NumCPU()) {
			t.Errorf("line %q: %v", lines.Text(), lines.Err())
		}
	}
	resp.Body.Close()
	<-ended
}

func FuzzProc(f *testing.F) {
	f.Add(stat("a b) (", "1 2 3 4"), "1 2 1")
	f.Add("1 () R", "")
	f.Fuzz(func(t *testing.T, stat, statm string) {
		if n := statTicks(stat); n < 0 {
			t.Errorf("%d ticks", n)
		}
		if n := statmPrivate(statm); n < 0 {
			t.Errorf("%d pages", n)
		}
		if n, ok := keyed(stat, "a"); ok && n < 0 {
			t.Errorf("%d under a key", n)
		}
	})
}
