package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// report is what a run found.
type report struct {
	Kernel string `json:"kernel"`
	CPUs   int    `json:"cpus"`
	// Load is the machine's load average of the minute before. Anything much
	// above 0 spoils the figures.
	Load    string   `json:"load"`
	Timings []timing `json:"timings"`
	Values  []value  `json:"values"`
}

// timing sums up a series of durations, in milliseconds.
type timing struct {
	Name string  `json:"name"`
	N    int     `json:"n"`
	P50  float64 `json:"p50"`
	P95  float64 `json:"p95"`
	P99  float64 `json:"p99"`
	Max  float64 `json:"max"`
}

type value struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit"`
}

func newReport() *report {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	load, _ := os.ReadFile("/proc/loadavg")
	minute, _, _ := strings.Cut(string(load), " ")
	return &report{Kernel: strings.TrimSpace(string(kernel)), CPUs: runtime.NumCPU(), Load: minute}
}

func (r *report) timing(name string, d []time.Duration) timing {
	slices.Sort(d)
	ms := func(q float64) float64 {
		if len(d) == 0 {
			return 0
		}
		i := min(len(d)-1, int(q*float64(len(d))))
		return float64(d[i].Microseconds()) / 1000
	}
	t := timing{Name: name, N: len(d), P50: ms(0.5), P95: ms(0.95), P99: ms(0.99), Max: ms(1)}
	r.Timings = append(r.Timings, t)
	return t
}

func (r *report) value(name string, v float64, unit string) {
	r.Values = append(r.Values, value{name, v, unit})
}

func (r *report) print(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(out, "Linux %s, %d CPUs, load before %s\n\n", r.Kernel, r.CPUs, r.Load)
	fmt.Fprintln(w, "ms\tn\tp50\tp95\tp99\tmax\t")
	for _, t := range r.Timings {
		fmt.Fprintf(w, "%s\t%d\t%.2f\t%.2f\t%.2f\t%.2f\t\n", t.Name, t.N, t.P50, t.P95, t.P99, t.Max)
	}
	w.Flush()
	fmt.Fprintln(out)
	for _, v := range r.Values {
		fmt.Fprintf(w, "%s\t%.2f\t%s\t\n", v.Name, v.Value, v.Unit)
	}
	w.Flush()
}
