// Package server is the HTTP surface of the control plane: routing,
// authentication, validation, errors and request ids. It turns requests into
// calls of the sandbox manager and the image store, and knows neither how a
// sandbox is made nor where it is recorded. Requests to ports inside sandboxes
// it authenticates and hands to package gateway.
//
// Start reading at routes.go, which lists every route. A handler returns an
// error; errors.go is the one place that turns errors into answers, and no
// other code writes an error answer.
package server
