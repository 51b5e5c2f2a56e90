package isolated

import (
	"encoding/json"
	"path"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func settings(t testing.TB, text string) *Settings {
	t.Helper()
	s := &Settings{}
	if err := json.Unmarshal([]byte(text), s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDefaults(t *testing.T) {
	for text, want := range map[string]string{
		`{"workspace":{"path":"/w"}}`:                                                `/tmp: /w:overlay`,
		`{"workspace":{"path":"/w"},"profile":"balanced"}`:                           `/tmp:rw /w:rw`,
		`{"workspace":{"path":"/tmp","mode":"rw"}}`:                                  `/tmp:rw`,
		`{"overlays":[{"path":"/a/b/c"},{"path":"/a","mode":"ro"}]}`:                 `/a:ro /tmp: /a/b/c:overlay`,
		`{"workspace":{"path":"/w"},"binds":[{"source":"/s","readonly":true}]}`:      `/s:ro /tmp: /w:overlay`,
		`{"workspace":{"path":"/w"},"overlays":[{"path":"/x","mode":"rw"}]}`:         `/tmp: /w:overlay /x:rw`,
		`{"workspace":{"path":"/w"},"extra_writable":["/var/x"],"profile":"strict"}`: `/tmp: /w:overlay /var/x:rw`,
	} {
		s := settings(t, text)
		if err := s.Complete(); err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		var got []string
		for _, m := range s.Mounts() {
			got = append(got, m.Path+":"+m.Mode)
		}
		words := strings.Fields(want)
		slices.Sort(got)
		slices.Sort(words)
		if !slices.Equal(got, words) {
			t.Errorf("%s: %v, want %v", text, got, words)
		}
		if !s.Completed() || *s.IdleSeconds != 1800 || !*s.ShareNet {
			t.Errorf("%s: the defaults are missing: %+v", text, s)
		}
	}
}

func TestEnvironment(t *testing.T) {
	sandbox := map[string]string{"PATH": "p", "A": "1", "B": "2", "OPENAI_API_KEY": "k", "my_token": "t", "AWS_X": "x", "DB_PASSWORD": "y", "MONKEY": "m"}
	for text, want := range map[string]string{
		`{}`:                                 "A B MONKEY PATH",
		`{"profile":"balanced"}`:             "A AWS_X B DB_PASSWORD MONKEY OPENAI_API_KEY PATH my_token",
		`{"env_passthrough":{"keys":["A"]}}`: "B MONKEY PATH",
		`{"env_passthrough":{"mode":"allow","keys":["A","AWS_X"]}}`: "A AWS_X PATH",
	} {
		s := settings(t, text)
		s.Workspace = &Workspace{Path: "/w"}
		if err := s.Complete(); err != nil {
			t.Fatal(err)
		}
		var got []string
		for name := range s.Environment(sandbox) {
			got = append(got, name)
		}
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", text, got, want)
		}
	}
}

// Whatever is accepted can be mounted in the order given, and hides nothing of
// the kernel's.
func TestMountsAreInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rapid.StringMatching(`(/(a|b|tmp|proc|\.\.|dev)){0,4}/?`)
		s := &Settings{Workspace: &Workspace{Path: p.Draw(t, "workspace")},
			ExtraWritable: rapid.SliceOfN(p, 0, 4).Draw(t, "extra")}
		for _, o := range rapid.SliceOfN(p, 0, 4).Draw(t, "overlays") {
			s.Overlays = append(s.Overlays, Overlay{Path: o})
		}
		if s.Complete() != nil {
			return
		}
		seen := map[string]bool{}
		for _, m := range s.Mounts() {
			if !path.IsAbs(m.Path) || path.Clean(m.Path) != m.Path || m.Path == "/" || seen[m.Path] ||
				strings.HasPrefix(m.Path+"/", "/proc/") || strings.HasPrefix(m.Path+"/", "/dev/") {
				t.Fatalf("mount at %q", m.Path)
			}
			for later := range seen {
				if strings.HasPrefix(later, m.Path+"/") {
					t.Fatalf("%q hides %q, which was mounted before", m.Path, later)
				}
			}
			seen[m.Path] = true
		}
	})
}

func FuzzSettings(f *testing.F) {
	f.Add(`{"workspace":{"path":"/w"},"binds":[{"source":"/a","dest":"/b"}]}`)
	f.Add(`{"overlays":[{"path":"/w","mode":"overlay","persist":false}],"uid":1,"gid":2}`)
	f.Fuzz(func(t *testing.T, text string) {
		s := &Settings{}
		if json.Unmarshal([]byte(text), s) != nil || s.Complete() != nil {
			return
		}
		if !s.Completed() || !path.IsAbs(s.Dir()) || len(s.Mounts()) > MaxMounts+1 {
			t.Fatalf("%q was accepted: %+v", text, s)
		}
		// What is kept is read again by a restarted server.
		b, err := json.Marshal(s)
		again := &Settings{}
		if err != nil || json.Unmarshal(b, again) != nil || !again.Completed() || len(again.Mounts()) != len(s.Mounts()) {
			t.Fatalf("%s does not survive", b)
		}
	})
}
