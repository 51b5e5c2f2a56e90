package server

import (
	"strconv"
	"testing"
	"time"

	"github.com/paddock-sandbox/paddock/internal/gateway/address"
	"github.com/paddock-sandbox/paddock/internal/sandbox"
)

// Short signatures can be guessed, so wrong ones are counted: for each sandbox,
// whether it exists or not, and without getting in the way of anybody else.
func TestGuessingSignatures(t *testing.T) {
	f := withIngress(t)
	f.m.put("sb", sandbox.Running)
	f.m.put("other", sandbox.Running)
	f.m.dial = program(t, echo)
	keys := f.s.opts.Ingress.Keys
	later := uint64(time.Now().Add(time.Hour).Unix())
	until := address.FormatExpires(later)
	for _, id := range []string{"sb", "no"} {
		wrong := visit{path: "/ingress/" + id + "/80/" + until + "/00000000a/"}
		if a := wrong.send(t, f.url); a.status != 401 {
			t.Errorf("%s: %d %s", id, a.status, a.body)
		}
		if !f.s.guesses.by[id].clear.After(time.Now().Add(-time.Minute)) {
			t.Errorf("%s: a wrong signature was not counted", id)
		}
		for range guessBurst { // as if it went on for an hour
			f.s.guesses.wrong(id, time.Now().Add(time.Hour))
		}
		if a := wrong.send(t, f.url); a.status != 429 {
			t.Errorf("%s, too often: %d %s", id, a.status, a.body)
		}
	}
	right := "/" + until + "/" + keys.Sign("sb", 80, later) + "/"
	if a := (visit{path: "/ingress/sb/80" + right}).send(t, f.url); a.status != 429 || a.header.Get("Retry-After") == "" {
		t.Errorf("a right one, meanwhile: %d %s", a.status, a.body)
	}
	for name, v := range map[string]visit{
		"token":         {path: "/ingress/sb/80/", header: []string{"OpenSandbox-Secure-Access", "token-of-sb"}},
		"long one":      {path: "/ingress/sb/80/" + until + "/" + testKeys(t, false).Sign("sb", 80, later) + "/"},
		"other sandbox": {path: "/ingress/other/80/" + until + "/" + keys.Sign("other", 80, later) + "/"},
	} {
		if a := v.send(t, f.url); a.status != 200 {
			t.Errorf("%s, meanwhile: %d %s", name, a.status, a.body)
		}
	}
}

func TestGuessesAreBounded(t *testing.T) {
	var g guesses
	now := time.Unix(1e9, 0)
	for i := range 3 * maxGuessed {
		g.wrong(strconv.Itoa(i), now)
	}
	if len(g.by) != maxGuessed || g.may("new", now) || !g.may("0", now) {
		t.Errorf("%d ids; new ones: %v, known ones: %v", len(g.by), g.may("new", now), g.may("0", now))
	}
	now = now.Add(time.Hour)
	if g.wrong("new", now); len(g.by) != 1 || !g.may("new", now) || !g.may("another", now) {
		t.Errorf("an hour later: %d ids", len(g.by))
	}
}
