package server

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func TestLifecycle(t *testing.T) {
	for body, want := range map[string]*sandbox.Lifecycle{
		`null`:                                  nil,
		`{}`:                                    nil,
		`{"preStart":null,"periodic":null}`:     nil,
		`{"periodic":[]}`:                       nil,
		`{"preStart":{"command":["a","","b"]}}`: {PreStart: &sandbox.Hook{Command: []string{"a", "", "b"}, Timeout: 5 * time.Minute}},
		`{"pre_start":{"command":["a"],"timeout_seconds":10800},"periodic":[]}`: {PreStart: &sandbox.Hook{Command: []string{"a"}, Timeout: 3 * time.Hour}},
		`{"periodic":[{"name":" a ","schedule":" @every 2s ","command":["x\n"]},{"name":"b","schedule":"*/5 * * * mon","command":["y"],"timeoutSeconds":300}]}`: {Periodic: []sandbox.PeriodicHook{
			{Name: "a", Schedule: "@every 2s", Hook: sandbox.Hook{Command: []string{"x\n"}, Timeout: time.Minute}},
			{Name: "b", Schedule: "*/5 * * * mon", Hook: sandbox.Hook{Command: []string{"y"}, Timeout: 5 * time.Minute}},
		}},
	} {
		f := start(t)
		f.call("POST", "/v1/sandboxes", with(`"lifecycle":`+body)).is(202, "")
		if got := f.m.creates[0].Spec.Lifecycle; !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", body, got, want)
		}
	}
}

func TestLifecycleRefusals(t *testing.T) {
	periodic := func(members string) string { return `{"periodic":[{` + members + `}]}` }
	const good = `"name":"a","schedule":"@hourly","command":["x"]`
	f := start(t)
	for _, c := range []struct{ body, says string }{
		{`7`, "lifecycle must be an object"},
		{`{"postStop":{}}`, "lifecycle.postStop is not a member"},
		{`{"preStart":[]}`, "lifecycle.preStart must be an object"},
		{`{"preStart":{}}`, "lifecycle.preStart.command is missing"},
		{`{"preStart":{"command":[]}}`, "lifecycle.preStart.command is empty"},
		{`{"preStart":{"command":[" ","x"]}}`, "lifecycle.preStart.command[0] is blank"},
		{`{"preStart":{"command":"make"}}`, "lifecycle.preStart.command must be an array"},
		{`{"preStart":{"command":["a",1]}}`, "lifecycle.preStart.command[1] must be a string"},
		{`{"preStart":{"command":["a\u0000"]}}`, "NUL"},
		{`{"preStart":{"command":["a"],"shell":true}}`, "lifecycle.preStart.shell is not a member"},
		{`{"preStart":{"command":["a"],"timeoutSeconds":0}}`, "lifecycle.preStart.timeoutSeconds is 0; it must be from 1 to 10800"},
		{`{"preStart":{"command":["a"],"timeoutSeconds":10801}}`, "10800"},
		{`{"preStart":{"command":["a"],"timeoutSeconds":"5"}}`, "must be a number"},
		{`{"preStart":{"command":["` + strings.Repeat("a", maxArg+1) + `"]}}`, "bytes long"},
		{`{"periodic":{}}`, "lifecycle.periodic must be an array"},
		{`{"periodic":[1]}`, "lifecycle.periodic[0] must be an object"},
		{`{"periodic":[` + strings.Repeat("{},", 32) + `{}]}`, "at most 32"},
		{periodic(`"schedule":"@hourly","command":["x"]`), "lifecycle.periodic[0].name is missing"},
		{periodic(`"name":"  ","schedule":"@hourly","command":["x"]`), "lifecycle.periodic[0].name is empty"},
		{periodic(`"name":"a\n","schedule":"@hourly","command":["x"]`), "control character"},
		{periodic(`"name":"` + strings.Repeat("a", 65) + `","schedule":"@hourly","command":["x"]`), "at most 64"},
		{periodic(`"name":"a","command":["x"]`), "lifecycle.periodic[0].schedule is missing"},
		{periodic(`"name":"a","schedule":"often","command":["x"]`), `lifecycle.periodic[0].schedule is "often": it must have the five fields`},
		{periodic(`"name":"a","schedule":"0 0 31 2 *","command":["x"]`), "never comes"},
		{periodic(`"name":"a","schedule":"` + strings.Repeat("1,", 120) + `x * * *","command":["x"]`), "five fields"},
		{periodic(`"name":"a","schedule":"@hourly"`), "lifecycle.periodic[0].command is missing"},
		{periodic(good + `,"timeoutSeconds":301`), "from 1 to 300"},
		{periodic(good + `,"cron":true`), "lifecycle.periodic[0].cron is not a member"},
		{`{"periodic":[{` + good + `},{` + strings.Replace(good, `"a"`, `" a"`, 1) + `}]}`, `lifecycle.periodic[1].name is "a", which another`},
	} {
		name := c.body
		if len(name) > 60 {
			name = name[:60]
		}
		t.Run(name, func(t *testing.T) {
			a := f.call("POST", "/v1/sandboxes", with(`"lifecycle":`+c.body))
			a.t = t
			a.is(400, sandbox.CodeInvalidParameter).says(c.says)
		})
	}
	if n := len(f.m.creates); n != 0 {
		t.Errorf("%d of them were created", n)
	}
	// A name that begins with what only the server sets stays refused.
	f.call("POST", "/v1/sandboxes", with(`"env":{"OPENSANDBOX_LIFECYCLE":"{}"}`)).is(400, sandbox.CodeInvalidParameter).says("reserved")
}
