package enginetest

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func (s *suite) testCheck() {
	if err := s.eng.Check(s.ctx(), s.idle()); err != nil {
		s.t.Fatalf("a plain spec: %v", err)
	}
	for name, change := range map[string]func(*sandbox.Spec){
		"platform": func(sp *sandbox.Spec) { sp.Platform = &sandbox.Platform{OS: "plan9", Arch: "vax"} },
		"memory":   func(sp *sandbox.Spec) { sp.Limits.MemoryBytes = 1 },
		"gpu":      func(sp *sandbox.Spec) { sp.Limits.GPUs = "4096" },
		"missing volume": func(sp *sandbox.Spec) {
			sp.Volumes = []sandbox.VolumeMount{{Name: "v", Claim: "never-made", MountPath: "/v"}}
		},
		"forbidden folder": func(sp *sandbox.Spec) {
			sp.Volumes = []sandbox.VolumeMount{{Name: "v", HostPath: "/etc", MountPath: "/v"}}
		},
	} {
		spec := s.idle()
		change(spec)
		s.wantKind(name, s.eng.Check(s.ctx(), spec), sandbox.KindInvalid)
	}
}

func (s *suite) testResolve() {
	img, err := s.eng.Resolve(s.ctx(), s.idle())
	if err != nil {
		s.t.Fatal(err)
	}
	if !img.Local || img.Digest == "" || len(img.Entrypoint) == 0 {
		s.t.Errorf("got %+v", img)
	}
	// Nothing listens there; no name has to be looked up.
	absent := &sandbox.Spec{Image: "127.0.0.1:1/never/pushed:1"}
	_, err = s.eng.Resolve(s.ctx(), absent)
	s.wantKind("an absent image", err, sandbox.KindInvalid, sandbox.KindNotFound, sandbox.KindUnavailable)
	_, err = s.eng.Resolve(s.ctx(), &sandbox.Spec{Image: "Not A Reference//"})
	s.wantKind("a bad reference", err, sandbox.KindInvalid)
}

func (s *suite) testReserve() {
	seen := map[string]bool{}
	for range 20 {
		id, err := s.eng.Reserve(s.ctx(), s.idle())
		if err != nil {
			s.t.Fatal(err)
		}
		if id == "" || seen[id] {
			s.t.Errorf("reserved the id %q after %d others", id, len(seen))
		}
		seen[id] = true
		s.eng.Release(id)
	}
	s.mustExec(s.create(s.idle()), "true")
}

func (s *suite) testCreateAndExec() {
	spec := s.idle()
	spec.Env = map[string]string{"COLOUR": "blue", "ODD": "a b\n\"'$c"}
	b := s.create(spec)
	if !slices.Equal(b.created.Entrypoint, spec.Entrypoint) {
		s.t.Errorf("the effective entrypoint is %q", b.created.Entrypoint)
	}
	if got := s.mustExec(b, `printf %s "$COLOUR"`); got != "blue" {
		s.t.Errorf("COLOUR is %q", got)
	}
	if got := s.mustExec(b, `printf %s "$ODD"`); got != spec.Env["ODD"] {
		s.t.Errorf("ODD is %q", got)
	}
	if got := s.mustExec(b, `printf %s "$OPENSANDBOX_ID"`); got != b.id {
		s.t.Errorf("OPENSANDBOX_ID is %q, the id %q", got, b.id)
	}
	if _, code, err := s.exec(s.ctx(), b, "exit 7"); err != nil || code != 7 {
		s.t.Errorf("exit 7 gives %d, %v", code, err)
	}
	s.mustExec(b, "echo kept > /tmp/file")
	if got := s.mustExec(b, "cat /tmp/file"); got != "kept" {
		s.t.Errorf("the file holds %q", got)
	}
	stranger := *b
	stranger.token = "wrong"
	resp, err := s.request(s.ctx(), &stranger, http.MethodGet, "/ping", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		s.t.Errorf("execd answers %s to a wrong token", resp.Status)
	}
}

func (s *suite) testImageEntrypoint() {
	b := s.create(&sandbox.Spec{Image: s.host.Image})
	img, err := s.eng.Resolve(s.ctx(), b.spec)
	if err != nil {
		s.t.Fatal(err)
	}
	if len(b.created.Entrypoint) == 0 || !slices.Equal(b.created.Entrypoint, img.Entrypoint) {
		s.t.Errorf("the entrypoint is %q, the image's %q", b.created.Entrypoint, img.Entrypoint)
	}
}

func (s *suite) testParallelCreates() {
	const n = 8
	boxes := make([]*box, n)
	var wg sync.WaitGroup
	for i := range boxes {
		wg.Go(func() {
			b, err := s.try(s.ctx(), s.idle())
			if err != nil {
				s.t.Errorf("one of %d: %s", n, describe(err))
				return
			}
			boxes[i] = b
			if _, code, err := s.exec(s.ctx(), b, "echo "+b.id+" > /tmp/id"); err != nil || code != 0 {
				s.t.Errorf("exec: %d, %v", code, err)
			}
		})
	}
	wg.Wait()
	if s.t.Failed() {
		return
	}
	for _, b := range boxes {
		if got := s.mustExec(b, "cat /tmp/id"); got != b.id {
			s.t.Errorf("%s holds the file of %q", b.id, got)
		}
	}
}

