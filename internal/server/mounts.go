package server

import (
	"fmt"
	"path"
	"regexp"
	"strings"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Bounds of volumes (OpenSandbox lifecycle API).
const (
	maxVolumes    = 64
	maxVolumeName = 63
	maxClaimName  = 253
	// maxPath is PATH_MAX of Linux without the NUL.
	maxPath = 4095
	// maxPathPart is NAME_MAX of Linux.
	maxPathPart = 255
)

// Codes that only volumes have (OpenSandbox API).
const (
	codeVolumeName    = "VOLUME::INVALID_NAME"
	codeVolumeTwice   = "VOLUME::DUPLICATE_NAME"
	codeVolumeBackend = "VOLUME::INVALID_BACKEND"
	codeClaimName     = "VOLUME::INVALID_PVC_NAME"
)

// reservedMounts are where every sandbox has file systems of the kernel.
var reservedMounts = []string{"/proc", "/sys", "/dev"}

var storageForm = regexp.MustCompile(`^\d+(\.\d+)?(Ki|Mi|Gi|Ti|Pi|Ei)?$`)

func (d *decoder) volumes(body *value) []sandbox.VolumeMount {
	items := d.list(body, "volumes", maxVolumes)
	var mounts []sandbox.VolumeMount
	names, places := map[string]bool{}, map[string]bool{}
	for _, v := range items {
		if !d.is(v, kindObject) {
			return nil
		}
		m := d.volume(v)
		if d.err != nil {
			return nil
		}
		if names[m.Name] {
			d.fail(invalid(codeVolumeTwice, "%s.name is %s, which another volume of this request has.", v.path, quote(m.Name)))
		}
		if places[m.MountPath] {
			d.fail(invalid(sandbox.CodeInvalidMountPath, "%s.mountPath is %s, where another volume of this request is mounted.", v.path, quote(m.MountPath)))
		}
		names[m.Name], places[m.MountPath] = true, true
		mounts = append(mounts, m)
	}
	return mounts
}

func (d *decoder) volume(v *value) sandbox.VolumeMount {
	m := sandbox.VolumeMount{
		Name:     d.required(v, "name", bytesRule{max: maxPath}),
		ReadOnly: d.flag(v, "readOnly", false),
	}
	if d.err == nil && (len(m.Name) > maxVolumeName || !dnsLabel(m.Name)) {
		d.fail(invalid(codeVolumeName, "%s.name is %s; it must be 1 to %d lower case letters, digits or inner hyphens.", v.path, quote(m.Name), maxVolumeName))
	}
	d.backend(v, &m)
	m.MountPath = d.mountPath(v)
	m.SubPath = d.subPath(v)
	return m
}

// backend fills in where the content of a volume is.
func (d *decoder) backend(v *value, m *sandbox.VolumeMount) {
	host, claim := d.object(v, "host"), d.object(v, "pvc")
	if d.member(v, "ossfs") != nil {
		d.fail(invalid(sandbox.CodeUnsupportedBackend, `%s.ossfs is not supported by this server. Use "host" or "pvc".`, v.path))
	}
	switch {
	case d.err != nil:
	case host == nil && claim == nil:
		d.fail(invalid(codeVolumeBackend, `%s has no source. Give "host" or "pvc".`, v.path))
	case host != nil && claim != nil:
		d.fail(invalid(codeVolumeBackend, `%s has two sources, "host" and "pvc". Give one.`, v.path))
	case host != nil:
		m.HostPath = d.hostPath(host)
	default:
		d.claim(claim, m)
	}
}

func (d *decoder) hostPath(host *value) string {
	p := d.required(host, "path", bytesRule{max: maxPath})
	if d.err != nil {
		return ""
	}
	if problem := pathProblem(p); problem != "" {
		d.fail(invalid(sandbox.CodeInvalidHostPath, "%s.path is %s; %s", host.path, quote(p), problem))
	} else if path.Clean(p) != p {
		d.fail(invalid(sandbox.CodeInvalidHostPath, `%s.path is %s; it must not have "." or empty parts or a slash at the end.`, host.path, quote(p)))
	}
	return p
}

func (d *decoder) claim(c *value, m *sandbox.VolumeMount) {
	m.Claim = d.required(c, "claimName", bytesRule{max: maxPath})
	if d.err == nil && (len(m.Claim) > maxClaimName || !dnsLabel(m.Claim)) {
		d.fail(invalid(codeClaimName, "%s.claimName is %s; it must be 1 to %d lower case letters, digits or inner hyphens.", c.path, quote(m.Claim), maxClaimName))
	}
	m.CreateIfMissing = d.flag(c, "createIfNotExists", true)
	m.DeleteWithSandbox = d.flag(c, "deleteOnSandboxTermination", false)
	// Hints for clusters are checked, so that a request which works here works
	// there.
	d.text(c, "storageClass", bytesRule{max: maxClaimName})
	if s, ok := d.text(c, "storage", bytesRule{max: maxResource}); ok && !storageForm.MatchString(s) {
		d.refuse(c.path+".storage", `is %s; it must be an amount such as "10Gi".`, quote(s))
	}
	for _, mode := range d.list(c, "accessModes", 16) {
		d.textOf(mode, bytesRule{max: maxShown})
	}
}

func (d *decoder) mountPath(v *value) string {
	p := d.required(v, "mountPath", bytesRule{max: maxPath})
	if d.err != nil {
		return ""
	}
	no := func(format string, args ...any) {
		d.fail(invalid(sandbox.CodeInvalidMountPath, "%s.mountPath is %s; %s", v.path, quote(p), fmt.Sprintf(format, args...)))
	}
	if problem := pathProblem(p); problem != "" {
		no("%s", problem)
		return ""
	}
	clean := path.Clean(p)
	if clean == "/" {
		no("a volume can't replace the root of the sandbox.")
	}
	for _, r := range reservedMounts {
		if clean == r || strings.HasPrefix(clean, r+"/") {
			no("%s is needed by the sandbox itself.", r)
		}
	}
	return clean
}

// pathProblem says what is wrong with an absolute path.
func pathProblem(p string) string {
	if p[0] != '/' {
		return `it must begin with "/".`
	}
	return partsProblem(p)
}

func partsProblem(p string) string {
	for part := range strings.SplitSeq(p, "/") {
		switch {
		case part == "..":
			return `it must not have ".." in it.`
		case len(part) > maxPathPart:
			return "one of its parts is longer than 255 bytes."
		}
	}
	return ""
}

func (d *decoder) subPath(v *value) string {
	s := d.member(v, "subPath")
	if s == nil {
		return ""
	}
	p := d.textOf(s, bytesRule{max: maxPath})
	if d.err != nil || p == "" {
		return ""
	}
	problem := partsProblem(p)
	if strings.HasPrefix(p, "/") {
		problem = "it must be relative to the volume."
	}
	if problem != "" {
		d.fail(invalid(sandbox.CodeInvalidSubPath, "%s.subPath is %s; %s", v.path, quote(p), problem))
		return ""
	}
	if p = path.Clean(p); p == "." {
		return ""
	}
	return p
}
