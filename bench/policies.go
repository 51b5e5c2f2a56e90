package main

import (
	"fmt"
	"time"

	"github.com/paddock-sandbox/paddock/client"
)

const (
	// rulesEach is how many rules a sandbox has, of domains, ranges and addresses.
	rulesEach = 20
	// endsMeasured is how many of the first and of the last sandboxes are compared.
	endsMeasured = 100
)

// policies makes so many sandboxes with a policy each, which all stay, and compares
// the first with the last. In between it removes and makes none.
func (b *bench) policies(count int) error {
	var took []time.Duration
	for i := range count {
		time.Sleep(rest)
		began := time.Now()
		_, err := b.api.Create(b.ctx, client.CreateRequest{Image: image, Entrypoint: forever, Timeout: 20 * time.Minute, Wait: time.Minute,
			ResourceLimits: map[string]string{"cpu": "1", "memory": "64Mi"}, NetworkPolicy: policyOf(i)})
		if err != nil {
			return fmt.Errorf("after %d sandboxes: %w", i, err)
		}
		took = append(took, time.Since(began))
	}
	n := min(endsMeasured, count/2)
	first := b.report.timing(fmt.Sprintf("create → Running with %d rules, the first %d", rulesEach, n), took[:n])
	last := b.report.timing(fmt.Sprintf("create → Running with %d rules, the last %d of %d", rulesEach, n, count), took[count-n:])
	b.report.value("last / first, p50", last.P50/first.P50, "")
	return nil
}

func policyOf(i int) *client.NetworkPolicy {
	p := &client.NetworkPolicy{DefaultAction: "deny"}
	for r := range rulesEach {
		target := fmt.Sprintf("host-%d-%d.example", i, r)
		switch r % 4 {
		case 2:
			target = fmt.Sprintf("203.0.%d.%d/32", i%256, r)
		case 3:
			target = fmt.Sprintf("198.%d.%d.0/24", 20+r, i%256)
		}
		p.Egress = append(p.Egress, client.NetworkRule{Action: "allow", Target: target})
	}
	return p
}
