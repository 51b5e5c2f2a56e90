package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

const fullCreate = `{
	"image": {"uri": "registry.example/team/app:1", "auth": {"username": "u", "password": "p w"}},
	"platform": {"os": " Linux ", "arch": "ARM64"},
	"timeout": 600,
	"entrypoint": ["sh", "-c", "echo a\n\techo b"],
	"env": {"A": "1", "EMPTY": "", "NULL": null, "ünï": "ø\n"},
	"resourceLimits": {"cpu": "500m", "memory": "2Gi", "pids": "100", "ephemeral-storage": "1g", "gpu": "all"},
	"resourceRequests": {"cpu": "0.25", "memory": "512Mi"},
	"metadata": {"team": "a", "example.com/stage": "", "v": "1.0"},
	"volumes": [
		{"name": "data", "pvc": {"claimName": "my-data", "deleteOnSandboxTermination": true, "storageClass": null, "storage": "10Gi", "accessModes": ["ReadWriteOnce"]}, "mountPath": "/data/", "subPath": "a/./b"},
		{"name": "src", "host": {"path": "/srv/src"}, "mountPath": "/src", "readOnly": true}
	],
	"extensions": {"opensandbox.extensions.x": "1", "other": "forgotten", "access.renew.extend.seconds": "300", "poolRef": " "},
	"networkPolicy": null, "credentialProxy": {"enabled": false}, "secureAccess": false, "snapshotId": " ", "templateId": null,
	"lifecycle": null, "somethingNew": {"deep": [1, 2, 3]}
}`

func TestCreate(t *testing.T) {
	f := start(t)
	f.m.state = sandbox.Pending
	a := f.call("POST", "/v1/sandboxes", fullCreate).is(http.StatusAccepted, "")

	timeout := 10 * time.Minute
	want := &sandbox.Spec{
		Image: "registry.example/team/app:1", Auth: &sandbox.RegistryAuth{Username: "u", Password: "p w"},
		Platform: &sandbox.Platform{OS: "linux", Arch: "arm64"}, Timeout: &timeout,
		Entrypoint: []string{"sh", "-c", "echo a\n\techo b"},
		Env:        map[string]string{"A": "1", "EMPTY": "", "ünï": "ø\n"},
		Limits:     sandbox.Limits{CPUMillis: 500, MemoryBytes: 2 << 30, PIDs: 100, EphemeralBytes: 1e9, GPUs: "all"},
		Metadata:   map[string]string{"team": "a", "example.com/stage": "", "v": "1.0"},
		Volumes: []sandbox.VolumeMount{
			{Name: "data", Claim: "my-data", CreateIfMissing: true, DeleteWithSandbox: true, MountPath: "/data", SubPath: "a/b"},
			{Name: "src", HostPath: "/srv/src", MountPath: "/src", ReadOnly: true},
		},
		Extensions: map[string]string{"opensandbox.extensions.x": "1", "access.renew.extend.seconds": "300"},
	}
	if got := f.m.creates[0].Spec; !reflect.DeepEqual(got, want) {
		t.Errorf("spec = %+v\nwant   %+v", got, want)
	}
	wantBody := `{"createdAt":"2030-01-02T03:04:05.678901Z","entrypoint":["sh","-c","echo a\n\techo b"],"expiresAt":"2030-01-02T03:14:05.678901Z",` +
		`"extensions":{"opensandbox.extensions.x":"1"},"id":"sb-1","metadata":{"example.com/stage":"","team":"a","v":"1.0"},` +
		`"platform":{"arch":"arm64","os":"linux"},"status":{"lastTransitionAt":"2030-01-02T03:04:05.678901Z","state":"Pending"}}` + "\n"
	if a.body != wantBody {
		t.Errorf("body = %s\nwant   %s", a.body, wantBody)
	}
	if got := a.header.Get("Location"); got != "/v1/sandboxes/sb-1" {
		t.Errorf("Location = %q", got)
	}
	if got := f.call("POST", "/sandboxes", fullCreate).header.Get("Location"); got != "/sandboxes/sb-2" {
		t.Errorf("Location without the prefix = %q", got)
	}
	if strings.Contains(f.log.String(), "p w") {
		t.Error("the registry password is in the log")
	}
}

func TestCreateWithLittle(t *testing.T) {
	f := start(t)
	// What the Python SDK sends for a create with nothing but an image.
	a := f.call("POST", "/v1/sandboxes", `{"image":{"uri":"python:3.11"},"timeout":600,"resourceLimits":{"cpu":"1","memory":"2Gi"},"env":{},"metadata":{},
		"entrypoint":["tail","-f","/dev/null"],"extensions":{},"secureAccess":true,"volumes":null}`).is(202, "")
	if a.member("metadata") != nil || a.member("extensions") != nil || a.member("platform") != nil {
		t.Errorf("empty members are shown: %s", a.body)
	}
	a = f.call("POST", "/v1/sandboxes", `{"image":{"uri":"x"}}`).is(202, "")
	if e, ok := a.member("entrypoint").([]any); !ok || len(e) != 0 {
		t.Errorf("entrypoint = %v, want []", a.member("entrypoint"))
	}
	if a.member("expiresAt") != nil {
		t.Errorf("expiresAt is shown without a timeout: %s", a.body)
	}
}

