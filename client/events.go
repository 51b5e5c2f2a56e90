package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Event is something that happened to a sandbox.
type Event struct {
	// Seq rises with every event of a sandbox.
	Seq int64     `json:"seq"`
	At  time.Time `json:"at"`
	// Kind is a word such as "Started", "Paused" or "Ended". Others may be
	// added.
	Kind string `json:"kind"`
	// Reason is that of the sandbox's status, if it changed.
	Reason string `json:"reason,omitempty"`
	// Subject is the name of a hook, when it is about one.
	Subject string `json:"subject,omitempty"`
	// Message is a sentence for a person. It may hold what the sandbox printed:
	// pass it through Printable before showing it on a terminal.
	Message string `json:"message"`
	// Count is how often it happened, the last time at At and the first at
	// FirstAt, which is zero when it happened once.
	Count   int       `json:"count"`
	FirstAt time.Time `json:"firstAt,omitzero"`
}

// EventList is what happened to a sandbox, oldest first.
type EventList struct {
	Items []Event `json:"items"`
	// Dropped is how many older events the server does not keep any more.
	Dropped int64 `json:"dropped"`
}

// Events returns what happened to a sandbox after the event with the given Seq;
// 0 is from its beginning.
func (c *Client) Events(ctx context.Context, id string, after int64) (*EventList, error) {
	p, err := sandboxPath(id)
	if err != nil {
		return nil, err
	}
	list := new(EventList)
	r := &request{method: http.MethodGet, path: p + "/events", query: eventsQuery(after)}
	if err := c.call(ctx, r, nil, list); err != nil {
		return nil, err
	}
	return list, nil
}

func eventsQuery(after int64) url.Values {
	if after <= 0 {
		return nil
	}
	return url.Values{"after": {strconv.FormatInt(after, 10)}}
}

// FollowEvents gives the events of a sandbox after the one with the given Seq,
// and then each as it happens, until the sandbox has ended or is removed. give
// is called from this goroutine; its error ends the call and is returned. When
// the connection is lost the error is ErrConnectionLost; going on from the last
// Seq misses nothing.
func (c *Client) FollowEvents(ctx context.Context, id string, after int64, give func(Event) error) error {
	p, err := sandboxPath(id)
	if err != nil {
		return err
	}
	resp, _, err := c.send(ctx, &request{method: http.MethodGet, path: p + "/events", query: eventsQuery(after),
		header: http.Header{"Accept": {"text/event-stream"}}, repeatable: true})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for events := newEventReader(resp.Body); ; {
		raw, err := events.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrConnectionLost, err)
		}
		var e Event
		if err := json.Unmarshal(raw, &e); err != nil {
			return fmt.Errorf("an event of sandbox %s is not valid JSON: %w", id, err)
		}
		if err := give(e); err != nil {
			return err
		}
	}
}
