package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/paddock-sandbox/paddock/client"
)

const (
	lives        = 400
	rest         = 40 * time.Millisecond // between lives, so that the pool is full again
	commands     = 500
	burstLives   = 300
	burstTime    = 30 * time.Second
	burstClients = 10
	crowdSize    = 100
	fileSize     = 64 << 20
	fileRuns     = 5
)

func (b *bench) create(wait time.Duration) (*client.Sandbox, error) {
	return b.api.Create(b.ctx, client.CreateRequest{Image: image, Entrypoint: forever, Timeout: 10 * time.Minute, Wait: wait,
		ResourceLimits: map[string]string{"cpu": "1", "memory": "512Mi"}})
}

func (b *bench) true(id string) error {
	res, err := b.api.Run(b.ctx, id, client.Command{Argv: []string{"/bin/true"}}, client.Output{})
	if err == nil && res.ExitCode != 0 {
		err = fmt.Errorf("true ended with %d", res.ExitCode)
	}
	return err
}

// lives makes sandboxes one after another on a server that rests in between.
func (b *bench) lives() error {
	var answered, first, running, deleted []time.Duration
	for i := range lives {
		time.Sleep(rest)
		wait := time.Duration(0)
		if i%8 == 7 {
			wait = time.Minute
		}
		began := time.Now()
		sb, err := b.create(wait)
		if err != nil {
			return err
		}
		if wait > 0 {
			running = append(running, time.Since(began))
		} else {
			answered = append(answered, time.Since(began))
		}
		if err := b.true(sb.ID); err != nil {
			return err
		}
		if wait == 0 {
			first = append(first, time.Since(began))
		}
		began = time.Now()
		if err := b.api.Delete(b.ctx, sb.ID); err != nil {
			return err
		}
		deleted = append(deleted, time.Since(began))
	}
	b.report.timing("create answered", answered)
	b.report.timing("create → Running", running)
	b.report.timing("create → first command finished", first)
	b.report.timing("delete", deleted)
	return nil
}

// requests measures one sandbox at rest.
func (b *bench) requests() error {
	sb, err := b.create(time.Minute)
	if err != nil {
		return err
	}
	defer b.api.Delete(b.ctx, sb.ID)
	series := func(name string, n int, do func() error) error {
		var d []time.Duration
		for range n {
			began := time.Now()
			if err := do(); err != nil {
				return err
			}
			d = append(d, time.Since(began))
		}
		b.report.timing(name, d)
		return nil
	}
	err = errors.Join(
		series("command: true", commands, func() error { return b.true(sb.ID) }),
		series("command: python3 -c pass", 40, func() error {
			_, err := b.api.Run(b.ctx, sb.ID, client.Command{Argv: []string{"python3", "-c", "pass"}}, client.Output{})
			return err
		}),
		series("GET sandbox", 1000, func() error { _, err := b.api.Get(b.ctx, sb.ID); return err }),
	)
	if err != nil {
		return err
	}
	const span = 3 * time.Second
	n, err := parallel(b.ctx, 16, span, func(ctx context.Context) error { _, err := b.api.Get(ctx, sb.ID); return err })
	b.report.value("GET sandbox, 16 connections", float64(n)/span.Seconds(), "per second")
	return err
}

