package hostapi

const (
	// BasePath: GET → 200 Base, what a session is made from.
	BasePath = PathPrefix + "/base"
	// BusyPath: GET → 200 Busy.
	BusyPath = PathPrefix + "/busy"
)

// Session, in a Claim, makes an execd that of an isolated session (package
// isolated). It has no entrypoint, and the claim's user is who runs are.
type Session struct {
	ID string `json:"id"`
	// UID and GID, when not nil, replace the claim's user.
	UID *int64 `json:"uid,omitempty"`
	GID *int64 `json:"gid,omitempty"`
}

// Base is the environment of a claimed sandbox's commands, and who they run as.
type Base struct {
	Env  map[string]string `json:"env"`
	User string            `json:"user"`
}

// Busy is how many commands of a session run in the background.
type Busy struct {
	Running int `json:"running"`
}
