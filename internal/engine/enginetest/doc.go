// Package enginetest is the conformance suite of sandbox.Engine. It holds an
// engine to what the interface's comments promise, by making real sandboxes and
// talking to execd in them. Every engine's own tests call Run.
package enginetest
