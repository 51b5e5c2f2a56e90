package server

import (
	"context"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/paddock-sandbox/paddock/api"
	"github.com/paddock-sandbox/paddock/internal/image"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

func (s *Server) imageStore() (Images, error) {
	if s.images == nil {
		return nil, sandbox.Errorf(sandbox.KindNotImplemented, sandbox.CodeNotSupported, "Images can't be managed through this server.")
	}
	return s.images, nil
}

func (s *Server) listImages(r *request) error {
	store, err := s.imageStore()
	if err != nil {
		return err
	}
	images, err := store.List(r.Context())
	if err != nil {
		return err
	}
	writeJSON(r.w, http.StatusOK, imageList(images))
	return nil
}

// namedImage returns the store, and the image that the ref parameter names.
func (s *Server) namedImage(r *request) (store Images, ref string, err error) {
	if store, err = s.imageStore(); err != nil {
		return nil, "", err
	}
	q, err := r.query()
	if err != nil {
		return nil, "", err
	}
	ref = q.Get("ref")
	switch {
	case strings.TrimSpace(ref) == "":
		return nil, "", invalid(sandbox.CodeInvalidParameter, "ref is missing; it must name an image, by name or digest.")
	case len(ref) > maxImageRef:
		return nil, "", invalid(sandbox.CodeInvalidParameter, "ref is %d bytes long; at most %d are allowed.", len(ref), maxImageRef)
	}
	return store, ref, nil
}

func (s *Server) removeImage(r *request) error {
	store, ref, err := s.namedImage(r)
	if err != nil {
		return err
	}
	if err := store.Remove(r.Context(), ref); err != nil {
		return err
	}
	return empty(r, http.StatusNoContent)
}

func (s *Server) pruneImages(r *request) error {
	store, err := s.imageStore()
	if err != nil {
		return err
	}
	all := false
	if r.ContentLength != 0 {
		body, err := s.readJSON(r)
		if err != nil {
			return err
		}
		d := new(decoder)
		if d.is(body, kindObject) {
			d.only(body, "all")
			all = d.flag(body, "all", false)
		}
		if d.err != nil {
			return d.err
		}
	}
	pruned, err := store.Prune(r.Context(), all)
	if err != nil {
		return err
	}
	answer := api.PruneResponse{Images: pruned.Images, Bytes: pruned.Bytes}
	if answer.Images == nil {
		answer.Images = []string{}
	}
	writeJSON(r.w, http.StatusOK, answer)
	return nil
}

// pullImage answers when the image is there, or with a stream of its progress.
func (s *Server) pullImage(r *request) error {
	store, err := s.imageStore()
	if err != nil {
		return err
	}
	body, err := s.readJSON(r)
	if err != nil {
		return err
	}
	d := new(decoder)
	var uri string
	var auth *sandbox.RegistryAuth
	var platform *sandbox.Platform
	if d.is(body, kindObject) {
		uri, auth = d.image(body)
		platform = d.platform(body)
	}
	if d.err != nil {
		return d.err
	}
	if !acceptsEvents(r.Header) {
		img, err := store.Pull(r.Context(), uri, platform, auth, nil)
		if err != nil {
			return err
		}
		writeJSON(r.w, http.StatusOK, imageAnswer(img))
		return nil
	}
	return streamPull(r, func(ctx context.Context, progress func(image.Progress)) (*image.Image, error) {
		return store.Pull(ctx, uri, platform, auth, progress)
	})
}

// streamPull runs a pull and writes its events. A pull that fails before its
// first event is an ordinary error.
func streamPull(r *request, pull func(context.Context, func(image.Progress)) (*image.Image, error)) error {
	w := &eventWriter{w: r.w}
	var img *image.Image
	over, err := w.follow(r.Context(), func(ctx context.Context, send func(any) error) (err error) {
		img, err = pull(ctx, func(p image.Progress) { _ = send(pullEvent(p)) })
		return err
	})
	switch {
	case !over, err != nil && !w.begun:
		return err
	case err != nil:
		a := toAnswer(err, r.id)
		return w.event(api.PullEvent{Phase: "error", Message: a.message, Error: api.Error{Code: a.code, Message: a.message}})
	}
	last := pullEvent(image.Progress{Phase: image.PhaseDone})
	last.Image = imageAnswer(img)
	return w.event(last)
}

func pullEvent(p image.Progress) api.PullEvent {
	return api.PullEvent{Phase: p.Phase, Message: p.String(), LayersDone: p.LayersDone, LayersTotal: p.LayersTotal,
		BytesDone: p.BytesDone, BytesTotal: p.BytesTotal}
}

// importImages loads an archive from the body, which may be of any length but
// not of any slowness.
func (s *Server) importImages(r *request) error {
	store, err := s.imageStore()
	if err != nil {
		return err
	}
	q, err := r.query()
	if err != nil {
		return err
	}
	name := q.Get("name")
	if len(name) > maxImageRef {
		return invalid(sandbox.CodeInvalidParameter, "name is %d bytes long; at most %d are allowed.", len(name), maxImageRef)
	}
	if r.ContentLength == 0 {
		return invalid(sandbox.CodeInvalidParameter, "The body is empty; it must be an image archive.")
	}
	archive := &pacedReader{r: r.Body, rc: http.NewResponseController(r.w)}
	images, err := store.Import(r.Context(), archive, name)
	if archive.err != nil {
		return bodyFailure(r, archive.err) // and not what the store made of it
	}
	_ = archive.rc.SetReadDeadline(time.Time{})
	if err != nil {
		return err
	}
	writeJSON(r.w, http.StatusOK, imageList(images))
	return nil
}

// pacedReader bounds how long a client may stop sending.
type pacedReader struct {
	r   io.Reader
	rc  *http.ResponseController
	err error
}

func (p *pacedReader) Read(b []byte) (int, error) {
	_ = p.rc.SetReadDeadline(time.Now().Add(transferIdle))
	n, err := p.r.Read(b)
	if err != nil && err != io.EOF {
		p.err = err
	}
	return n, err
}

func (s *Server) exportImage(r *request) error {
	store, ref, err := s.namedImage(r)
	if err != nil {
		return err
	}
	w := &archiveWriter{w: r.w, rc: http.NewResponseController(r.w)}
	if err := store.Export(r.Context(), ref, w); err != nil {
		return err // breaks the connection off when the archive has begun
	}
	w.begin()
	return nil
}

// archiveWriter begins the answer with its first byte, so that an export that
// can't begin is an ordinary error.
type archiveWriter struct {
	w     http.ResponseWriter
	rc    *http.ResponseController
	begun bool
}

func (a *archiveWriter) begin() {
	if !a.begun {
		a.begun = true
		a.w.Header().Set("Content-Type", "application/x-tar")
		a.w.Header().Set("Content-Disposition", `attachment; filename="image.tar"`)
		a.w.WriteHeader(http.StatusOK)
	}
}

func (a *archiveWriter) Write(p []byte) (int, error) {
	a.begin()
	_ = a.rc.SetWriteDeadline(time.Now().Add(transferIdle))
	return a.w.Write(p)
}
