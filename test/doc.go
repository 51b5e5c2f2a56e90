// Package test holds the end-to-end tests: a real server, real sandboxes, a
// real registry, the official SDK, the command line. They need root and the
// binary that `make build` makes, and are skipped where these are missing,
// unless PADDOCK_TEST_REQUIRE is set.
//
// Most tests share one server, which has two images: "python:3.11", the starter
// image, and "busybox:test". Tests that kill the server, change its settings or
// pull images start their own.
package test
