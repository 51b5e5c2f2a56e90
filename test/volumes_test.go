package test

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/paddock-sandbox/paddock/client"
)

func volumes(v ...client.Volume) client.CreateRequest {
	return client.CreateRequest{Image: busyboxImage, Entrypoint: forever, Volumes: v}
}

func TestHostVolumes(t *testing.T) {
	s := sharedServer(t)
	dir := filepath.Join(shared.hostDir, t.Name())
	for _, d := range []string{dir, filepath.Join(dir, "sub")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "hello"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	sb := s.Create(t, volumes(
		client.Volume{Name: "rw", Host: &client.HostVolume{Path: dir}, MountPath: "/mnt/rw"},
		client.Volume{Name: "ro", Host: &client.HostVolume{Path: dir}, MountPath: "/mnt/ro", ReadOnly: true},
		client.Volume{Name: "sub", Host: &client.HostVolume{Path: dir}, MountPath: "/mnt/sub", SubPath: "sub"},
	))
	if got := s.Must(t, sb.ID, "cat /mnt/rw/hello"); got != "from the host" {
		t.Errorf("read %q", got)
	}
	s.Must(t, sb.ID, "echo from inside > /mnt/rw/new && echo deep > /mnt/sub/deep")
	if b, err := os.ReadFile(filepath.Join(dir, "new")); err != nil || string(b) != "from inside\n" {
		t.Errorf("on the host: %q %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "sub", "deep")); err != nil || string(b) != "deep\n" {
		t.Errorf("on the host: %q %v", b, err)
	}
	if _, _, code := s.Shell(t, sb.ID, "echo x > /mnt/ro/x || touch /mnt/ro/hello"); code == 0 {
		t.Error("a read-only volume was written")
	}
	// A program that root inside made set-user-id is not root outside.
	s.Must(t, sb.ID, "cp /bin/busybox /mnt/rw/tool && chmod 4755 /mnt/rw/tool")
	if err := s.Client.Delete(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "hello")); err != nil {
		t.Errorf("the delete took the host's files: %v", err)
	}
}

func TestHostVolumesThatAreRefused(t *testing.T) {
	s := sharedServer(t)
	escape := filepath.Join(shared.hostDir, "escape")
	if err := os.Symlink(shared.otherDir, escape); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(shared.hostDir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	cases := map[string]client.Volume{
		"not allowed":          {Name: "v", Host: &client.HostVolume{Path: shared.otherDir}, MountPath: "/mnt"},
		"the host's root":      {Name: "v", Host: &client.HostVolume{Path: "/"}, MountPath: "/mnt"},
		"a sibling's name":     {Name: "v", Host: &client.HostVolume{Path: shared.hostDir + "-not"}, MountPath: "/mnt"},
		"dots":                 {Name: "v", Host: &client.HostVolume{Path: shared.hostDir + "/../other"}, MountPath: "/mnt"},
		"relative":             {Name: "v", Host: &client.HostVolume{Path: "allowed"}, MountPath: "/mnt"},
		"a symbolic link out":  {Name: "v", Host: &client.HostVolume{Path: escape}, MountPath: "/mnt"},
		"a subpath out":        {Name: "v", Host: &client.HostVolume{Path: shared.hostDir}, MountPath: "/mnt", SubPath: "../other"},
		"a subpath through it": {Name: "v", Host: &client.HostVolume{Path: shared.hostDir}, MountPath: "/mnt", SubPath: "escape"},
		"mounted on the root":  {Name: "v", Host: &client.HostVolume{Path: shared.hostDir}, MountPath: "/"},
		"mounted on /proc":     {Name: "v", Host: &client.HostVolume{Path: shared.hostDir}, MountPath: "/proc"},
		"mounted with dots":    {Name: "v", Host: &client.HostVolume{Path: shared.hostDir}, MountPath: "/mnt/../proc"},
		"no mount path":        {Name: "v", Host: &client.HostVolume{Path: shared.hostDir}, MountPath: "mnt"},
		"name is no label":     {Name: "V!", Host: &client.HostVolume{Path: shared.hostDir}, MountPath: "/mnt"},
		"a claim with a slash": {Name: "v", PVC: &client.PVC{ClaimName: "a/b"}, MountPath: "/mnt"},
		"a claim that must be": {Name: "v", PVC: &client.PVC{ClaimName: "missing-claim", CreateIfNotExists: new(false)}, MountPath: "/mnt"},
		"neither host nor pvc": {Name: "v", MountPath: "/mnt"},
		"subpath of a claim":   {Name: "v", PVC: &client.PVC{ClaimName: "fresh"}, MountPath: "/mnt", SubPath: "/abs"},
		"both of them":         {Name: "v", Host: &client.HostVolume{Path: shared.hostDir}, PVC: &client.PVC{ClaimName: "x"}, MountPath: "/mnt"},
	}
	for name, v := range cases {
		t.Run(name, func(t *testing.T) {
			sb, err := s.Client.Create(t.Context(), client.CreateRequest{Image: busyboxImage, Entrypoint: forever, Volumes: []client.Volume{v}})
			if sb != nil {
				s.Forget(t, sb.ID)
			}
			if !client.IsInvalid(err) {
				t.Errorf("%v, want 400", err)
			}
		})
	}
}

// The path inside is the image's, and the image is hostile: a link in it must
// not lead a mount elsewhere.
func TestMountPathThroughALink(t *testing.T) {
	s := sharedServer(t)
	dir := filepath.Join(shared.hostDir, t.Name())
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	first := s.Create(t, volumes(client.Volume{Name: "v", Host: &client.HostVolume{Path: dir}, MountPath: "/made/for/it"}))
	if got := s.Must(t, first.ID, "grep -c ' /made/for/it ' /proc/mounts"); got != "1" {
		t.Errorf("the mount point was not made: %s", got)
	}
}

func TestNamedVolumes(t *testing.T) {
	s := sharedServer(t)
	keep := client.Volume{Name: "v", PVC: &client.PVC{ClaimName: "e2e-keep"}, MountPath: "/data"}
	first := s.Create(t, volumes(keep))
	s.Must(t, first.ID, "mkdir /data/dir && echo persists > /data/dir/file && chown 1000:1000 /data/dir/file")
	// In use: it cannot be removed.
	if err := s.Client.RemoveVolume(t.Context(), "e2e-keep"); !client.IsConflict(err) {
		t.Errorf("removing a volume in use: %v, want 409", err)
	}
	// Two sandboxes at once see the same files, each with its own ids.
	second := s.Create(t, volumes(keep))
	if got := s.Must(t, second.ID, "cat /data/dir/file; stat -c %u:%g /data/dir/file"); got != "persists\n1000:1000" {
		t.Errorf("the second sees %q", got)
	}
	for _, sb := range []*client.Sandbox{first, second} {
		if err := s.Client.Delete(t.Context(), sb.ID); err != nil {
			t.Fatal(err)
		}
	}
	ro := keep
	ro.ReadOnly, ro.SubPath = true, "dir"
	third := s.Create(t, volumes(ro))
	if got := s.Must(t, third.ID, "cat /data/file"); got != "persists" {
		t.Errorf("the third sees %q", got)
	}
	if _, _, code := s.Shell(t, third.ID, "touch /data/new"); code == 0 {
		t.Error("a read-only volume was written")
	}
	if err := s.Client.Delete(t.Context(), third.ID); err != nil {
		t.Fatal(err)
	}
	vols, err := s.Client.ListVolumes(t.Context())
	if err != nil || !hasVolume(vols, "e2e-keep") {
		t.Errorf("%+v %v", vols, err)
	}
	if err := s.Client.RemoveVolume(t.Context(), "e2e-keep"); err != nil {
		t.Error(err)
	}
	if err := s.Client.RemoveVolume(t.Context(), "e2e-keep"); !client.IsNotFound(err) {
		t.Errorf("removing it again: %v", err)
	}
	gone := client.Volume{Name: "v", PVC: &client.PVC{ClaimName: "e2e-gone", DeleteOnSandboxTermination: true}, MountPath: "/data"}
	sb := s.Create(t, volumes(gone))
	if err := s.Client.Delete(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	if vols, err := s.Client.ListVolumes(t.Context()); err != nil || hasVolume(vols, "e2e-gone") {
		t.Errorf("a volume that should go with its sandbox: %+v %v", vols, err)
	}
	if r := s.Do(t, http.MethodDelete, "/v1/volumes/..%2f..%2fetc", nil); r.Status < 400 || r.Status >= 500 {
		t.Errorf("a hostile name: %d %s", r.Status, r.Body)
	}
}

func hasVolume(vols []client.VolumeInfo, name string) bool {
	for _, v := range vols {
		if v.Name == name {
			return true
		}
	}
	return false
}
