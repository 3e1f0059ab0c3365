package locktable_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"missingos/fs/locktable"
	"missingos/srv/dc"
)

func whole(owner uint64, exclusive bool) locktable.Lock {
	return locktable.Lock{End: locktable.End, Owner: owner, Exclusive: exclusive, Flock: true}
}

func record(owner, start, end uint64, exclusive bool) locktable.Lock {
	return locktable.Lock{Start: start, End: end, Owner: owner, Exclusive: exclusive}
}

func TestConflicts(t *testing.T) {
	for _, c := range []struct {
		name       string
		held, want locktable.Lock
		conflict   bool
	}{
		{"shared with shared", whole(1, false), whole(2, false), false},
		{"exclusive after shared", whole(1, false), whole(2, true), true},
		{"shared after exclusive", whole(1, true), whole(2, false), true},
		{"same owner upgrades", whole(1, false), whole(1, true), false},
		{"ranges apart", record(1, 0, 9, true), record(2, 10, 19, true), false},
		{"ranges touch by one byte", record(1, 0, 10, true), record(2, 10, 19, true), true},
		{"flock ignores fcntl", whole(1, true), record(2, 0, locktable.End, true), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var tab locktable.Table[string]
			if err := tab.Lock(t.Context(), "f", c.held, false); err != nil {
				t.Fatal(err)
			}
			err := tab.Lock(t.Context(), "f", c.want, false)
			if got := errors.Is(err, dc.Again); got != c.conflict {
				t.Errorf("got conflict %v (%v), want %v", got, err, c.conflict)
			}
			if err := tab.Lock(t.Context(), "other", c.want, false); err != nil {
				t.Errorf("locks of one file reach another: %v", err)
			}
		})
	}
}

func TestUnlockInTheMiddleSplitsARange(t *testing.T) {
	var tab locktable.Table[int]
	if err := tab.Lock(t.Context(), 1, record(1, 0, 99, true), false); err != nil {
		t.Fatal(err)
	}
	tab.Unlock(1, record(1, 40, 59, false))
	for _, c := range []struct {
		l    locktable.Lock
		free bool
	}{{record(2, 0, 39, true), false}, {record(2, 40, 59, true), true}, {record(2, 60, 60, true), false}} {
		if _, held := tab.Conflict(1, c.l); held == c.free {
			t.Errorf("bytes %d-%d: got free %v, want %v", c.l.Start, c.l.End, !held, c.free)
		}
	}
	tab.Release(1, 1, false)
	if tab.Len() != 0 {
		t.Errorf("the table still remembers %d files", tab.Len())
	}
}

func TestWaitersGetTheLockWhenItGoesAndGiveUpWithTheirContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tab locktable.Table[string]
		if err := tab.Lock(t.Context(), "f", whole(1, true), false); err != nil {
			t.Fatal(err)
		}
		got := make(chan error, 2)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go func() { got <- tab.Lock(ctx, "f", whole(2, true), true) }()
		if err := <-got; !errors.Is(err, dc.Unavailable) {
			t.Errorf("got %v from a wait that timed out, want %v", err, dc.Unavailable)
		}
		for owner := uint64(3); owner < 5; owner++ {
			go func() { got <- tab.Lock(t.Context(), "f", whole(owner, false), true) }()
		}
		synctest.Wait()
		tab.Release("f", 1, true)
		for range 2 {
			if err := <-got; err != nil {
				t.Errorf("a shared waiter got %v", err)
			}
		}
		tab.Release("f", 3, true)
		tab.Release("f", 4, true)
		if tab.Len() != 0 {
			t.Errorf("the table still remembers %d files", tab.Len())
		}
	})
}

func TestWaitingInACircleIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var tab locktable.Table[string]
		files := []string{"a", "b", "c"}
		for i, f := range files {
			if err := tab.Lock(t.Context(), f, record(uint64(i), 0, 9, true), false); err != nil {
				t.Fatal(err)
			}
		}
		done := make(chan error, 2)
		for i := range 2 {
			go func() { done <- tab.Lock(t.Context(), files[i+1], record(uint64(i), 5, 20, true), true) }()
		}
		synctest.Wait()
		if err := tab.Lock(t.Context(), "a", record(2, 9, 9, false), true); dc.KindOf(err) != dc.Deadlock {
			t.Fatalf("the last of a circle: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := tab.Lock(ctx, "a", record(7, 0, 0, true), true); dc.KindOf(err) == dc.Deadlock {
			t.Errorf("one who holds nothing: %v", err)
		}
		tab.Release("c", 2, false)
		if err := <-done; err != nil {
			t.Error(err)
		}
		tab.Release("b", 1, false)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