func TestSnakeCase(t *testing.T) {
	f := start(t)
	f.call("POST", "/v1/sandboxes", `{"image":{"uri":"x"},"resource_limits":{"cpu":"2"},
		"volumes":[{"name":"a","pvc":{"claim_name":"c","create_if_not_exists":false},"mount_path":"/m","read_only":true,"sub_path":"s"}]}`).is(202, "")
	spec := f.m.creates[0].Spec
	want := sandbox.VolumeMount{Name: "a", Claim: "c", MountPath: "/m", SubPath: "s", ReadOnly: true}
	if spec.Limits.CPUMillis != 2000 || len(spec.Volumes) != 1 || spec.Volumes[0] != want {
		t.Errorf("spec = %+v", spec)
	}
	f.call("POST", "/v1/sandboxes", `{"image":{"uri":"x"},"snapshot_id":"s"}`).is(400, sandbox.CodeNotSupported)
	f.call("POST", "/v1/sandboxes", `{"image":{"uri":"x"},"resource_limits":{},"resourceLimits":{}}`).is(400, sandbox.CodeInvalidParameter).says("resourceLimits", "twice")
}

// refusals are bodies that must be refused, with the code and words of the
// message.
var refusals = []struct {
	body, code string
	says       []string
}{
	{`{}`, sandbox.CodeInvalidParameter, []string{"image is missing"}},
	{`{"image":null}`, sandbox.CodeInvalidParameter, []string{"image is missing"}},
	{`{"image":{}}`, sandbox.CodeInvalidParameter, []string{"image.uri is missing"}},
	{`{"image":{"uri":""}}`, sandbox.CodeInvalidParameter, []string{"image.uri is empty"}},
	{`{"image":{"uri":" \t"}}`, sandbox.CodeInvalidParameter, []string{"image.uri"}},
	{`{"image":{"uri":"a\nb"}}`, sandbox.CodeInvalidParameter, []string{"image.uri", "control"}},
	{`{"image":{"uri":"a\u0000b"}}`, sandbox.CodeInvalidParameter, []string{"image.uri", "NUL"}},
	{`{"image":{"uri":"` + strings.Repeat("a", 1025) + `"}}`, sandbox.CodeInvalidParameter, []string{"image.uri", "1025", "1024"}},
	{`{"image":{"uri":"x","auth":{"username":"u"}}}`, sandbox.CodeInvalidParameter, []string{"image.auth.password is missing"}},
	{`{"image":{"uri":"x","auth":{"password":"p"}}}`, sandbox.CodeInvalidParameter, []string{"image.auth.username is missing"}},
	{`{"image":{"uri":"x","auth":{"username":"u","password":"p","token":"t"}}}`, sandbox.CodeInvalidParameter, []string{"image.auth.token", "username, password"}},

	{with(`"platform":{}`), sandbox.CodeInvalidParameter, []string{"platform.os is missing"}},
	{with(`"platform":{"os":"linux"}`), sandbox.CodeInvalidParameter, []string{"platform.arch is missing"}},
	{with(`"platform":{"os":"windows","arch":"amd64"}`), sandbox.CodeNotSupported, []string{"platform.os", "windows"}},
	{with(`"platform":{"os":"plan9","arch":"amd64"}`), sandbox.CodeInvalidParameter, []string{"platform.os", `"plan9"`, "linux"}},
	{with(`"platform":{"os":"linux","arch":"x86_64"}`), sandbox.CodeInvalidParameter, []string{"platform.arch", `"x86_64"`, "amd64"}},

	{with(`"timeout":59`), sandbox.CodeInvalidParameter, []string{"timeout is 59", "60"}},
	{with(`"timeout":0`), sandbox.CodeInvalidParameter, []string{"timeout is 0"}},
	{with(`"timeout":-1`), sandbox.CodeInvalidParameter, []string{"timeout is -1"}},
	{with(`"timeout":60.5`), sandbox.CodeInvalidParameter, []string{"timeout is 60.5", "whole"}},
	{with(`"timeout":1e300`), sandbox.CodeInvalidParameter, []string{"timeout"}},
	{with(`"timeout":99999999999999999999`), sandbox.CodeInvalidParameter, []string{"timeout"}},
	{with(`"timeout":"600"`), sandbox.CodeInvalidParameter, []string{"timeout must be a number, not a string"}},

	{with(`"entrypoint":[]`), sandbox.CodeInvalidEntrypoint, []string{"entrypoint is empty"}},
	{with(`"entrypoint":[""]`), sandbox.CodeInvalidEntrypoint, []string{"entrypoint[0]"}},
	{with(`"entrypoint":["sh","a\u0000"]`), sandbox.CodeInvalidParameter, []string{"entrypoint[1]", "NUL"}},
	{with(`"entrypoint":["sh",1]`), sandbox.CodeInvalidParameter, []string{"entrypoint[1] must be a string, not a number (1)"}},
	{with(`"entrypoint":["sh",null]`), sandbox.CodeInvalidParameter, []string{"entrypoint[1] must be a string, not null"}},
	{with(`"entrypoint":["` + strings.Repeat("a", 128<<10) + `"]`), sandbox.CodeInvalidParameter, []string{"entrypoint[0]"}},

	{with(`"env":{"":"x"}`), sandbox.CodeInvalidParameter, []string{"env", "without a name"}},
	{with(`"env":{"A=B":"x"}`), sandbox.CodeInvalidParameter, []string{"env", `"A=B"`}},
	{with(`"env":{"A\u0000":"x"}`), sandbox.CodeInvalidParameter, []string{"env"}},
	{with(`"env":{"A":"x\u0000"}`), sandbox.CodeInvalidParameter, []string{"env.A", "NUL"}},
	{with(`"env":{"A":1}`), sandbox.CodeInvalidParameter, []string{"env.A must be a string"}},
	{with(`"env":{"SECRET":["hunter2"]}`), sandbox.CodeInvalidParameter, []string{"env.SECRET must be a string, not an array"}},
	{with(`"env":{"OPENSANDBOX_LIFECYCLE":"x"}`), sandbox.CodeInvalidParameter, []string{"OPENSANDBOX_LIFECYCLE", "reserved"}},
	{with(`"env":{"OPENSANDBOX_LIFECYCLE":null}`), sandbox.CodeInvalidParameter, []string{"reserved"}},
	{with(`"env":{"OPENSANDBOX_EGRESS_LOG_LEVEL":"x"}`), sandbox.CodeNotSupported, []string{"OPENSANDBOX_EGRESS_LOG_LEVEL"}},
	{with(`"env":{"A":"` + strings.Repeat("a", 128<<10) + `"}`), sandbox.CodeInvalidParameter, []string{"env.A"}},

	{with(`"resourceLimits":{"cpu":"0"}`), sandbox.CodeInvalidParameter, []string{"resourceLimits.cpu", `"0"`}},
	{with(`"resourceLimits":{"cpu":"-1"}`), sandbox.CodeInvalidParameter, []string{"resourceLimits.cpu"}},
	{with(`"resourceLimits":{"cpu":2}`), sandbox.CodeInvalidParameter, []string{"resourceLimits.cpu must be a string, not a number (2)"}},
	{with(`"resourceLimits":{"cpu":null}`), sandbox.CodeInvalidParameter, []string{"resourceLimits.cpu", "not null"}},
	{with(`"resourceLimits":{"memory":"1.5Gi"}`), sandbox.CodeInvalidParameter, []string{"resourceLimits.memory", "1.5Gi", "1536Mi"}},
	{with(`"resourceLimits":{"memory":"lots"}`), sandbox.CodeInvalidParameter, []string{"resourceLimits.memory", "lots"}},
	{with(`"resourceLimits":{"gpu":"0"}`), sandbox.CodeInvalidParameter, []string{"resourceLimits.gpu"}},
	{with(`"resourceLimits":{"pids":"many"}`), sandbox.CodeInvalidParameter, []string{"resourceLimits.pids"}},
	{with(`"resourceLimits":{"disk":"1Gi"}`), sandbox.CodeInvalidParameter, []string{"resourceLimits.disk", "cpu, memory"}},
	{with(`"resourceLimits":{"cpu":"1"},"resourceRequests":{"cpu":"2"}`), sandbox.CodeInvalidParameter, []string{"resourceRequests.cpu", "resourceLimits.cpu"}},
	{with(`"resourceRequests":{"nvidia.com/gpu":"1"}`), sandbox.CodeInvalidParameter, []string{`resourceRequests["nvidia.com/gpu"]`}},

	{with(`"metadata":{"a b":"x"}`), sandbox.CodeInvalidMetadataLabel, []string{"metadata", `"a b"`}},
	{with(`"metadata":{"":"x"}`), sandbox.CodeInvalidMetadataLabel, []string{"metadata"}},
	{with(`"metadata":{"a":"x y"}`), sandbox.CodeInvalidMetadataLabel, []string{"metadata", `"x y"`, `"a"`}},
	{with(`"metadata":{"a":1}`), sandbox.CodeInvalidParameter, []string{"metadata.a must be a string"}},
	{with(`"metadata":{"opensandbox.io/x":"1"}`), sandbox.CodeInvalidMetadataLabel, []string{"reserved"}},
	{with(`"metadata":{"Example.com/x":"1"}`), sandbox.CodeInvalidMetadataLabel, []string{"Example.com/x"}},
	{with(`"metadata":{"a":"` + strings.Repeat("a", 64) + `"}`), sandbox.CodeInvalidMetadataLabel, []string{"63"}},
	{with(`"metadata":{"` + strings.Repeat("a", 64) + `":""}`), sandbox.CodeInvalidMetadataLabel, []string{"63"}},

	{with(`"extensions":{"a":1}`), sandbox.CodeInvalidParameter, []string{"extensions.a must be a string"}},
	{with(`"extensions":{"poolRef":"p"}`), "SANDBOX::UNSUPPORTED_POOL_REF", []string{"extensions.poolRef", `"p"`}},
	{with(`"extensions":{"poolRef":"*"}`), "SANDBOX::UNSUPPORTED_POOL_REF", nil},
	{with(`"extensions":{"access.renew.extend.seconds":""}`), sandbox.CodeInvalidParameter, []string{"300", "86400"}},
	{with(`"extensions":{"access.renew.extend.seconds":"299"}`), sandbox.CodeInvalidParameter, []string{`"299"`}},
	{with(`"extensions":{"access.renew.extend.seconds":"86401"}`), sandbox.CodeInvalidParameter, nil},
	{with(`"extensions":{"access.renew.extend.seconds":"+300"}`), sandbox.CodeInvalidParameter, nil},
	{with(`"extensions":{"access.renew.extend.seconds":"3e2"}`), sandbox.CodeInvalidParameter, nil},
	{with(`"extensions":{"paddock.isolation":"vm"}`), sandbox.CodeInvalidParameter, []string{`extensions["paddock.isolation"]`, `"vm"`, `"container" or "gvisor"`}},
	{with(`"extensions":{"paddock.isolation":""}`), sandbox.CodeInvalidParameter, []string{`"container" or "gvisor"`}},
	{with(`"extensions":{"bootstrap.execd.isolation":"enable"}`), sandbox.CodeNotSupported, []string{"bootstrap.execd.isolation"}},

	{with(`"networkPolicy":[]`), sandbox.CodeInvalidParameter, []string{"networkPolicy must be an object"}},
	{with(`"networkPolicy":{"default":"deny"}`), sandbox.CodeInvalidParameter, []string{"networkPolicy.default", "defaultAction, egress"}},
	{with(`"networkPolicy":{"defaultAction":"maybe"}`), sandbox.CodeInvalidParameter, []string{"networkPolicy.defaultAction", `"maybe"`, "allow or deny"}},
	{with(`"networkPolicy":{"egress":[{"action":"allow","target":"a.example"},{"action":"allow","target":"https://b.example/"}]}`), sandbox.CodeInvalidParameter, []string{"networkPolicy.egress[1].target", "URL"}},
	{with(`"networkPolicy":{"egress":[{"action":"allow"}]}`), sandbox.CodeInvalidParameter, []string{"networkPolicy.egress[0].target is missing"}},
	{with(`"networkPolicy":{"egress":[{"target":"a.example"}]}`), sandbox.CodeInvalidParameter, []string{"networkPolicy.egress[0].action is missing"}},
	{with(`"networkPolicy":{"egress":[{"action":"allow","target":"a.example","http":{"paths":["a"]}}]}`), sandbox.CodeInvalidParameter, []string{"networkPolicy.egress[0].http.paths[0]"}},
	{with(`"credentialProxy":{"enabled":true}`), sandbox.CodeInvalidParameter, []string{"credentialProxy.enabled", "networkPolicy"}},
	{with(`"credentialProxy":{"enabled":true},"networkPolicy":{}`), sandbox.CodeNotSupported, []string{"credentialProxy.enabled"}},
	{with(`"credentialProxy":{"enabled":1}`), sandbox.CodeInvalidParameter, []string{"credentialProxy.enabled must be a boolean, not a number (1)"}},
	{with(`"credentialProxy":{"on":true}`), sandbox.CodeInvalidParameter, []string{"credentialProxy.on", "enabled"}},
	{with(`"secureAccess":"yes"`), sandbox.CodeInvalidParameter, []string{"secureAccess must be a boolean"}},
	{with(`"snapshotId":"s"`), sandbox.CodeNotSupported, []string{"snapshotId"}},
	{with(`"snapshotId":7`), sandbox.CodeInvalidParameter, []string{"snapshotId must be a string"}},
	{with(`"templateId":"t"`), sandbox.CodeNotSupported, []string{"templateId"}},

	{with(`"volumes":[1]`), sandbox.CodeInvalidParameter, []string{"volumes[0] must be an object"}},
	{volume(`"mountPath":"/m","pvc":{"claimName":"c"}`), sandbox.CodeInvalidParameter, []string{"volumes[0].name is missing"}},
	{volume(`"name":"A","mountPath":"/m","pvc":{"claimName":"c"}`), codeVolumeName, []string{"volumes[0].name", `"A"`}},
	{volume(`"name":"-a","mountPath":"/m","pvc":{"claimName":"c"}`), codeVolumeName, nil},
	{volume(`"name":"` + strings.Repeat("a", 64) + `","mountPath":"/m","pvc":{"claimName":"c"}`), codeVolumeName, []string{"63"}},
	{volume(`"name":"a","pvc":{"claimName":"c"}`), sandbox.CodeInvalidParameter, []string{"volumes[0].mountPath is missing"}},
	{volume(`"name":"a","mountPath":"/m"`), codeVolumeBackend, []string{"volumes[0]", "host", "pvc"}},
	{volume(`"name":"a","mountPath":"/m","pvc":{"claimName":"c"},"host":{"path":"/x"}`), codeVolumeBackend, []string{"two"}},
	{volume(`"name":"a","mountPath":"/m","ossfs":{"bucket":"b"}`), sandbox.CodeUnsupportedBackend, []string{"volumes[0].ossfs"}},
	{volume(`"name":"a","mountPath":"/m","pvc":{}`), sandbox.CodeInvalidParameter, []string{"volumes[0].pvc.claimName is missing"}},
	{volume(`"name":"a","mountPath":"/m","pvc":{"claimName":"A_b"}`), codeClaimName, []string{"volumes[0].pvc.claimName", `"A_b"`}},
	{volume(`"name":"a","mountPath":"/m","pvc":{"claimName":"../x"}`), codeClaimName, nil},
	{volume(`"name":"a","mountPath":"/m","pvc":{"claimName":"c","storage":"ten"}`), sandbox.CodeInvalidParameter, []string{"volumes[0].pvc.storage"}},
	{volume(`"name":"a","mountPath":"/m","pvc":{"claimName":"c","createIfNotExists":"no"}`), sandbox.CodeInvalidParameter, []string{"volumes[0].pvc.createIfNotExists must be a boolean"}},
	{volume(`"name":"a","mountPath":"/m","host":{}`), sandbox.CodeInvalidParameter, []string{"volumes[0].host.path is missing"}},
	{volume(`"name":"a","mountPath":"/m","host":{"path":"x"}`), sandbox.CodeInvalidHostPath, []string{"volumes[0].host.path"}},
	{volume(`"name":"a","mountPath":"/m","host":{"path":"C:\\x"}`), sandbox.CodeInvalidHostPath, nil},
	{volume(`"name":"a","mountPath":"/m","host":{"path":"/a/../b"}`), sandbox.CodeInvalidHostPath, nil},
	{volume(`"name":"a","mountPath":"/m","host":{"path":"/a//b"}`), sandbox.CodeInvalidHostPath, nil},
	{volume(`"name":"a","mountPath":"/m","host":{"path":"/a/"}`), sandbox.CodeInvalidHostPath, nil},
	{volume(`"name":"a","mountPath":"m","pvc":{"claimName":"c"}`), sandbox.CodeInvalidMountPath, []string{"volumes[0].mountPath"}},
	{volume(`"name":"a","mountPath":"/","pvc":{"claimName":"c"}`), sandbox.CodeInvalidMountPath, []string{"root"}},
	{volume(`"name":"a","mountPath":"/x/../proc","pvc":{"claimName":"c"}`), sandbox.CodeInvalidMountPath, []string{".."}},
	{volume(`"name":"a","mountPath":"//proc/./","pvc":{"claimName":"c"}`), sandbox.CodeInvalidMountPath, []string{"/proc"}},
	{volume(`"name":"a","mountPath":"/dev/shm","pvc":{"claimName":"c"}`), sandbox.CodeInvalidMountPath, []string{"/dev"}},
	{volume(`"name":"a","mountPath":"/m\u0000","pvc":{"claimName":"c"}`), sandbox.CodeInvalidParameter, []string{"volumes[0].mountPath"}},
	{volume(`"name":"a","mountPath":"/` + strings.Repeat("a", 256) + `","pvc":{"claimName":"c"}`), sandbox.CodeInvalidMountPath, []string{"255"}},
	{volume(`"name":"a","mountPath":"/m","pvc":{"claimName":"c"},"subPath":"/abs"`), sandbox.CodeInvalidSubPath, []string{"volumes[0].subPath"}},
	{volume(`"name":"a","mountPath":"/m","pvc":{"claimName":"c"},"subPath":"a/../../b"`), sandbox.CodeInvalidSubPath, nil},
	{with(`"volumes":[{"name":"a","mountPath":"/m","pvc":{"claimName":"c"}},{"name":"a","mountPath":"/n","pvc":{"claimName":"c"}}]`), codeVolumeTwice, []string{"volumes[1].name"}},
	{with(`"volumes":[{"name":"a","mountPath":"/m","pvc":{"claimName":"c"}},{"name":"b","mountPath":"/m/","pvc":{"claimName":"c"}}]`), sandbox.CodeInvalidMountPath, []string{"volumes[1].mountPath"}},
	{with(`"volumes":[` + strings.Repeat(`{},`, 64) + `{}]`), sandbox.CodeInvalidParameter, []string{"volumes has 65 items", "64"}},

	// JSON itself.
	{``, sandbox.CodeInvalidParameter, []string{"empty"}},
	{` `, sandbox.CodeInvalidParameter, []string{"empty"}},
	{`null`, sandbox.CodeInvalidParameter, []string{"The body must be an object, not null"}},
	{`[]`, sandbox.CodeInvalidParameter, []string{"not an array"}},
	{`"x"`, sandbox.CodeInvalidParameter, []string{"not a string"}},
	{`{"image":`, sandbox.CodeInvalidParameter, []string{"not complete"}},
	{"{\n  \"image\": nope}", sandbox.CodeInvalidParameter, []string{"line 2"}},
	{with(`"timeout":NaN`), sandbox.CodeInvalidParameter, []string{"not valid JSON"}},
	{with(`"timeout":Infinity`), sandbox.CodeInvalidParameter, nil},
	{with(`"timeout":0600`), sandbox.CodeInvalidParameter, nil},
	{with(`"timeout":600,`), sandbox.CodeInvalidParameter, nil},
	{with(`"timeout":600`) + `{}`, sandbox.CodeInvalidParameter, []string{"after the end"}},
	{with(`"timeout":600`) + `x`, sandbox.CodeInvalidParameter, []string{"after the end"}},
	{with(`"timeout":600,"timeout":700`), sandbox.CodeInvalidParameter, []string{"timeout occurs twice"}},
	{with(`"env":{"A":"1","A":"2"}`), sandbox.CodeInvalidParameter, []string{"env.A occurs twice"}},
	{with("\"env\":{\"A\":\"\xff\"}"), sandbox.CodeInvalidParameter, []string{"UTF-8"}},
	{with(`"x":` + strings.Repeat("[", 40) + strings.Repeat("]", 40)), sandbox.CodeInvalidParameter, []string{"nested"}},
	{with(`"x":[` + strings.Repeat("0,", 40_000) + `0]`), sandbox.CodeInvalidParameter, []string{"values"}},
}

