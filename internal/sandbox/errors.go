package sandbox

import (
	"errors"
	"fmt"
	"time"
)

// Kind classes an error by what the caller can do about it. The HTTP surface
// maps each kind to one status; nothing else does.
type Kind int

const (
	// KindInternal: paddock's fault; look in the log.
	KindInternal Kind = iota
	// KindInvalid: the request is wrong; change it.
	KindInvalid
	// KindNotFound: what the request names does not exist.
	KindNotFound
	// KindConflict: not possible in the present state.
	KindConflict
	// KindBusy: a limit is reached; try again after RetryAfter.
	KindBusy
	// KindUnavailable: a thing paddock needs does not answer; try again.
	KindUnavailable
	// KindNotImplemented: part of the contract, not built yet.
	KindNotImplemented
)

// Codes of the wire contract (OpenSandbox API). Codes which there carry the
// name of an engine are under SANDBOX here.
const (
	CodeNotFound             = "SANDBOX::SANDBOX_NOT_FOUND"
	CodeInvalidParameter     = "SANDBOX::INVALID_PARAMETER"
	CodeInvalidEntrypoint    = "SANDBOX::INVALID_ENTRYPOINT"
	CodeInvalidExpiration    = "SANDBOX::INVALID_EXPIRATION"
	CodeInvalidPort          = "SANDBOX::INVALID_PORT"
	CodeInvalidMetadataLabel = "SANDBOX::INVALID_METADATA_LABEL"
	CodeReservedMetadata     = "INVALID_METADATA_LABEL"
	CodeNotRunning           = "SANDBOX::SANDBOX_NOT_RUNNING"
	CodeNotPaused            = "SANDBOX::SANDBOX_NOT_PAUSED"
	CodeInvalidState         = "SANDBOX::INVALID_STATE"
	CodeImageNotFound        = "SANDBOX::IMAGE_NOT_FOUND"
	CodeImageAuth            = "SANDBOX::IMAGE_AUTH_FAILED"
	CodeImageInvalid         = "SANDBOX::INVALID_IMAGE"
	CodeImageInUse           = "SANDBOX::IMAGE_IN_USE"
	CodeImagePullFailed      = "SANDBOX::SANDBOX_IMAGE_PULL_FAILED"
	CodeStartFailed          = "SANDBOX::SANDBOX_START_FAILED"
	CodeDeleteFailed         = "SANDBOX::SANDBOX_DELETE_FAILED"
	CodePauseFailed          = "SANDBOX::SANDBOX_PAUSE_FAILED"
	CodeResumeFailed         = "SANDBOX::SANDBOX_RESUME_FAILED"
	CodeCapacity             = "SANDBOX::CAPACITY_EXHAUSTED"
	CodeIdempotencyConflict  = "SANDBOX::IDEMPOTENCY_KEY_REUSED"
	CodeNotSupported         = "SANDBOX::API_NOT_SUPPORTED"
	CodeInternal             = "SANDBOX::INTERNAL_ERROR"
	CodeVolumeNotFound       = "VOLUME::PVC_NOT_FOUND"
	CodeVolumeInUse          = "VOLUME::IN_USE"
	CodeHostPathNotAllowed   = "VOLUME::HOST_PATH_NOT_ALLOWED"
	CodeHostPathNotFound     = "VOLUME::HOST_PATH_NOT_FOUND"
	CodeInvalidHostPath      = "VOLUME::INVALID_HOST_PATH"
	CodeInvalidSubPath       = "VOLUME::INVALID_SUB_PATH"
	CodeInvalidMountPath     = "VOLUME::INVALID_MOUNT_PATH"
	CodeUnsupportedBackend   = "VOLUME::UNSUPPORTED_BACKEND"
)

// Error is a failure that is meant for the caller: it says what was wrong,
// where, and what to do, and carries the contract's code.
type Error struct {
	Kind Kind
	Code string
	// Message is a full sentence for a person. It holds no secret.
	Message string
	// RetryAfter is set for KindBusy and KindUnavailable.
	RetryAfter time.Duration
	// Reason, when set, is the Status reason of a sandbox that fails with this
	// error.
	Reason string
	// Err is the cause, for the log. It is not shown to the caller.
	Err error
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error. A trailing error operand formatted with %w is kept as
// its cause.
func Errorf(kind Kind, code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Code: code, Message: err.Error(), Err: errors.Unwrap(err)}
}

// AsError returns err as an *Error: itself when it is one, else an internal
// error that wraps it.
func AsError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Kind: KindInternal, Code: CodeInternal, Message: "internal error", Err: err}
}

// ErrNotFound is the error of every operation on an id that does not exist.
func ErrNotFound(id string) *Error {
	return Errorf(KindNotFound, CodeNotFound, "Sandbox %q was not found. It may have been deleted or have expired.", id)
}
