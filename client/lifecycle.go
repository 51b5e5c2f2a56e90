package client

import (
	"fmt"
	"time"
)

// Lifecycle are commands that a sandbox runs by itself, as its user. What they
// print goes to the entrypoint's log.
type Lifecycle struct {
	// PreStart runs to its end before the entrypoint is started; the sandbox
	// fails when it does.
	PreStart *Hook
	// Periodic hooks run by their schedules until the entrypoint ends.
	Periodic []PeriodicHook
}

// Hook is a command, of whole words without a shell, that is killed when it
// takes longer than Timeout: whole seconds, 0 for the server's default.
type Hook struct {
	Command []string
	Timeout time.Duration
}

// PeriodicHook is a hook with a unique name and a schedule: five fields of cron
// in UTC, a name such as "@hourly", or "@every 30s".
type PeriodicHook struct {
	Name     string
	Schedule string
	Hook
}

// Their form in a request.
type (
	hookBody struct {
		Name           string   `json:"name,omitempty"`
		Schedule       string   `json:"schedule,omitempty"`
		Command        []string `json:"command"`
		TimeoutSeconds int64    `json:"timeoutSeconds,omitempty"`
	}
	lifecycleBody struct {
		PreStart *hookBody  `json:"preStart,omitempty"`
		Periodic []hookBody `json:"periodic,omitempty"`
	}
)

func (h *Hook) body() (b hookBody, err error) {
	if h.Timeout < 0 || h.Timeout%time.Second != 0 {
		return b, fmt.Errorf("the timeout %s of a hook is not a whole number of seconds", h.Timeout)
	}
	return hookBody{Command: h.Command, TimeoutSeconds: int64(h.Timeout / time.Second)}, nil
}

func (l *Lifecycle) body() (*lifecycleBody, error) {
	if l == nil {
		return nil, nil
	}
	b := &lifecycleBody{}
	if l.PreStart != nil {
		h, err := l.PreStart.body()
		if err != nil {
			return nil, err
		}
		b.PreStart = &h
	}
	for i := range l.Periodic {
		h, err := l.Periodic[i].body()
		if err != nil {
			return nil, err
		}
		h.Name, h.Schedule = l.Periodic[i].Name, l.Periodic[i].Schedule
		b.Periodic = append(b.Periodic, h)
	}
	return b, nil
}