func with(members string) string { return `{"image":{"uri":"x"},` + members + `}` }

func volume(members string) string { return with(`"volumes":[{` + members + `}]`) }

func TestRefusals(t *testing.T) {
	f := start(t)
	for _, c := range refusals {
		name := c.body
		if len(name) > 80 {
			name = name[:80]
		}
		t.Run(name, func(t *testing.T) {
			a := f.call("POST", "/v1/sandboxes", c.body, "Content-Type", "application/json")
			a.t = t
			a.is(400, c.code).says(c.says...)
			if strings.Contains(a.body, "hunter2") {
				t.Errorf("a secret is shown: %s", a.body)
			}
		})
	}
	if n := len(f.m.creates); n != 0 {
		t.Errorf("%d of them were created", n)
	}
}

// Every member of every object of a create, with every type of value but its
// own.
func TestEveryMemberRefusesOtherTypes(t *testing.T) {
	members := map[string]string{
		`{"image":%s}`:                              "object",
		`{"image":{"uri":%s}}`:                      "string",
		`{"image":{"uri":"x","auth":%s}}`:           "object",
		with(`"platform":%s`):                       "object",
		with(`"platform":{"os":%s,"arch":"amd64"}`): "string",
		with(`"platform":{"os":"linux","arch":%s}`): "string",
		with(`"timeout":%s`):                        "number",
		with(`"entrypoint":%s`):                     "array",
		with(`"entrypoint":[%s]`):                   "string",
		with(`"env":%s`):                            "object",
		with(`"env":{"A":%s}`):                      "string",
		with(`"resourceLimits":%s`):                 "object",
		with(`"resourceLimits":{"memory":%s}`):      "string",
		with(`"resourceRequests":%s`):               "object",
		with(`"metadata":%s`):                       "object",
		with(`"metadata":{"a":%s}`):                 "string",
		with(`"volumes":%s`):                        "array",
		with(`"volumes":[%s]`):                      "object",
		volume(`"name":%s`):                         "string",
		volume(`"name":"a","pvc":%s`):               "object",
		volume(`"name":"a","pvc":{"claimName":%s}`): "string",
		volume(`"name":"a","pvc":{"claimName":"c","deleteOnSandboxTermination":%s}`): "boolean",
		volume(`"name":"a","pvc":{"claimName":"c","accessModes":%s}`):                "array",
		volume(`"name":"a","pvc":{"claimName":"c","storage":%s}`):                    "string",
		volume(`"name":"a","pvc":{"claimName":"c","storageClass":%s}`):               "string",
		volume(`"name":"a","host":%s`):                                               "object",
		volume(`"name":"a","host":{"path":%s}`):                                      "string",
		volume(`"name":"a","pvc":{"claimName":"c"},"mountPath":%s`):                  "string",
		volume(`"name":"a","pvc":{"claimName":"c"},"mountPath":"/m","subPath":%s`):   "string",
		volume(`"name":"a","readOnly":%s`):                                           "boolean",
		with(`"extensions":%s`):                                                      "object",
		with(`"extensions":{"k":%s}`):                                                "string",
		with(`"networkPolicy":%s`):                                                   "object",
		with(`"credentialProxy":%s`):                                                 "object",
		with(`"secureAccess":%s`):                                                    "boolean",
		with(`"snapshotId":%s`):                                                      "string",
		with(`"templateId":%s`):                                                      "string",
		with(`"lifecycle":%s`):                                                       "object",
		with(`"lifecycle":{"preStart":%s}`):                                          "object",
		with(`"lifecycle":{"preStart":{"command":%s}}`):                              "array",
		with(`"lifecycle":{"preStart":{"command":["a"],"timeoutSeconds":%s}}`):       "number",
		with(`"lifecycle":{"periodic":[%s]}`):                                        "object",
		with(`"lifecycle":{"periodic":[{"name":%s}]}`):                               "string",
		with(`"lifecycle":{"periodic":[{"name":"a","schedule":%s}]}`):                "string",
	}
	values := map[string]string{"object": `{"z":1}`, "array": `[[]]`, "string": `"text"`, "number": `77`, "boolean": `true`}
	f := start(t)
	for body, want := range members {
		for kind, v := range values {
			if kind == want {
				continue
			}
			a := f.call("POST", "/v1/sandboxes", fmt.Sprintf(body, v))
			a.is(400, sandbox.CodeInvalidParameter)
			if !strings.Contains(a.body, " must be a") || !strings.Contains(a.body, ", not a") {
				t.Errorf("%s with %s: %s", body, v, a.body)
			}
		}
	}
}

