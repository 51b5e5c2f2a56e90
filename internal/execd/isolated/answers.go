package isolated

import "time"

// Statuses of a session. One that was deleted is unknown.
const (
	Active = "active"
	// Dead means that the session's processes have ended, other than by a
	// request. Its files can still be compared and committed.
	Dead = "dead"
)

// Created answers POST /v1/isolated/session.
type Created struct {
	ID        string    `json:"session_id"`
	CreatedAt time.Time `json:"created_at"`
	Settings
}

// State answers GET /v1/isolated/session/{id}.
type State struct {
	Status        string    `json:"status"`
	CreatedAt     time.Time `json:"created_at"`
	LastRunAt     time.Time `json:"last_run_at"`
	IdleRemaining *int64    `json:"idle_remaining_seconds"`
	Settings
}

// Summary is one session of GET /v1/isolated/sessions.
type Summary struct {
	ID            string    `json:"session_id"`
	Status        string    `json:"status"`
	CreatedAt     time.Time `json:"created_at"`
	LastRunAt     time.Time `json:"last_run_at"`
	IdleRemaining *int64    `json:"idle_remaining_seconds"`
}

// List answers GET /v1/isolated/sessions.
type List struct {
	Sessions []Summary `json:"sessions"`
}

// RunRequest is the body of POST …/run.
type RunRequest struct {
	Code       string            `json:"code"`
	Envs       map[string]string `json:"envs"`
	Timeout    *int64            `json:"timeout_seconds"`
	Background bool              `json:"background"`
}

// BackgroundRun answers a run in the background.
type BackgroundRun struct {
	Session   string    `json:"session_id"`
	ID        string    `json:"run_id"`
	StartedAt time.Time `json:"started_at"`
}

// RunStatus answers GET …/runs/{id}.
type RunStatus struct {
	Session    string     `json:"session_id"`
	ID         string     `json:"run_id"`
	Running    bool       `json:"running"`
	ExitCode   *int       `json:"exit_code"`
	Error      string     `json:"error,omitempty"`
	StartedAt  time.Time  `json:"started_at"`
	FinishedAt *time.Time `json:"finished_at"`
}

// Kinds of a Change.
const (
	Added    = "added"
	Modified = "modified"
	Deleted  = "deleted"
)

// Change is one difference between an overlay and what it covers.
type Change struct {
	Path string `json:"path"`
	Kind string `json:"kind"`
	// Type is that of the new state: file, directory, symlink or other; empty
	// when deleted.
	Type string `json:"type,omitempty"`
	Size int64  `json:"size,omitempty"`
	// Replaced marks a directory of which nothing that was there is left.
	Replaced bool `json:"replaced,omitempty"`
}

// Diff answers GET …/diff.
type Diff struct {
	Session string   `json:"session_id"`
	Changes []Change `json:"changes"`
	// Truncated means that there are more changes than are listed.
	Truncated bool `json:"truncated"`
}

// CommitRequest is the body of POST …/commit.
type CommitRequest struct {
	// Paths are the changes to commit, each with all beneath it; none means
	// all.
	Paths []string `json:"paths"`
}

// Skipped is a change that was not committed.
type Skipped struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

// Commit answers POST …/commit.
type Commit struct {
	Session   string    `json:"session_id"`
	Committed int       `json:"committed"`
	Skipped   []Skipped `json:"skipped"`
}
