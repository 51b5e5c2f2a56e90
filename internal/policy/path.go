package policy

// PlainPath decodes the path of a request target, as sent and without its
// query. ok is false for one that can be read in more than one way; see
// HTTP.Matches.
func PlainPath(path string) (plain string, ok bool) { return plainPath(path) }
