package cgroup

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"testing"
)

func benchmarkEach(b *testing.B, f func(b *testing.B, p *Parent)) {
	if os.Geteuid() != 0 {
		b.Skip("needs root to make cgroups")
	}
	h, err := Detect()
	if err != nil {
		b.Skip(err)
	}
	p, err := h.Parent("paddockbench-" + strconv.Itoa(os.Getpid()))
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	defer p.Remove()
	f(b, p)
}

func BenchmarkStart(b *testing.B) {
	benchmarkEach(b, func(b *testing.B, p *Parent) {
		g, err := p.Create("a")
		if err != nil {
			b.Fatal(err)
		}
		ctx := context.Background()
		defer g.Remove(ctx)
		for name, start := range map[string]func(*exec.Cmd) error{
			"group": g.Start,
			"plain": (*exec.Cmd).Start,
		} {
			b.Run(name, func(b *testing.B) {
				for b.Loop() {
					cmd := exec.Command("/bin/true")
					if err := start(cmd); err != nil {
						b.Fatal(err)
					}
					if err := cmd.Wait(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	})
}

func BenchmarkLife(b *testing.B) {
	benchmarkEach(b, func(b *testing.B, p *Parent) {
		ctx := context.Background()
		for b.Loop() {
			g, err := p.Create("a")
			if err != nil {
				b.Fatal(err)
			}
			if err := g.SetLimits(Limits{CPUMillis: 1000, MemoryBytes: 1 << 30, PIDs: 100}); err != nil {
				b.Fatal(err)
			}
			if err := g.Remove(ctx); err != nil {
				b.Fatal(err)
			}
		}
	})
}
