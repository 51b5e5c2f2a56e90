package isolated

import (
	"path"
	"slices"
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/internal/execd/web"
)

// Profiles and modes of the contract.
const (
	Strict   = "strict"
	Balanced = "balanced"

	ModeRW      = "rw"
	ModeRO      = "ro"
	ModeOverlay = "overlay"
)

const (
	// MaxMounts bounds the places of one session that are not as in the sandbox.
	MaxMounts = 32
	// defaultIdle is how long a session lives without a run, in seconds, and
	// maxIdle the most that can be asked for.
	defaultIdle = 1800
	maxIdle     = 30 * 24 * 3600
	// maxKeys bounds env_passthrough.keys, maxKey the length of one in bytes.
	maxKeys, maxKey = 256, 256
	// maxPath is PATH_MAX of Linux less the terminator.
	maxPath = 4095
	// maxID is the highest user or group id in a sandbox.
	maxID = 65535
)

// Workspace is the short form of one overlay.
type Workspace struct {
	Path string `json:"path"`
	Mode string `json:"mode,omitempty"`
}

// Overlay is one directory of the sandbox in the session.
type Overlay struct {
	Path string `json:"path"`
	Mode string `json:"mode,omitempty"`
	// Persist false keeps what an overlay's copies hold in memory. They can't be
	// compared or committed.
	Persist *bool `json:"persist,omitempty"`
}

// Bind shows a file or directory of the sandbox at another place.
type Bind struct {
	Source   string `json:"source"`
	Dest     string `json:"dest,omitempty"`
	ReadOnly *bool  `json:"readonly,omitempty"`
}

// EnvPassthrough chooses variables of the sandbox's environment.
type EnvPassthrough struct {
	Mode string   `json:"mode,omitempty"`
	Keys []string `json:"keys,omitempty"`
}

// Settings is the body of POST /v1/isolated/session, and what is echoed of it.
type Settings struct {
	Profile       string          `json:"profile,omitempty"`
	Workspace     *Workspace      `json:"workspace,omitempty"`
	Overlays      []Overlay       `json:"overlays,omitempty"`
	ExtraWritable []string        `json:"extra_writable,omitempty"`
	Binds         []Bind          `json:"binds,omitempty"`
	ShareNet      *bool           `json:"share_net,omitempty"`
	Env           *EnvPassthrough `json:"env_passthrough,omitempty"`
	UID           *int64          `json:"uid,omitempty"`
	GID           *int64          `json:"gid,omitempty"`
	UIDMode       string          `json:"uid_mode,omitempty"`
	IdleSeconds   *int64          `json:"idle_timeout_seconds,omitempty"`
}

// Mount is one place of a session that is not simply the sandbox's, read-only.
type Mount struct {
	// Path is where it is, From what of the sandbox is shown there; empty means
	// the same. Both are clean and absolute.
	Path, From string
	// Mode is one of the contract's, or empty for an empty private directory.
	Mode string
	// Ephemeral copies are in memory.
	Ephemeral bool
}

// Idle is how long the session may be without a run; 0 is for ever.
func (s *Settings) Idle() time.Duration { return time.Duration(*s.IdleSeconds) * time.Second }

// Dir is where runs begin.
func (s *Settings) Dir() string { return s.Overlays[0].Path }

// Complete checks what was asked for and puts in the defaults, so that the
// echo says what holds. Its errors are the caller's.
func (s *Settings) Complete() error {
	if err := s.choices(); err != nil {
		return err
	}
	if s.Workspace != nil {
		if s.Workspace.Mode == "" {
			s.Workspace.Mode = map[string]string{Strict: ModeOverlay, Balanced: ModeRW}[s.Profile]
		}
		s.Overlays = slices.Insert(s.Overlays, 0, Overlay{Path: s.Workspace.Path, Mode: s.Workspace.Mode})
		s.Workspace = nil
	}
	if len(s.Overlays) == 0 {
		return web.BadBody("neither workspace nor overlays is given; name a directory of the sandbox for the session to work in, as in {\"workspace\":{\"path\":\"/workspace\"}}")
	}
	for i := range s.Overlays {
		if err := s.Overlays[i].complete(); err != nil {
			return err
		}
	}
	if len(s.Overlays) == 1 {
		// As the contract's short form, too.
		s.Workspace = &Workspace{Path: s.Overlays[0].Path, Mode: s.Overlays[0].Mode}
	}
	return s.places()
}

// Completed reports whether Complete was called, on settings that were kept.
func (s *Settings) Completed() bool {
	return len(s.Overlays) > 0 && s.IdleSeconds != nil && s.ShareNet != nil && s.Env != nil
}

