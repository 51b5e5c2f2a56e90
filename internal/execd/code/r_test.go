package code

import "testing"

func TestR(t *testing.T) {
	need(t, "R")
	s := newSandbox(t)
	s.steps("r", []step{
		{code: "cat('hi\\n')", out: "hi\n", result: "-"},
		{code: "x <- 41", result: "-"},
		{code: "x + 1", result: "[1] 42"},
		{code: "1:2\ninvisible(3)", out: "[1] 1 2", result: "-"},
		{code: "twice <- function(a) a * 2\ntwice(x)", result: "82"},
		{code: "'é☃'", result: "é☃"},
		{code: "data.frame(a = 1:2, b = c('x', 'y'))", result: "a b\n1 1 x"},
		{code: "f <- function() stop('bad')\ncat('so far')\nf()", out: "so far", name: "Error", value: "bad", trace: "f()"},
		{code: "x <- (1,", name: "Error", value: "unexpected"},
		{code: "warning('careful'); message('note')", err: "careful"},
		{code: "nosuch", name: "Error", value: "not found"},
		{code: "x", result: "41"},
	})
	o := s.do("R", "plot(1:3); 'drawn'")
	if o.errName != "" {
		t.Skipf("this R can't draw: %s", o.errValue)
	}
	if len(o.results) != 2 || o.mime(0, "image/png") == "" {
		t.Errorf("results of a plot: %v", o.results)
	}
}