func TestBodyTransport(t *testing.T) {
	f := start(t, func(o *Options) { o.Limits.Body = 2000 })
	big := with(`"x":"` + strings.Repeat("a", 2000) + `"`)
	f.call("POST", "/v1/sandboxes", big).is(413, codeTooLarge).says("2000")
	f.call("POST", "/v1/sandboxes", big, "Transfer-Encoding", "chunked").is(413, codeTooLarge)
	ok := with(`"timeout":60`)
	for ct, status := range map[string]int{
		"application/json": 202, "Application/JSON; charset=UTF-8": 202, "": 415, "text/plain": 415,
		"application/x-www-form-urlencoded": 415, "application/json; charset=latin1": 415, "application/jsonx": 415, ";": 415,
	} {
		if a := f.call("POST", "/v1/sandboxes", ok, "Content-Type", ct); a.status != status {
			t.Errorf("Content-Type %q: %d %s", ct, a.status, a.body)
		} else if status == 415 {
			a.is(415, codeMediaType)
		}
	}
	f.call("POST", "/v1/sandboxes", ok, "Content-Encoding", "gzip").is(415, codeMediaType)
}

func TestTimeoutBound(t *testing.T) {
	f := start(t, func(o *Options) { o.MaxTimeout = time.Hour })
	for text, status := range map[string]int{"60": 202, "60.0": 202, "6e1": 202, "3600": 202, "3601": 400, "null": 202} {
		f.call("POST", "/v1/sandboxes", with(`"timeout":`+text)).is(status, "")
	}
	f.call("POST", "/v1/sandboxes", with(`"timeout":3601`)).says("timeout is 3601", "3600")
}