func (s *suite) testFailedCreate() {
	for name, spec := range map[string]*sandbox.Spec{
		"missing program": s.spec("/no/such/program"),
		"not executable":  s.spec("/etc/passwd"),
	} {
		b, err := s.try(s.ctx(), spec)
		if b == nil {
			s.t.Fatalf("%s: %v", name, err)
		}
		if e := s.wantKind(name, err, sandbox.KindInvalid); e.Reason != sandbox.ReasonEntrypointFailed {
			s.t.Errorf("%s: reason %q", name, e.Reason)
		}
		s.wantNothing(b.id)
		if _, err := s.eng.Dial(s.ctx(), b.id, sandbox.ExecdPort); err == nil {
			s.t.Errorf("%s: it can be reached", name)
		}
		if all, _ := s.exitsOf(b.id); len(all) > 0 {
			s.t.Errorf("%s: an exit is reported of what never ran: %+v", name, all)
		}
		if err := s.eng.Stop(s.ctx(), b.id); err != nil {
			s.t.Errorf("%s: Stop afterwards: %v", name, err)
		}
	}
	s.mustExec(s.create(s.idle()), "true")
}

func (s *suite) testCanceledCreate() {
	id, err := s.eng.Reserve(s.ctx(), s.idle())
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(s.ctx())
	cancel()
	if _, err := s.eng.Create(ctx, sandbox.CreateRequest{ID: id, Spec: s.idle(), Token: "t"}); err == nil {
		s.t.Error("a create without time succeeded")
	}
	if err := s.eng.Remove(s.ctx(), id); err != nil {
		s.t.Errorf("Remove afterwards: %v", err)
	}
	s.wantNothing(id)
}

func (s *suite) testUnknownIDs() {
	const id = "00000000-0000-4000-8000-000000000000"
	absent := []sandbox.Kind{sandbox.KindNotFound, sandbox.KindConflict}
	s.wantKind("Pause", s.eng.Pause(s.ctx(), id), absent...)
	s.wantKind("Resume", s.eng.Resume(s.ctx(), id), absent...)
	_, err := s.eng.Dial(s.ctx(), id, sandbox.ExecdPort)
	s.wantKind("Dial", err, absent...)
	_, err = s.eng.Usage(s.ctx(), id)
	s.wantKind("Usage", err, absent...)
	_, err = s.eng.Logs(s.ctx(), id, sandbox.LogOptions{})
	s.wantKind("Logs", err, absent...)
	for range 2 {
		if err := s.eng.Stop(s.ctx(), id); err != nil {
			s.t.Errorf("Stop: %v", err)
		}
		if err := s.eng.Remove(s.ctx(), id); err != nil {
			s.t.Errorf("Remove: %v", err)
		}
	}
	s.eng.Release(id)
}

func (s *suite) testVolumes() {
	engine, ok := s.eng.(sandbox.Volumes)
	if !ok {
		s.t.Skip("this engine keeps no named volumes")
	}
	const name = "enginetest-volume"
	spec := s.idle()
	spec.Volumes = []sandbox.VolumeMount{{Name: "v", Claim: name, CreateIfMissing: true, MountPath: "/mnt/v"}}
	first := s.create(spec)
	if !slices.Equal(first.created.CreatedVolumes, []string{name}) {
		s.t.Errorf("the first create made %q", first.created.CreatedVolumes)
	}
	s.mustExec(first, "echo shared > /mnt/v/file")
	readOnly := s.idle()
	readOnly.Volumes = slices.Clone(spec.Volumes)
	readOnly.Volumes[0].ReadOnly = true
	second := s.create(readOnly)
	if len(second.created.CreatedVolumes) > 0 {
		s.t.Errorf("the second create made %q", second.created.CreatedVolumes)
	}
	if got := s.mustExec(second, "cat /mnt/v/file"); got != "shared" {
		s.t.Errorf("the second sandbox reads %q", got)
	}
	if _, code, err := s.exec(s.ctx(), second, "echo x > /mnt/v/file"); err != nil || code == 0 {
		s.t.Errorf("writing to a read-only volume: exit code %d, %v", code, err)
	}
	for _, b := range []*box{first, second} {
		if err := s.eng.Remove(s.ctx(), b.id); err != nil {
			s.t.Fatal(err)
		}
	}
	if !s.volumes(engine)[name] {
		s.t.Error("the volume went with its sandboxes, which is the Manager's to decide")
	}
	if err := engine.RemoveVolume(s.ctx(), name); err != nil {
		s.t.Fatal(err)
	}
	if s.volumes(engine)[name] {
		s.t.Error("the volume is still listed")
	}
	s.wantKind("removing it again", engine.RemoveVolume(s.ctx(), name), sandbox.KindNotFound)
	for _, bad := range []string{"../x", "", "a/b", strings.Repeat("v", 300)} {
		if err := engine.RemoveVolume(s.ctx(), bad); err == nil {
			s.t.Errorf("removing %.20q succeeded", bad)
		}
	}
}

func (s *suite) volumes(engine sandbox.Volumes) map[string]bool {
	s.t.Helper()
	all, err := engine.ListVolumes(s.ctx())
	if err != nil {
		s.t.Fatal(err)
	}
	names := map[string]bool{}
	for _, v := range all {
		names[v.Name] = true
	}
	return names
}
