package sandbox

import (
	"maps"
	"slices"
	"time"

	"github.com/paddock-sandbox/paddock/internal/policy"
)

// State is a sandbox's place in its life. The strings are those of the wire
// contract.
type State string

const (
	// Pending: recorded and being made; the image may still be pulled.
	Pending State = "Pending"
	// Running: the entrypoint was started and execd answers.
	Running State = "Running"
	// Pausing, Paused, Resuming: the freezer's states. Expiry goes on.
	Pausing  State = "Pausing"
	Paused   State = "Paused"
	Resuming State = "Resuming"
	// Stopping: deletion or expiry is taking the sandbox apart.
	Stopping State = "Stopping"
	// Terminated: the entrypoint ended with exit code 0. Only the record and
	// the logs are left.
	Terminated State = "Terminated"
	// Failed: the sandbox could not be made, or ended in any other way.
	Failed State = "Failed"
)

// Ended reports whether nothing of the sandbox runs any more.
func (s State) Ended() bool { return s == Terminated || s == Failed }

// Reasons are the machine-readable half of a Status. Clients treat them as
// opaque; they are stable so that scripts can branch on them.
const (
	ReasonCreating         = "CREATING"
	ReasonPulling          = "IMAGE_PULLING"
	ReasonRunning          = "RUNNING"
	ReasonPausing          = "PAUSING"
	ReasonPaused           = "PAUSED"
	ReasonResuming         = "RESUMING"
	ReasonDeleting         = "DELETING"
	ReasonExpired          = "EXPIRED"
	ReasonExited           = "EXITED"             // entrypoint exit code 0
	ReasonExitedError      = "EXITED_ERROR"       // entrypoint exit code != 0
	ReasonKilled           = "KILLED"             // entrypoint ended by a signal
	ReasonOutOfMemory      = "OUT_OF_MEMORY"      // ended by the kernel's OOM killer
	ReasonImagePullFailed  = "IMAGE_PULL_FAILED"  // pull or unpack failed
	ReasonStartFailed      = "START_FAILED"       // the engine could not make it
	ReasonEntrypointFailed = "ENTRYPOINT_FAILED"  // not found, not executable
	ReasonExecdLost        = "EXECD_LOST"         // PID 1 of the sandbox died
	ReasonHostRebooted     = "HOST_REBOOTED"      // found in the records, not on the host
	ReasonInterrupted      = "CREATE_INTERRUPTED" // server died while creating it
	ReasonPreStartFailed   = "PRE_START_FAILED"   // the preStart hook failed or ran out of time
)

// Status is a state with its explanation.
type Status struct {
	State   State  `json:"state"`
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
	// Code is the contract's error code when the sandbox could not be made.
	Code             string    `json:"code,omitempty"`
	LastTransitionAt time.Time `json:"lastTransitionAt"`
}

// Sandbox is one sandbox's record, as callers see it. Values handed out by the
// Manager are copies: changing one changes nothing else.
type Sandbox struct {
	ID     string `json:"id"`
	Spec   Spec   `json:"spec"`
	Status Status `json:"status"`
	// Entrypoint is the effective argv: the request's, else the image's.
	// Empty until the image is known.
	Entrypoint []string  `json:"entrypoint,omitempty"`
	CreatedAt  time.Time `json:"createdAt"`
	// ExpiresAt is nil for a sandbox that never expires.
	ExpiresAt *time.Time `json:"expiresAt,omitempty"`
	// StartedAt is when the sandbox first became Running; nil when it never did.
	StartedAt *time.Time `json:"startedAt,omitempty"`
	// EndedAt is when the sandbox became Terminated or Failed.
	EndedAt *time.Time `json:"endedAt,omitempty"`
	// Token opens this sandbox's ports through the gateway and is what execd
	// demands of its callers. Secret: never logged, never in list or get.
	Token string `json:"token"`
	// EgressToken opens the egress API, through which the policy is changed.
	// Secret like Token, and another one: whoever may use a sandbox's ports may
	// not change what it reaches.
	EgressToken string `json:"egressToken,omitempty"`
	// PolicyVersion rises by one with each change of Spec.NetworkPolicy.
	PolicyVersion int64 `json:"policyVersion,omitempty"`
	// CreatedVolumes are the named volumes that this create made, kept so that
	// those with DeleteWithSandbox can go with it.
	CreatedVolumes []string `json:"createdVolumes,omitempty"`
	// BootID is the boot of the host in which it was made, to tell a reboot from
	// a lost sandbox.
	BootID string `json:"bootId,omitempty"`
	// Events is what happened to it.
	Events Events `json:"events,omitzero"`
	// HookSeq is the number of the last run of a hook that became an event.
	HookSeq int64 `json:"hookSeq,omitempty"`
	// Revision rises by one with each durable change.
	Revision int64 `json:"revision"`
}