func TestIdempotency(t *testing.T) {
	f := start(t)
	hash := func(body string) string {
		f.call("POST", "/v1/sandboxes", body, "Idempotency-Key", "k-1").is(202, "")
		last := f.m.creates[len(f.m.creates)-1]
		if last.IdempotencyKey != "k-1" || last.BodyHash == "" {
			t.Fatalf("options = %+v", last)
		}
		return last.BodyHash
	}
	first := hash(`{"image":{"uri":"x","auth":{"username":"u","password":"p"}},"env":{"A":"1","B":"2"}}`)
	if hash(` {"env": {"B":"2","A":"1"}, "image":{"auth":{"username":"u","password":"changed"},"uri":"x"}}`) != first {
		t.Error("order, spaces or a new password make another request")
	}
	for _, other := range []string{`{"image":{"uri":"x"},"env":{"A":"1","B":"3"}}`, `{"image":{"uri":"x"},"env":{"A":"1B"}}`, `{"image":{"uri":"x"}}`} {
		if hash(other) == first {
			t.Errorf("%s has the same hash", other)
		}
	}
	f.m.replay = true
	if a := f.call("POST", "/v1/sandboxes", with(`"timeout":60`), "Idempotency-Key", "k"); a.header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("headers = %v", a.header)
	}
	for _, bad := range []string{"with space", strings.Repeat("k", 256), "ü"} {
		f.call("POST", "/v1/sandboxes", with(`"timeout":60`), "Idempotency-Key", bad).is(400, sandbox.CodeInvalidParameter).says("Idempotency-Key")
	}
}

