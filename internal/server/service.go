package server

import (
	"net/http"
	"regexp"
	"time"

	"github.com/paddock-sandbox/paddock/api"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func (s *Server) health(r *request) error {
	if s.draining.Load() {
		return &httpError{status: http.StatusServiceUnavailable, code: codeDraining, retryAfter: 2 * time.Second,
			message: "The server is shutting down."}
	}
	writeJSON(r.w, http.StatusOK, api.Health{Status: "healthy"})
	return nil
}

func (s *Server) version(r *request) error {
	writeJSON(r.w, http.StatusOK, api.Version{Version: s.opts.Version})
	return nil
}

func (s *Server) openAPI(r *request) error {
	r.w.Header().Set("Content-Type", "application/json")
	writeBytes(r.w, http.StatusOK, api.LifecycleJSON)
	return nil
}

func (s *Server) listVolumes(r *request) error {
	volumes, err := s.manager.Volumes(r.Context())
	if err != nil {
		return err
	}
	list := api.VolumeList{Items: make([]api.VolumeInfo, len(volumes))}
	for i, v := range volumes {
		list.Items[i] = api.VolumeInfo{Name: v.Name, CreatedAt: instant(v.CreatedAt), SizeBytes: v.SizeBytes}
	}
	writeJSON(r.w, http.StatusOK, list)
	return nil
}

func (s *Server) removeVolume(r *request) error {
	name := r.args[0]
	if len(name) > maxClaimName || !dnsLabel(name) {
		return sandbox.Errorf(sandbox.KindNotFound, sandbox.CodeVolumeNotFound, "There is no volume %s.", quote(name))
	}
	if err := s.manager.RemoveVolume(r.Context(), name); err != nil {
		return err
	}
	return empty(r, http.StatusNoContent)
}

// sdkAgent is how SDKs introduce themselves (OpenSandbox API).
var sdkAgent = regexp.MustCompile(`OpenSandbox-([A-Za-z0-9]{1,32})-SDK/`)

// sdkNames bounds the label that clients choose.
var sdkNames = map[string]string{
	"Python": "python", "JS": "js", "JavaScript": "js", "TypeScript": "js", "Kotlin": "kotlin", "Java": "kotlin",
	"Go": "go", "CSharp": "csharp", "DotNet": "csharp",
}

// maxReportedMillis is a day; what is beyond is a client's mistake.
const maxReportedMillis = 24 * 3600 * 1000

// reportMetricsEvent takes what SDKs measured (OpenSandbox lifecycle API).
func (s *Server) reportMetricsEvent(r *request) error {
	body, err := s.readJSON(r)
	if err != nil {
		return err
	}
	d := new(decoder)
	if !d.is(body, kindObject) {
		return d.err
	}
	kind := d.required(body, "eventType", bytesRule{max: maxShown})
	if d.err == nil && kind != "sandbox.create" {
		d.refuse("eventType", `is %s; it must be "sandbox.create".`, quote(kind))
	}
	// Nothing is done with these: whatever a client calls them is good enough.
	for _, name := range []string{"sandboxId", "image"} {
		if v := d.member(body, name); v != nil {
			d.is(v, kindString)
		}
	}
	took := d.member(body, "createDurationMs")
	if took == nil && d.err == nil {
		d.refuse("createDurationMs", "is missing.")
	}
	var millis int64
	if d.err == nil {
		millis = d.whole(took, 0, maxReportedMillis)
	}
	if d.err == nil && d.member(body, "success") == nil {
		d.refuse("success", "is missing.")
	}
	success := d.flag(body, "success", false)
	if d.err != nil {
		return d.err
	}
	sdk := "other"
	if m := sdkAgent.FindStringSubmatch(r.UserAgent()); m != nil && sdkNames[m[1]] != "" {
		sdk = sdkNames[m[1]]
	}
	s.metrics.reported(sdk, success, time.Duration(millis)*time.Millisecond)
	return empty(r, http.StatusNoContent)
}
