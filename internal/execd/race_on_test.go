//go:build race

package execd_test

// race makes the execd under test look for races as well.
const race = true