// parallel repeats do with several workers for a time and counts.
func parallel(ctx context.Context, workers int, span time.Duration, do func(context.Context) error) (int64, error) {
	var n atomic.Int64
	errs := make([]error, workers)
	end := time.Now().Add(span)
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			for time.Now().Before(end) && errs[i] == nil {
				if errs[i] = do(ctx); errs[i] == nil {
					n.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return n.Load(), errors.Join(errs...)
}

func (b *bench) files() error {
	sb, err := b.create(time.Minute)
	if err != nil {
		return err
	}
	defer b.api.Delete(b.ctx, sb.ID)
	var up, down float64
	for range fileRuns {
		began := time.Now()
		err := b.api.UploadFiles(b.ctx, sb.ID, client.UploadFile{Path: "/dev/shm/file", Size: fileSize, Content: io.LimitReader(zeros{}, fileSize)})
		if err != nil {
			return err
		}
		up = max(up, fileSize/float64(1<<20)/time.Since(began).Seconds())
		began = time.Now()
		d, err := b.api.DownloadFile(b.ctx, sb.ID, "/dev/shm/file", client.DownloadOptions{})
		if err != nil {
			return err
		}
		n, err := io.Copy(io.Discard, d)
		d.Close()
		if err != nil || n != fileSize {
			return fmt.Errorf("downloaded %d bytes: %w", n, err)
		}
		down = max(down, fileSize/float64(1<<20)/time.Since(began).Seconds())
	}
	b.report.value("upload of 64 MiB, best of 5", up, "MiB/s")
	b.report.value("download of 64 MiB, best of 5", down, "MiB/s")
	return nil
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// burst is what ten clients get that never rest.
func (b *bench) burst() error {
	var mu sync.Mutex
	var first []time.Duration
	var left atomic.Int64
	left.Store(burstLives)
	errs := make([]error, burstClients)
	began := time.Now()
	end := began.Add(burstTime)
	var wg sync.WaitGroup
	for i := range burstClients {
		wg.Go(func() {
			for left.Add(-1) >= 0 && time.Now().Before(end) {
				started := time.Now()
				sb, err := b.create(0)
				if err == nil {
					err = b.true(sb.ID)
					took := time.Since(started)
					err = errors.Join(err, b.api.Delete(b.ctx, sb.ID))
					mu.Lock()
					first = append(first, took)
					mu.Unlock()
				}
				if err != nil {
					errs[i] = err
					return
				}
			}
		})
	}
	wg.Wait()
	span := time.Since(began)
	b.report.value("lives per second, 10 clients", float64(len(first))/span.Seconds(), "per second")
	b.report.timing("create → first command, 10 clients", first)
	return errors.Join(errs...)
}

// crowd measures what a hundred sandboxes at rest cost.
func (b *bench) crowd() error {
	before := rss(b.server.PID())
	ids := make([]string, 0, crowdSize)
	for range crowdSize {
		sb, err := b.create(time.Minute)
		if err != nil {
			return err
		}
		ids = append(ids, sb.ID)
	}
	var d []time.Duration
	for range 200 {
		began := time.Now()
		if _, err := b.api.List(b.ctx, client.ListOptions{PageSize: crowdSize}); err != nil {
			return err
		}
		d = append(d, time.Since(began))
	}
	b.report.timing("list of 100", d)
	pss, groups := 0.0, 0.0
	for _, id := range ids {
		pss += execdPSS(id)
		groups += cgroupMemory(id)
	}
	b.report.value("server, RSS without sandboxes", before/(1<<20), "MiB")
	b.report.value("server, RSS per sandbox", (rss(b.server.PID())-before)/crowdSize/(1<<10), "KiB")
	b.report.value("sandbox at rest, PSS of execd", pss/crowdSize/(1<<20), "MiB")
	b.report.value("sandbox at rest, its cgroup", groups/crowdSize/(1<<20), "MiB")
	for _, id := range ids {
		if err := b.api.Delete(b.ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// field reads a "Name: N kB" line of a file below /proc, in bytes.
func field(path, name string) float64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			kb, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kb * 1024
		}
	}
	return 0
}

func rss(pid int) float64 { return field(fmt.Sprintf("/proc/%d/status", pid), "VmRSS") }

// execdPSS is the proportional memory of the sandbox's PID 1.
func execdPSS(id string) float64 {
	files, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(b), id) {
			continue
		}
		dir := filepath.Dir(f)
		status, _ := os.ReadFile(filepath.Join(dir, "status"))
		for line := range strings.Lines(string(status)) {
			if rest, ok := strings.CutPrefix(line, "NSpid:"); ok {
				if f := strings.Fields(rest); f[len(f)-1] == "1" {
					return field(filepath.Join(dir, "smaps_rollup"), "Pss")
				}
			}
		}
	}
	return 0
}

func cgroupMemory(id string) float64 {
	for _, pattern := range []string{"/sys/fs/cgroup/memory/paddock-*/" + id + "/memory.usage_in_bytes", "/sys/fs/cgroup/paddock-*/" + id + "/memory.current"} {
		files, _ := filepath.Glob(pattern)
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil {
				n, _ := strconv.ParseFloat(strings.TrimSpace(string(b)), 64)
				return n
			}
		}
	}
	return 0
}