// Clone returns a deep copy, but for what Spec.Clone shares.
func (s *Sandbox) Clone() *Sandbox {
	c := *s
	c.Spec = s.Spec.Clone()
	c.Entrypoint = slices.Clone(s.Entrypoint)
	c.CreatedVolumes = slices.Clone(s.CreatedVolumes)
	c.ExpiresAt = cloned(s.ExpiresAt)
	c.StartedAt = cloned(s.StartedAt)
	c.EndedAt = cloned(s.EndedAt)
	return &c
}

// cloned points to a copy of what p points to; nil for nil.
func cloned[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}

// Spec is what a create asked for, validated and normalised.
type Spec struct {
	// Image is the reference as the caller wrote it.
	Image string `json:"image"`
	// Auth is used for the pull and never stored.
	Auth *RegistryAuth `json:"-"`
	// Platform is nil when the request named none.
	Platform   *Platform         `json:"platform,omitempty"`
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Env        map[string]string `json:"env,omitempty"`
	Limits     Limits            `json:"limits"`
	Volumes    []VolumeMount     `json:"volumes,omitempty"`
	// Timeout is nil for no automatic expiry.
	Timeout    *time.Duration    `json:"timeout,omitempty"`
	Metadata   map[string]string `json:"metadata,omitempty"`
	Extensions map[string]string `json:"extensions,omitempty"`
	// Lifecycle is nil without hooks.
	Lifecycle *Lifecycle `json:"lifecycle,omitempty"`
	// Isolation is how strong the wall is; empty for a container.
	Isolation Isolation `json:"isolation,omitempty"`
	// NetworkPolicy, in normal form, says which destinations it may reach; nil
	// for all public ones. It is never changed, only replaced: copies of the
	// Spec share it.
	NetworkPolicy *policy.Policy `json:"networkPolicy,omitempty"`
	// CredentialProxy lets the host use credentials on its behalf.
	CredentialProxy bool `json:"credentialProxy,omitempty"`
}

// Clone returns a deep copy, Auth included. NetworkPolicy is shared, as it says
// there: it may have thousands of rules, and this is done for every request to a
// port.
func (s *Spec) Clone() Spec {
	c := *s
	c.Auth = cloned(s.Auth)
	c.Platform = cloned(s.Platform)
	c.Entrypoint = slices.Clone(s.Entrypoint)
	c.Env = maps.Clone(s.Env)
	c.Volumes = slices.Clone(s.Volumes)
	c.Timeout = cloned(s.Timeout)
	c.Metadata = maps.Clone(s.Metadata)
	c.Extensions = maps.Clone(s.Extensions)
	c.Lifecycle = s.Lifecycle.Clone()
	return c
}

// RegistryAuth logs in to an image's registry.
type RegistryAuth struct {
	Username string
	Password string
}

// Platform names what an image was built for, in OCI terms.
type Platform struct {
	OS   string `json:"os"`
	Arch string `json:"arch"`
}

// Limits bound a sandbox. Zero means that the engine's default applies.
type Limits struct {
	// CPUMillis is thousandths of one CPU.
	CPUMillis int64 `json:"cpuMillis,omitempty"`
	// MemoryBytes bounds memory; swap is never given.
	MemoryBytes int64 `json:"memoryBytes,omitempty"`
	// PIDs bounds processes and threads, execd's own included.
	PIDs int64 `json:"pids,omitempty"`
	// EphemeralBytes bounds what the sandbox writes to its root filesystem.
	EphemeralBytes int64 `json:"ephemeralBytes,omitempty"`
	// GPUs is a CDI device count ("1") or "all"; empty for none.
	GPUs string `json:"gpus,omitempty"`
}

// VolumeMount is one volume in a sandbox. Exactly one of HostPath and Claim is
// set.
type VolumeMount struct {
	Name string `json:"name"`
	// HostPath is a directory on the host within storage.allowed_host_paths.
	HostPath string `json:"hostPath,omitempty"`
	// Claim is a named volume kept by paddock.
	Claim string `json:"claim,omitempty"`
	// CreateIfMissing makes a missing named volume.
	CreateIfMissing bool `json:"createIfMissing,omitempty"`
	// DeleteWithSandbox removes the named volume with the sandbox, if this
	// create made it.
	DeleteWithSandbox bool   `json:"deleteWithSandbox,omitempty"`
	MountPath         string `json:"mountPath"`
	// SubPath is relative to the volume's root and may not leave it.
	SubPath  string `json:"subPath,omitempty"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}
