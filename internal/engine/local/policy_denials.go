package local

import (
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

const (
	// denialBuffer is how many denials may wait for the Manager.
	denialBuffer = 256
	// Looking for the process of a connection goes through at most so many
	// processes, descriptors of each, and lines of the list of sockets; and
	// happens so many times a second for all sandboxes.
	maxLookProcs   = 1024
	maxLookFiles   = 512
	maxLookSockets = 8192
	lookRate       = 40
	// lookShare is how many of these one sandbox may cause.
	lookShare = 10
	// lookTime bounds a search while an answer waits for it, and lookLong any
	// other. It stops between two steps, which are system calls on one process.
	lookTime = 3 * time.Millisecond
	lookLong = 50 * time.Millisecond
	// lookAsking is how many searches of answers go on at a time.
	lookAsking = 2
)

// Denials delivers what policies refused.
func (e *Engine) Denials() <-chan sandbox.Denial { return e.denials }

// reportDenials hands on what policies refused until the engine closes. When
// nobody takes them, some are lost.
func (e *Engine) reportDenials() {
	for {
		select {
		case <-e.ctx.Done():
			return
		case d := <-e.enforcer.Denials():
			out := sandbox.Denial{ID: d.Sandbox, At: time.Now(), Protocol: d.Protocol, Name: d.Name, To: d.To,
				Rule: d.Rule, Target: d.Target, Reason: d.Reason, Audit: d.Audit, Process: d.Process}
			if d.Source != 0 && e.looks.take(d.Sandbox) {
				out.Process = e.deniedProcess(d)
			}
			select {
			case e.denials <- out:
			default:
			}
		}
	}
}