func TestPreferWait(t *testing.T) {
	f := start(t)
	f.m.state = sandbox.Pending
	body := with(`"timeout":60`)
	for prefer, applied := range map[string]string{
		"wait=10": "wait=10", `respond-async, WAIT = "7" ; x=1`: "wait=7", "wait=100000": "wait=300", "wait=-1": "", "wait": "", "wait=soon": "", "": "",
	} {
		a := f.call("POST", "/v1/sandboxes", body, "Prefer", prefer).is(202, "")
		state := a.member("status", "state")
		if got := a.header.Get("Preference-Applied"); got != applied || (state == "Running") != (applied != "") {
			t.Errorf("Prefer %q: applied %q, state %v", prefer, got, state)
		}
	}
	// However the wait ends, the client learns the id.
	for _, end := range []error{context.DeadlineExceeded, errors.New("too many wait")} {
		f.m.waited = func(context.Context) error { return end }
		if a := f.call("POST", "/v1/sandboxes", body, "Prefer", "wait=1").is(202, ""); a.member("status", "state") != "Pending" {
			t.Errorf("after %v: %s", end, a.body)
		}
	}
}

func TestCreateErrors(t *testing.T) {
	f := start(t)
	secret := errors.New("dial tcp 10.0.0.7:5000: password=hunter2")
	for _, c := range []struct {
		err    error
		status int
		code   string
		retry  string
	}{
		{sandbox.Errorf(sandbox.KindInvalid, sandbox.CodeImageInvalid, "bad"), 400, sandbox.CodeImageInvalid, ""},
		{sandbox.Errorf(sandbox.KindNotFound, sandbox.CodeImageNotFound, "no"), 404, sandbox.CodeImageNotFound, ""},
		{sandbox.Errorf(sandbox.KindConflict, sandbox.CodeIdempotencyConflict, "no"), 409, sandbox.CodeIdempotencyConflict, ""},
		{&sandbox.Error{Kind: sandbox.KindBusy, Code: sandbox.CodeCapacity, Message: "full", RetryAfter: 1500 * time.Millisecond}, 429, sandbox.CodeCapacity, "2"},
		{&sandbox.Error{Kind: sandbox.KindUnavailable, Code: sandbox.CodeInternal, Message: "not now", Err: secret}, 503, sandbox.CodeInternal, "1"},
		{sandbox.Errorf(sandbox.KindNotImplemented, sandbox.CodeNotSupported, "no"), 501, sandbox.CodeNotSupported, ""},
		{&sandbox.Error{Kind: sandbox.KindInternal, Code: sandbox.CodeImagePullFailed, Message: "The disk is full.", Err: secret}, 500, sandbox.CodeImagePullFailed, ""},
		{secret, 500, sandbox.CodeInternal, ""},
		{fmt.Errorf("wrapped: %w", sandbox.ErrNotFound("x")), 404, sandbox.CodeNotFound, ""},
		{context.DeadlineExceeded, 500, sandbox.CodeInternal, ""},
	} {
		f.m.fail = c.err
		a := f.call("POST", "/v1/sandboxes", with(`"timeout":60`), "X-Request-ID", "find-me").is(c.status, c.code)
		if got := a.header.Get("Retry-After"); got != c.retry {
			t.Errorf("%v: Retry-After %q, want %q", c.err, got, c.retry)
		}
		if strings.Contains(a.body, "hunter2") || strings.Contains(a.body, "10.0.0.7") {
			t.Errorf("internals are shown: %s", a.body)
		}
		if c.status == 500 && !strings.Contains(a.body, "find-me") {
			t.Errorf("the request id is not in the message: %s", a.body)
		}
	}
	if !strings.Contains(f.log.String(), `"request":"find-me"`) {
		t.Error("the request id is not in the log")
	}
}

