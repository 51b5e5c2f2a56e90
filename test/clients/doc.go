// Package clients runs the clients that others have written for the OpenSandbox
// API, unmodified and from their package registries, against a real server: the
// official SDKs for Python, JavaScript and Java, the code interpreter's client,
// the command line, the server of the Model Context Protocol, adapters of agent
// frameworks, and a tester that makes requests from our OpenAPI documents.
//
// The file environments names them and their versions; scripts/clients.sh
// installs them. Each has a script in its own language that reports what it
// checked, one JSON object a line:
//
//	{"check": "files: a range", "ok": false, "detail": "got …, want …"}
//
// which become subtests. A check that needs what the server does not have may
// say so with "skip". A client that its registry does not serve is skipped.
package clients
