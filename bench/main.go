package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/paddock-sandbox/paddock/client"
	"github.com/paddock-sandbox/paddock/test/harness"
)

const (
	image = "python:3.11"
	// total bounds a whole run, and each is what a sandbox with a policy adds.
	total, each = 170 * time.Second, 300 * time.Millisecond
)

var forever = []string{"sleep", "1000000"}

// bench is one run.
type bench struct {
	ctx    context.Context
	server *harness.Server
	api    *client.Client
	report *report
	work   string
}

func main() {
	asJSON := flag.Bool("json", false, "print JSON instead of a table")
	archive := flag.String("image", "", "OCI archive of the image (default: the cached starter image)")
	policied := flag.Int("policies", 0, "only compare creates with a policy of 20 rules on an empty server with those beside so many")
	crunRuns := flag.Int("crun-runs", 0, "internal: only measure crun in the directory that is given as argument")
	flag.Parse()
	if *crunRuns > 0 {
		if err := measureCrun(flag.Arg(0), *crunRuns, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := run(ctx, *archive, *policied)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	if *asJSON {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		_ = enc.Encode(r)
		return
	}
	r.print(os.Stdout)
}

func run(ctx context.Context, archive string, policied int) (_ *report, err error) {
	ctx, cancel := context.WithTimeout(ctx, total+time.Duration(policied)*each)
	defer cancel()
	if archive == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return nil, err
		}
		archive = filepath.Join(cache, "paddock", "starter.tar")
	}
	work, err := os.MkdirTemp("", "paddock-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	runDir, err := harness.RunDir()
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(runDir)
	dataDir := filepath.Join(work, "data")
	if err := harness.Remember(runDir, dataDir); err != nil {
		return nil, err
	}
	s, err := harness.Launch(ctx, harness.Options{
		Binary: harness.BinaryPath(), RunDir: runDir, DataDir: dataDir,
		Settings: map[string]string{"log.level": "warn"},
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if closing := s.Close(ctx); closing != nil {
			fmt.Fprintln(os.Stderr, "bench: cleaning up:", closing)
		}
	}()
	b := &bench{ctx: ctx, server: s, api: s.Client, report: newReport(), work: work}
	type step struct {
		name string
		do   func() error
	}
	steps := []step{
		{"importing the image", func() error { return b.importImage(archive) }},
		{"one after another", b.lives},
		{"commands and requests", b.requests},
		{"files", b.files},
		{"ten clients at once", b.burst},
		{"a hundred at rest", b.crowd},
		{"crun", func() error { return b.crun(archive) }},
	}
	if policied > 0 {
		steps = append(steps[:1], step{fmt.Sprintf("%d sandboxes with policies", policied), func() error { return b.policies(policied) }})
	}
	for _, step := range steps {
		fmt.Fprintf(os.Stderr, "bench: %s\n", step.name)
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return b.report, nil
}

func (b *bench) importImage(archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = b.api.ImportImage(b.ctx, f, image)
	return err
}
