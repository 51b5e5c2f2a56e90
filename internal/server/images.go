package server

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
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

// imageRef reads the ref parameter.
func imageRef(q url.Values) (string, error) {
	ref := q.Get("ref")
	switch {
	case strings.TrimSpace(ref) == "":
		return "", invalid(sandbox.CodeInvalidParameter, "ref is missing; it must name an image, by name or digest.")
	case len(ref) > maxImageRef:
		return "", invalid(sandbox.CodeInvalidParameter, "ref is %d bytes long; at most %d are allowed.", len(ref), maxImageRef)
	}
	return ref, nil
}

func (s *Server) removeImage(r *request) error {
	store, err := s.imageStore()
	if err != nil {
		return err
	}
	q, err := r.query()
	if err != nil {
		return err
	}
	ref, err := imageRef(q)
	if err != nil {
		return err
	}
	if err := store.Remove(r.Context(), ref); err != nil {
		return err
	}
	return noContent(r, http.StatusNoContent)
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

func acceptsEvents(h http.Header) bool {
	for _, line := range h.Values("Accept") {
		for part := range strings.SplitSeq(line, ",") {
			media, _, _ := strings.Cut(part, ";")
			if strings.EqualFold(strings.TrimSpace(media), "text/event-stream") {
				return true
			}
		}
	}
	return false
}

// pullHeartbeat keeps a connection alive on which a slow layer arrives.
const pullHeartbeat = 10 * time.Second

// streamPull runs a pull and writes its events. A pull that fails before its
// first event is an ordinary error.
func streamPull(r *request, pull func(context.Context, func(image.Progress)) (*image.Image, error)) error {
	ctx, cancel := context.WithCancel(r.Context())
	events := make(chan api.PullEvent)
	type outcome struct {
		img *image.Image
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		img, err := pull(ctx, func(p image.Progress) {
			select {
			case events <- pullEvent(p):
			case <-ctx.Done():
			}
		})
		done <- outcome{img, err}
	}()
	// The pull is over before the handler returns, however that happens.
	ended := false
	defer func() {
		cancel()
		if !ended {
			<-done
		}
	}()
	w := &eventWriter{w: r.w}
	beat := time.NewTicker(pullHeartbeat)
	defer beat.Stop()
	for {
		var err error
		select {
		case e := <-events:
			err = w.event(e)
		case <-beat.C:
			err = w.comment()
		case o := <-done:
			ended = true
			return w.end(r, o.img, o.err)
		}
		if err != nil {
			return err
		}
	}
}

func pullEvent(p image.Progress) api.PullEvent {
	return api.PullEvent{Phase: p.Phase, Message: p.String(), LayersDone: p.LayersDone, LayersTotal: p.LayersTotal,
		BytesDone: p.BytesDone, BytesTotal: p.BytesTotal}
}

// eventWriter writes server-sent events.
type eventWriter struct {
	w     http.ResponseWriter
	begun bool
}

func (e *eventWriter) end(r *request, img *image.Image, err error) error {
	if err != nil && !e.begun {
		return err
	}
	if err != nil {
		a := toAnswer(err, r.id)
		return e.event(api.PullEvent{Phase: "error", Message: a.message, Error: api.Error{Code: a.code, Message: a.message}})
	}
	last := pullEvent(image.Progress{Phase: image.PhaseDone})
	last.Image = imageAnswer(img)
	return e.event(last)
}

func (e *eventWriter) event(v any) error {
	var b bytes.Buffer
	b.WriteString("data: ")
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return err
	}
	b.WriteString("\n")
	return e.write(b.Bytes())
}

func (e *eventWriter) comment() error { return e.write([]byte(": waiting\n\n")) }

func (e *eventWriter) write(p []byte) error {
	rc := http.NewResponseController(e.w)
	if !e.begun {
		e.begun = true
		h := e.w.Header()
		h.Set("Content-Type", "text/event-stream")
		h.Set("Cache-Control", "no-cache")
		h.Set("X-Accel-Buffering", "no")
		e.w.WriteHeader(http.StatusOK)
	}
	_ = rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := e.w.Write(p); err != nil {
		return err
	}
	return rc.Flush()
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
	store, err := s.imageStore()
	if err != nil {
		return err
	}
	q, err := r.query()
	if err != nil {
		return err
	}
	ref, err := imageRef(q)
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
