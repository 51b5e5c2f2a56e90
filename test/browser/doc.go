// Package browser opens what sandboxes serve in a real browser, Debian's
// Chromium without a window, driven by its own protocol. testdata/app.py is the
// application in the sandbox; it remembers what it was asked, so that a test can
// tell what did not arrive.
//
// Each test has a profile of its own. All of them share one server and one
// browser, which resolves every name below apps.test to this machine.
package browser
