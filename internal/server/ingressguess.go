package server

import (
	"net/http"
	"sync"
	"time"

	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

const (
	// A short signature has 32 bits. With this many wrong ones in a second for
	// one sandbox, a right one is found after seven years on average.
	guessRate  = 10
	guessBurst = 100
	// maxGuessed bounds the ids that are told apart; strangers choose them.
	maxGuessed = 4096
)

// guesses bounds the wrong short signatures that may be tried, by the id that
// they were for, be there a sandbox or not.
type guesses struct {
	mu sync.Mutex
	by map[string]*guessed
	// others is for ids beyond maxGuessed.
	others guessed
}

// guessed is when as many guesses as were made are forgotten.
type guessed struct{ clear time.Time }

const guessCost = time.Second / guessRate

func (g *guessed) exhausted(now time.Time) bool {
	return g.clear.Sub(now) > (guessBurst-1)*guessCost
}

// may is whether a short signature for this id is looked at now.
func (s *guesses) may(id string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.by[id]; g != nil {
		return !g.exhausted(now)
	}
	return len(s.by) < maxGuessed || !s.others.exhausted(now)
}

// wrong counts one that was not right.
func (s *guesses) wrong(id string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.by[id]
	if g == nil && len(s.by) >= maxGuessed {
		for id, g := range s.by {
			if !g.clear.After(now) {
				delete(s.by, id)
			}
		}
	}
	switch {
	case g == nil && len(s.by) >= maxGuessed:
		g = &s.others
	case g == nil:
		g = new(guessed)
		if s.by == nil {
			s.by = make(map[string]*guessed)
		}
		s.by[id] = g
	}
	if g.clear.Before(now) {
		g.clear = now
	}
	g.clear = g.clear.Add(guessCost)
}

func errTooManyGuesses() error {
	return &httpError{status: http.StatusTooManyRequests, code: sandbox.CodeCapacity, retryAfter: time.Second,
		message: "too many wrong signatures were sent for this sandbox. Wait, or use its token or the API key."}
}
