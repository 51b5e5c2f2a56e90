// Package metrics tells what the sandbox uses, against its own limits
// (behaviour.md 10.8): CPU and memory of the sandbox's processes, not of the
// machine that it shares.
package metrics
