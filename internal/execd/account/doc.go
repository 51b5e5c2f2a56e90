// Package account resolves users and groups against the sandbox's own
// /etc/passwd and /etc/group. The files belong to hostile code: they are read
// with limits, must be regular, and a line that makes no sense is skipped. It
// takes the place of os/user, which caches the first answer for the life of the
// program and would miss a user that was added later.
package account
