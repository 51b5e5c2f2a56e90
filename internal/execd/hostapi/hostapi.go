package hostapi

import "time"

// Descriptors that execd inherits from the engine.
const (
	// ListenerFD is a listening Unix stream socket. The whole execd API is
	// served on it, plus the routes below.
	ListenerFD = 3
	// LogFD and LogFD+1 are two regular files, the segments of the
	// entrypoint's log (package entrylog).
	LogFD = 4
)

// PathPrefix is where the routes of this package live. On TCP they answer 404.
const PathPrefix = "/paddock/v1"

const (
	// ClaimPath: POST Claim → 200 ClaimResult, once. Until then execd answers
	// only /ping (200, without a token, on the Unix listener) and this route;
	// everything else gets 503. A failed claim leaves execd unclaimed and the
	// engine throws the shell away.
	ClaimPath = PathPrefix + "/claim"
	// ExitPath: GET → 200 ExitStatus as soon as the entrypoint has ended; the
	// request is held until then. It may be asked any number of times. With
	// ?hooks=N it is also answered, with Running set, as soon as there are runs
	// of hooks with a higher number than N.
	ExitPath = PathPrefix + "/exit"
	// DialPath: GET ?port=N with "Connection: Upgrade" and "Upgrade: tcp" →
	// 101, then the raw bytes of a TCP connection to 127.0.0.1:N (or [::1]:N)
	// inside the sandbox, half-closes passed on. 502 Error when refused.
	DialPath = PathPrefix + "/dial"
	// SyncPath: POST → 200 when the sandbox's root filesystem was synced.
	SyncPath = PathPrefix + "/sync"
)

// TokenHeader carries the access token on every request but ClaimPath and the
// /ping before it.
const TokenHeader = "X-EXECD-ACCESS-TOKEN"

// A sandbox with a kernel of its own (gVisor) can't take over a listening socket
// of the host's. There the engine comes to Port over TCP, where everything that
// is said here of the Unix listener is served, and execd inherits two pipes: the
// first has a key, and ends after it; to the second execd writes Ready once the
// port takes connections. A claim carries the key in KeyHeader: without it,
// another user of the host might come first.
const (
	Port      = 44772
	KeyHeader = "X-Paddock-Claim-Key"
	Ready     = "."
)

// PIDsFile is the limit of processes in the cgroup that a sandbox behind gVisor is
// in, as its own kernel shows it.
const PIDsFile = "/sys/fs/cgroup/pids/pids.max"

// Claim turns a shell into a running sandbox. By the time it is sent execd's
// root is already the image.
type Claim struct {
	ID    string `json:"id"`
	Token string `json:"token"`
	// Env is the complete environment of the entrypoint and the base of that
	// of every command; PATH, HOME and the like are completed by execd when
	// absent (HOME from the user's passwd entry).
	Env map[string]string `json:"env"`
	// Entrypoint is the argv; at least one element. The program is looked up
	// in Env's PATH inside the sandbox.
	Entrypoint []string `json:"entrypoint"`
	// Cwd is where the entrypoint starts and what relative paths of the API
	// mean; empty means "/". It is made when missing, as Docker does.
	Cwd string `json:"cwd,omitempty"`
	// User is the image's USER: "", "name", "uid", "name:group", "uid:gid".
	// It is resolved against the sandbox's /etc/passwd and /etc/group. The
	// entrypoint and commands run as that user; execd itself stays root.
	User string `json:"user,omitempty"`
	// Hostname is only informative (set by the engine).
	Hostname string `json:"hostname,omitempty"`
	// Limits are reported by /metrics, and a place to size history from.
	CPUMillis   int64 `json:"cpuMillis,omitempty"`
	MemoryBytes int64 `json:"memoryBytes,omitempty"`
	// PIDs, when not 0, is the limit of processes and threads that execd sets for
	// all of the sandbox, through PIDsFile: where the sandbox has a kernel of its
	// own, the host's cgroup counts something else.
	PIDs int64 `json:"pids,omitempty"`
	// PreStart, when not nil, runs to its end before the entrypoint is
	// started; the claim is answered after that, and refused with
	// CodePreStartFailed when it fails.
	PreStart *Hook `json:"preStart,omitempty"`
	// Periodic hooks run beside the entrypoint, until it ends.
	Periodic []Hook `json:"periodic,omitempty"`
	// Session, when not nil, makes this execd that of an isolated session.
	Session *Session `json:"session,omitempty"`
}

// MaxHooks bounds Claim.Periodic.
const MaxHooks = 32

// Hook is a command that runs in the sandbox as its user, with its environment
// and working directory. Its output goes to the entrypoint's log.
type Hook struct {
	// Name and Schedule (package schedule) are those of a periodic hook.
	Name     string   `json:"name,omitempty"`
	Schedule string   `json:"schedule,omitempty"`
	Command  []string `json:"command"`
	// TimeoutSeconds is at least 1. What still runs then is killed.
	TimeoutSeconds int `json:"timeoutSeconds"`
}

// HookRun is how one run of a periodic hook ended.
type HookRun struct {
	// Seq counts the runs of all hooks of a sandbox from 1.
	Seq  int64  `json:"seq"`
	Name string `json:"name"`
	// EndedAt and Millis are when it ended and how long it took.
	EndedAt time.Time `json:"endedAt"`
	Millis  int64     `json:"millis"`
	// Code is the exit code, -1 when it has none.
	Code     int  `json:"code"`
	Signal   int  `json:"signal,omitempty"`
	TimedOut bool `json:"timedOut,omitempty"`
	// Problem says why it could not be started.
	Problem string `json:"problem,omitempty"`
	// Output is the end of what a run printed that failed.
	Output string `json:"output,omitempty"`
}

// ClaimResult answers a successful claim.
type ClaimResult struct {
	// PID is the entrypoint's, as seen inside the sandbox.
	PID int `json:"pid"`
	// PreStartMillis is how long the PreStart hook took.
	PreStartMillis int64 `json:"preStartMillis,omitempty"`
}

// ExitStatus is how the entrypoint ended.
type ExitStatus struct {
	// Code is the exit code, -1 when a signal ended it.
	Code int `json:"code"`
	// Signal is its number, 0 for none.
	Signal int `json:"signal,omitempty"`
	// Running means that the entrypoint has not ended: the answer is Hooks.
	Running bool      `json:"running,omitempty"`
	Hooks   []HookRun `json:"hooks,omitempty"`
}

// Error is the body of every refusal.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Codes of a refused claim.
const (
	CodeEntrypointNotFound      = "ENTRYPOINT_NOT_FOUND"
	CodeEntrypointNotExecutable = "ENTRYPOINT_NOT_EXECUTABLE"
	CodeUserNotFound            = "USER_NOT_FOUND"
	CodeCwd                     = "CWD_UNUSABLE"
	CodeAlreadyClaimed          = "ALREADY_CLAIMED"
	CodePreStartFailed          = "PRE_START_FAILED"
	CodeInvalidHook             = "INVALID_HOOK"
)
