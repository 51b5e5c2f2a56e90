package server

import (
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
	"github.com/paddock-sandbox/paddock/internal/schedule"
)

const (
	maxHookName = 64
	// Time-outs of hooks that name none. The protocol has none.
	defaultPreStartTimeout = 5 * time.Minute
	defaultPeriodicTimeout = time.Minute
)

// lifecycle reads the hooks of a create. Unlike elsewhere in a create, unknown
// members are refused (OpenSandbox API).
func (d *decoder) lifecycle(body *value) *sandbox.Lifecycle {
	v := d.object(body, "lifecycle")
	if v == nil {
		return nil
	}
	d.only(v, "preStart", "periodic")
	l := &sandbox.Lifecycle{}
	if h := d.object(v, "preStart"); h != nil {
		d.only(h, "command", "timeoutSeconds")
		hook := d.hook(h, sandbox.MaxPreStartTimeout, defaultPreStartTimeout)
		l.PreStart = &hook
	}
	names := make(map[string]bool)
	for _, item := range d.list(v, "periodic", sandbox.MaxPeriodicHooks) {
		if !d.is(item, kindObject) {
			return nil
		}
		p := d.periodicHook(item)
		if names[p.Name] {
			d.refuse(join(item.path, "name"), "is %s, which another hook is called already.", quote(p.Name))
		}
		names[p.Name] = true
		l.Periodic = append(l.Periodic, p)
	}
	if d.err != nil || l.PreStart == nil && len(l.Periodic) == 0 {
		return nil
	}
	return l
}

func (d *decoder) periodicHook(v *value) sandbox.PeriodicHook {
	d.only(v, "name", "schedule", "command", "timeoutSeconds")
	p := sandbox.PeriodicHook{
		Name:     strings.TrimSpace(d.required(v, "name", bytesRule{max: maxHookName})),
		Schedule: strings.TrimSpace(d.required(v, "schedule", bytesRule{max: schedule.MaxLength})),
		Hook:     d.hook(v, sandbox.MaxPeriodicTimeout, defaultPeriodicTimeout),
	}
	if d.err != nil {
		return p
	}
	if _, err := schedule.Parse(p.Schedule); err != nil {
		d.refuse(join(v.path, "schedule"), "is %s: %v.", quote(p.Schedule), shortError(err))
	}
	return p
}

// maxShownError bounds what an error of a library, which repeats the caller's
// text, adds to a message, in bytes.
const maxShownError = 400

func shortError(err error) string {
	text := err.Error()
	if len(text) > maxShownError {
		text = strings.ToValidUTF8(text[:maxShownError], "") + "…"
	}
	return text
}

// hook reads what both kinds of hooks have.
func (d *decoder) hook(v *value, most, otherwise time.Duration) sandbox.Hook {
	h := sandbox.Hook{Timeout: otherwise}
	if d.err == nil && d.member(v, "command") == nil {
		d.refuse(join(v.path, "command"), "is missing. Give a program and its arguments.")
	}
	h.Command = d.argv(v, "command")
	switch {
	case d.err != nil:
	case len(h.Command) == 0:
		d.refuse(join(v.path, "command"), "is empty; give a program and its arguments.")
	case strings.TrimSpace(h.Command[0]) == "":
		d.refuse(join(v.path, "command")+"[0]", "is blank; it must name a program.")
	}
	if t := d.member(v, "timeoutSeconds"); t != nil {
		h.Timeout = time.Duration(d.whole(t, 1, int64(most/time.Second))) * time.Second
	}
	return h
}
