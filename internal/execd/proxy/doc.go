// Package proxy reaches TCP services that listen on loopback in the sandbox:
// over HTTP at /proxy/{port}/… (OpenSandbox execd API), and as a raw tunnel for the
// engine (hostapi.DialPath), since loopback can't be reached from outside the
// sandbox's network namespace.
package proxy
