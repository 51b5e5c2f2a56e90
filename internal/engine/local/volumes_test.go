package local

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// A volume remembers for whom it was made, so that a server which died before it
// recorded that can find out.
func TestVolumesKnowTheirMaker(t *testing.T) {
	h := newHost(t)
	e, _ := h.open(t)
	defer e.Close()
	ctx := context.Background()
	spec := &sandbox.Spec{Image: testImage, Entrypoint: []string{"sleep", "1000000"}, Volumes: []sandbox.VolumeMount{
		{Name: "own", Claim: "own", MountPath: "/own", CreateIfMissing: true, DeleteWithSandbox: true},
		{Name: "again", Claim: "own", MountPath: "/again", CreateIfMissing: true, DeleteWithSandbox: true},
		{Name: "kept", Claim: "kept", MountPath: "/kept", CreateIfMissing: true},
	}}
	id, err := e.Reserve(ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	opened, made, err := e.openVolumes(id, spec.Volumes)
	closeVolumes(opened)
	if err != nil || !slices.Equal(made, []string{"own", "kept"}) {
		t.Fatalf("made %q, %v", made, err)
	}
	created, err := e.Create(ctx, sandbox.CreateRequest{ID: id, Spec: spec, Token: "token-of-" + id})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Remove(ctx, id) })
	if len(created.CreatedVolumes) > 0 {
		t.Errorf("the second time it made %q", created.CreatedVolumes)
	}
	if got := e.MadeVolume("own"); got != id {
		t.Errorf("made by %q", got)
	}
	for _, name := range []string{"absent", ".."} {
		if got := e.MadeVolume(name); got != "" {
			t.Errorf("%s: made by %q", name, got)
		}
	}
	if out, code := run(t, e, id, "ls -ld /own | cut -c1-10; stat -c %u /own; echo x > /own/f && cat /again/f"); code != "0" || out != "drwxr-xr-x\n0\nx" {
		t.Errorf("exit code %s: %s", code, out)
	}
	// Another sandbox uses it and did not make it.
	other := mustCreate(t, e, func(s *sandbox.Spec) { s.Volumes = spec.Volumes[:1] })
	if e.MadeVolume("own") == other {
		t.Error("it changed its maker")
	}
	left, err := filepath.Glob(filepath.Join(e.in.trashDir(), "volume-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("in the trash: %q, %v", left, err)
	}
	if err := os.Mkdir(filepath.Join(e.in.volumesDir(), "old"), 0o755); err != nil { // by an earlier version
		t.Fatal(err)
	}
	if got := e.MadeVolume("old"); got != "" {
		t.Errorf("made by %q", got)
	}
}