// No body makes the server fail, or answer an error of another form.
func FuzzCreate(f *testing.F) {
	f.Add([]byte(fullCreate))
	for _, c := range refusals {
		if len(c.body) < 300 {
			f.Add([]byte(c.body))
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		v, err := parseJSON(body)
		if err == nil {
			if !json.Valid(body) {
				t.Fatalf("accepted what is not JSON: %q", body)
			}
			bodyHash(v)
			_, err = decodeCreate(v, 0)
		}
		if err == nil {
			return
		}
		if a := toAnswer(err, "id"); a.status != 400 || a.code == "" || a.message == "" || len(a.message) > 1000 {
			t.Fatalf("%q: %+v", body, a)
		}
	})
}

func TestResourceForms(t *testing.T) {
	for text, want := range map[string]int64{"1": 1000, "0.5": 500, "500m": 500, "2.125": 2125, "0.0015": 2, "1m": 1,
		"0": 0, "0m": 0, "-1": 0, "": 0, "m": 0, ".5": 0, "5.": 0, "1.5m": 0, "1e3": 0, "+1": 0, " 1": 0, "NaN": 0, "Inf": 0, "0x1": 0, "1_0": 0, "99999999999999999999": 0, "1000001": 0} {
		if got, problem := parseCPU(text); got != want || (problem == "") != (want > 0) {
			t.Errorf("cpu %q = %d, %q; want %d", text, got, problem, want)
		}
	}
	for text, want := range map[string]int64{"1": 1, "512Mi": 512 << 20, "2Gi": 2 << 30, "1g": 1e9, "1GB": 1e9, "1k": 1000, "1Ki": 1024, "3T": 3e12, "1ti": 1 << 40, "7b": 7, "1KIB": 1024,
		"0": 0, "": 0, "Gi": 0, "1.5Gi": 0, "-1": 0, "1 Gi": 0, "1Pi": 0, "1x": 0, "9223372036854775807": 1<<63 - 1, "9223372036854775808": 0, "9000000Ti": 0, "1GiGi": 0, "1e3": 0, "ü": 0} {
		// More digits than digits() takes are refused in any case.
		if text == "9223372036854775807" {
			want = 0
		}
		if got, problem := parseBytes(text); got != want || (problem == "") != (want > 0) {
			t.Errorf("bytes %q = %d, %q; want %d", text, got, problem, want)
		}
	}
	for text, want := range map[string]string{"1": "1", "all": "all", "ALL": "all", "08": "8", "0": "", "": "", "-1": "", "1025": "", "some": ""} {
		if got, problem := parseGPUs(text); got != want || (problem == "") != (want != "") {
			t.Errorf("gpus %q = %q, %q; want %q", text, got, problem, want)
		}
	}
}

