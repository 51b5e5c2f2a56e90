// Package gateway is the data path from a client to a port inside a sandbox.
//
// It takes a request that the server has authenticated and routed, sends it to
// the sandbox over HTTP/1.1, and streams the answer back as it comes, with
// back-pressure in both directions and nothing buffered beyond one copy buffer.
// Protocol upgrades, WebSocket among them, become a tunnel of raw bytes.
//
// What comes out of a sandbox is hostile: the size of its header is bounded, an
// answer that is not sound HTTP becomes a 502, and one that breaks off after
// its header breaks the client's connection too, so that half an answer never
// looks like a whole one.
package gateway
