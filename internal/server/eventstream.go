package server

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"time"
)

// heartbeat keeps a connection alive on which nothing happens.
const heartbeat = 10 * time.Second

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

// eventWriter writes server-sent events.
type eventWriter struct {
	w     http.ResponseWriter
	begun bool
}

// follow writes what work sends, and a comment now and then, until work is over;
// err is then that of work. Otherwise err is why the stream broke off: the client
// is gone, and work was told so by its context. Work has returned in both cases.
func (e *eventWriter) follow(ctx context.Context, work func(ctx context.Context, send func(any) error) error) (over bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	events := make(chan any)
	done := make(chan error, 1)
	go func() {
		done <- work(ctx, func(v any) error {
			select {
			case events <- v:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	defer func() {
		cancel()
		if !over {
			<-done
		}
	}()
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for err == nil {
		select {
		case v := <-events:
			err = e.event(v)
		case <-beat.C:
			err = e.comment()
		case err = <-done:
			return true, err
		}
	}
	return false, err
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
