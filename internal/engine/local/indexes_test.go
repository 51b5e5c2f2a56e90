package local

import (
	"errors"
	"testing"
)

// An index is free again only when the connections of its address are forgotten.
func TestIndexes(t *testing.T) {
	var forgotten []map[int]bool
	var failure error
	x := newIndexes(func(set map[int]bool) error {
		if failure == nil {
			forgotten = append(forgotten, set)
		}
		return failure
	})
	if err := x.reserve(map[int]bool{0: true, 2: true}); err != nil {
		t.Fatal(err)
	}
	if len(forgotten) != 1 || len(forgotten[0]) != maxIndex-2 || forgotten[0][0] || !forgotten[0][1] {
		t.Fatalf("at first the connections of %d addresses are forgotten", len(forgotten[0]))
	}
	take := func(want int) {
		t.Helper()
		if got, err := x.take(); err != nil || got != want {
			t.Fatalf("took %d, %v, want %d", got, err, want)
		}
	}
	take(1)
	take(3)
	for x.left() > 0 {
		if _, err := x.take(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := x.take(); !errors.Is(err, errNoIndex) {
		t.Fatalf("none is left: %v", err)
	}
	x.give(2)
	x.give(2) // twice is once
	x.give(7)
	if x.left() != 2 {
		t.Errorf("%d are left", x.left())
	}
	failure = errors.New("the kernel says no")
	if _, err := x.take(); !errors.Is(err, failure) {
		t.Errorf("an index was given out whose connections are not forgotten: %v", err)
	}
	failure = nil
	take(2)
	take(7)
	if last := forgotten[len(forgotten)-1]; len(last) != 2 || !last[2] || !last[7] {
		t.Errorf("forgot %v", last)
	}
	if _, err := x.take(); !errors.Is(err, errNoIndex) {
		t.Errorf("none is left: %v", err)
	}
}