// The wall is what the extension says, else the server's default, and is shown
// unless nobody chose it.
func TestIsolation(t *testing.T) {
	f := start(t)
	for _, c := range []struct {
		fallback sandbox.Isolation
		body     string
		want     sandbox.Isolation
	}{
		{"", `{"image":{"uri":"x"}}`, ""},
		{"", `{"image":{"uri":"x"},"extensions":{"paddock.isolation":"container"}}`, sandbox.IsolationContainer},
		{"", `{"image":{"uri":"x"},"extensions":{"paddock.isolation":"gvisor"}}`, sandbox.IsolationGVisor},
		{sandbox.IsolationGVisor, `{"image":{"uri":"x"}}`, sandbox.IsolationGVisor},
		{sandbox.IsolationGVisor, `{"image":{"uri":"x"},"extensions":{"paddock.isolation":"container"}}`, sandbox.IsolationContainer},
	} {
		f.s.opts.Isolation = c.fallback
		a := f.call("POST", "/v1/sandboxes", c.body).is(202, "")
		if got := f.m.creates[len(f.m.creates)-1].Spec.Isolation; got != c.want {
			t.Errorf("%s with the default %q: isolation %q, want %q", c.body, c.fallback, got, c.want)
		}
		shown, _ := a.member("extensions").(map[string]any)
		if got, _ := shown["paddock.isolation"].(string); got != string(c.want) {
			t.Errorf("%s with the default %q: %s", c.body, c.fallback, a.body)
		}
	}
}
