package server

import (
	"context"
	"math"
	"net/http"
	"net/url"
	"strconv"

	"github.com/paddock-sandbox/paddock/api"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// listEvents answers with what happened so far, or with a stream that goes on.
func (s *Server) listEvents(r *request) error {
	q, err := r.query()
	if err != nil {
		return err
	}
	after, err := queryAfter(q)
	if err != nil {
		return err
	}
	id, err := r.sandboxID()
	if err != nil {
		return err
	}
	if acceptsEvents(r.Header) {
		return s.streamEvents(r, id, after)
	}
	events, err := s.manager.Events(id)
	if err != nil {
		return err
	}
	list := api.EventList{Items: []api.SandboxEvent{}, Dropped: events.Dropped()}
	for _, e := range events.After(after) {
		list.Items = append(list.Items, eventAnswer(&e))
	}
	writeJSON(r.w, http.StatusOK, list)
	return nil
}

func queryAfter(q url.Values) (int64, error) {
	if !q.Has("after") {
		return 0, nil
	}
	n, err := strconv.ParseInt(q.Get("after"), 10, 64)
	if err != nil || n < 0 {
		return 0, invalid(sandbox.CodeInvalidParameter, "after is %s; it must be a whole number from 0 to %d.", quote(q.Get("after")), int64(math.MaxInt64))
	}
	return n, nil
}

func eventAnswer(e *sandbox.Event) api.SandboxEvent {
	a := api.SandboxEvent{
		Seq: e.Seq, At: instant(e.At), Kind: string(e.Kind), Reason: e.Reason,
		Subject: e.Subject, Message: e.Message, Count: e.Count,
	}
	if !e.FirstAt.IsZero() {
		a.FirstAt = instant(e.FirstAt)
	}
	return a
}

// streamEvents writes events as they happen, until the sandbox has ended.
func (s *Server) streamEvents(r *request, id string, after int64) error {
	if _, err := s.manager.Events(id); err != nil {
		return err // an ordinary error, before the stream begins
	}
	w := &eventWriter{w: r.w}
	if err := w.comment(); err != nil { // the client learns that it listens
		return err
	}
	_, err := w.follow(r.Context(), func(ctx context.Context, send func(any) error) error {
		return s.manager.FollowEvents(ctx, id, after, func(batch []sandbox.Event) error {
			for i := range batch {
				if err := send(eventAnswer(&batch[i])); err != nil {
					return err
				}
			}
			return nil
		})
	})
	return err
}
