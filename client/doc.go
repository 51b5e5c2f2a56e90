// Package client is the Go SDK of paddock. It speaks the OpenSandbox lifecycle
// and execd APIs, and the routes for images and volumes that paddock adds.
//
// A Client is made once and used from any number of goroutines:
//
//	c, err := client.New(client.Options{Server: "http://127.0.0.1:8080", APIKey: key})
//	sb, err := c.Create(ctx, client.CreateRequest{Image: "python:3.11", Wait: time.Minute})
//	res, err := c.Run(ctx, sb.ID, client.Command{Shell: "python3 -c 'print(6*7)'"},
//		client.Output{Stdout: os.Stdout, Stderr: os.Stderr})
//	err = c.Delete(ctx, sb.ID)
//
// Everything streams: output arrives as it is printed, uploads and downloads
// never sit in memory whole, and a reader that is slow slows the sender down.
// Every call takes a context and ends when it does.
//
// # Retries
//
// Requests that may be repeated without harm (GET, DELETE, and Create, which
// carries an idempotency key) are tried again, a few times, when the server
// answers 429, 502 or 503 or when the connection breaks before an answer.
// Retry-After is honoured within a bound. Nothing else is repeated, and neither
// is what failed because a registry does not answer the server.
//
// # Errors
//
// An answer with an error status is a *Error with the status, the code and the
// sentence of the server, and the request id to look for in its log. A stream
// that breaks before its end is ErrConnectionLost. What a sandbox says is
// hostile: lines are bounded, and error texts are made safe to print.
package client