func (s *Settings) choices() error {
	if err := oneOf("profile", &s.Profile, Strict, Balanced); err != nil {
		return err
	}
	if s.UIDMode == "userns" {
		return web.BadBody("uid_mode is %q, which this server does not have: every sandbox has a user namespace of its own already; send %q", s.UIDMode, "setpriv")
	}
	if err := oneOf("uid_mode", &s.UIDMode, "setpriv"); err != nil {
		return err
	}
	if s.GID != nil && s.UID == nil {
		return web.BadBody("gid is given without uid; send uid as well")
	}
	for name, id := range map[string]*int64{"uid": s.UID, "gid": s.GID} {
		if id != nil && (*id < 0 || *id > maxID) {
			return web.BadBody("%s is %d; it must be from 0 to %d", name, *id, maxID)
		}
	}
	if s.IdleSeconds == nil {
		s.IdleSeconds = ptr(int64(defaultIdle))
	}
	if *s.IdleSeconds < 0 || *s.IdleSeconds > maxIdle {
		return web.BadBody("idle_timeout_seconds is %d; it must be from 1 to %d, or 0 for never", *s.IdleSeconds, maxIdle)
	}
	if s.ShareNet == nil {
		s.ShareNet = ptr(true)
	}
	if s.Env == nil {
		s.Env = &EnvPassthrough{}
	}
	return s.Env.complete()
}

func ptr[T any](v T) *T { return &v }

// oneOf puts in the first value for an empty one.
func oneOf(field string, value *string, allowed ...string) error {
	if *value == "" {
		*value = allowed[0]
	}
	if !slices.Contains(allowed, *value) {
		return web.BadBody("%s is %q; it must be one of: %s", field, *value, strings.Join(allowed, ", "))
	}
	return nil
}

func (o *Overlay) complete() error {
	if err := oneOf("the mode of overlay "+o.Path, &o.Mode, ModeOverlay, ModeRW, ModeRO); err != nil {
		return err
	}
	if o.Mode != ModeOverlay && o.Persist != nil {
		return web.BadBody("overlay %q has persist with the mode %q; only the mode %q takes it", o.Path, o.Mode, ModeOverlay)
	}
	if o.Mode == ModeOverlay && o.Persist == nil {
		o.Persist = ptr(true)
	}
	return nil
}

// places checks all paths.
func (s *Settings) places() error {
	seen := make(map[string]bool)
	add := func(field, p string) error {
		if err := checkPath(field, p); err != nil {
			return err
		}
		if seen[p] {
			return web.BadBody("%s names %q, which is named before; each place can be one thing only", field, p)
		}
		seen[p] = true
		return nil
	}
	for i := range s.Overlays {
		if err := add("workspace or overlays", s.Overlays[i].Path); err != nil {
			return err
		}
	}
	for _, p := range s.ExtraWritable {
		if err := add("extra_writable", p); err != nil {
			return err
		}
	}
	for i := range s.Binds {
		b := &s.Binds[i]
		if b.Dest == "" {
			b.Dest = b.Source
		}
		if err := checkPath("binds.source", b.Source); err != nil {
			return err
		}
		if err := add("binds.dest", b.Dest); err != nil {
			return err
		}
	}
	if len(seen) > MaxMounts {
		return web.BadBody("overlays, extra_writable and binds are %d places together; at most %d are possible", len(seen), MaxMounts)
	}
	return nil
}

// checkPath allows what can be mounted on without hiding or showing what is the
// kernel's.
func checkPath(field, p string) error {
	switch {
	case !path.IsAbs(p):
		return web.BadBody("%s: %q is not an absolute path", field, p)
	case path.Clean(p) != p:
		return web.BadBody("%s: %q is not a plain path; write it as %q", field, p, path.Clean(p))
	case p == "/":
		return web.BadBody("%s: the root itself can't be given; name a directory in it", field)
	case len(p) > maxPath || strings.ContainsRune(p, 0):
		return web.BadBody("%s: a path has at most %d bytes, and no NUL byte", field, maxPath)
	}
	for _, own := range []string{"/proc", "/sys", "/dev"} {
		if p == own || strings.HasPrefix(p, own+"/") {
			return web.BadBody("%s: %q is in %s, which every session has its own of", field, p, own)
		}
	}
	return nil
}

// Mounts are the places of a checked session, what contains others before them.
func (s *Settings) Mounts() []Mount {
	var all []Mount
	for _, o := range s.Overlays {
		all = append(all, Mount{Path: o.Path, Mode: o.Mode, Ephemeral: o.Persist != nil && !*o.Persist})
	}
	for _, p := range s.ExtraWritable {
		all = append(all, Mount{Path: p, Mode: ModeRW})
	}
	for _, b := range s.Binds {
		m := Mount{Path: b.Dest, From: b.Source, Mode: ModeRW}
		if b.ReadOnly != nil && *b.ReadOnly {
			m.Mode = ModeRO
		}
		all = append(all, m)
	}
	const tmp = "/tmp"
	if !slices.ContainsFunc(all, func(m Mount) bool { return m.Path == tmp }) {
		m := Mount{Path: tmp}
		if s.Profile == Balanced {
			m.Mode = ModeRW
		}
		all = append(all, m)
	}
	slices.SortStableFunc(all, func(a, b Mount) int { return strings.Count(a.Path, "/") - strings.Count(b.Path, "/") })
	return all
}
