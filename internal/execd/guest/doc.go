// Package guest is what execd knows of the sandbox it serves: the environment
// and the identity that commands get, and what a path in a request means. A
// Guest is made once, by the claim, and does not change afterwards; the extra
// environment file is read anew for each command because the sandbox's own
// processes write it.
package guest
