// Package web is what all routes of execd share: how errors become answers and
// how bodies are read. It holds the one mapping from errors to HTTP statuses.
package web
