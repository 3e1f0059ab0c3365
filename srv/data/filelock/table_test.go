package filelock_test

import (
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"missingos/srv/data/filelock"
	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

// lock is a lock of a session's owner on bytes of file 1; exclusive unless shared says otherwise.
func lock(session, owner, start, end uint64) file.Lock {
	return file.Lock{Ino: 1, Session: session, Owner: owner, Start: start, End: end, Exclusive: true}
}

func flock(session, owner uint64, exclusive bool) file.Lock {
	return file.Lock{Ino: 1, Session: session, Owner: owner, End: file.LockEnd, Exclusive: exclusive, Flock: true}
}

func take(t *testing.T, tab *filelock.Table, l file.Lock) {
	t.Helper()
	if _, err := tab.Lock(l, 0, false); err != nil {
		t.Fatal(err)
	}
}

func queue(t *testing.T, tab *filelock.Table, l file.Lock, number uint64) *filelock.Wait {
	t.Helper()
	w, err := tab.Lock(l, number, true)
	if err != nil || w == nil {
		t.Fatalf("place %v, %v; want one", w, err)
	}
	return w
}

func served(w *filelock.Wait) bool {
	select {
	case <-w.Done():
		return true
	default:
		return false
	}
}

func refused(t *testing.T, tab *filelock.Table, l file.Lock) {
	t.Helper()
	if _, err := tab.Lock(l, 0, false); !errors.Is(err, dc.Again) {
		t.Fatalf("%v; want Again", err)
	}
}

func TestWaitersAreServedInTheirOrder(t *testing.T) {
	tab := &filelock.Table{}
	take(t, tab, flock(1, 1, true))
	var ws []*filelock.Wait
	for i := range uint64(4) {
		ws = append(ws, queue(t, tab, flock(i+2, 1, true), 1))
	}
	for i, w := range ws {
		if served(w) {
			t.Fatalf("waiter %d is served before its time", i)
		}
		tab.Unlock(flock(uint64(i)+1, 1, true))
		if !served(w) {
			t.Fatalf("waiter %d is not served", i)
		}
	}
}

func TestSharedLocksAreServedTogether(t *testing.T) {
	tab := &filelock.Table{}
	take(t, tab, flock(1, 1, true))
	a, b := queue(t, tab, flock(2, 1, false), 1), queue(t, tab, flock(3, 1, false), 1)
	tab.Unlock(flock(1, 1, true))
	if !served(a) || !served(b) {
		t.Fatal("readers wait for each other")
	}
	refused(t, tab, flock(1, 1, true))
}

func TestADowngradeLetsReadersIn(t *testing.T) {
	tab := &filelock.Table{}
	take(t, tab, flock(1, 1, true))
	w := queue(t, tab, flock(2, 1, false), 1)
	take(t, tab, flock(1, 1, false))
	if !served(w) {
		t.Fatal("the reader still waits")
	}
}

// As flock(2) says, a conversion is not atomic: two readers who both want to write do not wait for each other for ever.
func TestAConversionOfAFlockGivesUpTheOldOne(t *testing.T) {
	tab := &filelock.Table{}
	take(t, tab, flock(1, 1, false))
	take(t, tab, flock(2, 1, false))
	a := queue(t, tab, flock(1, 1, true), 1)
	if _, err := tab.Lock(flock(2, 1, true), 1, true); err != nil {
		t.Fatal(err)
	}
	if tab.Unlock(flock(2, 1, true)); !served(a) {
		t.Fatal("both wait")
	}
}

func TestFlockAndFcntlIgnoreEachOther(t *testing.T) {
	tab := &filelock.Table{}
	take(t, tab, flock(1, 1, true))
	take(t, tab, lock(2, 1, 0, file.LockEnd))
}

func TestRangesAreSplitAndJoined(t *testing.T) {
	tab := &filelock.Table{}
	take(t, tab, lock(1, 1, 0, 99))
	tab.Unlock(lock(1, 1, 40, 59))
	take(t, tab, lock(2, 1, 40, 59))
	refused(t, tab, lock(2, 1, 39, 39))
	refused(t, tab, lock(2, 1, 60, 60))
	if c, ok := tab.Conflict(lock(3, 1, 50, 200)); !ok || c.Session == 3 {
		t.Fatalf("conflict %v %v", c, ok)
	}
	tab.Unlock(lock(2, 1, 0, file.LockEnd))
	take(t, tab, lock(1, 1, 40, 59))
	held, _ := tab.List(10)
	if len(held) != 1 || held[0].Start != 0 || held[0].End != 99 {
		t.Fatalf("held %v; want one of 0..99", held)
	}
}

func TestACircleOfWaitersIsADeadlock(t *testing.T) {
	tab := &filelock.Table{}
	take(t, tab, lock(1, 1, 0, 0))
	take(t, tab, lock(2, 1, 1, 1))
	take(t, tab, lock(3, 1, 2, 2))
	queue(t, tab, lock(1, 1, 1, 1), 1)
	w := queue(t, tab, lock(2, 1, 2, 2), 1)
	if _, err := tab.Lock(lock(3, 1, 0, 0), 1, true); !errors.Is(err, dc.Deadlock) {
		t.Fatalf("%v; want Deadlock", err)
	}
	if tab.Unlock(lock(3, 1, 2, 2)); !served(w) {
		t.Fatal("who was refused still stands in the way")
	}
}

func TestAWaitIsTakenBackOnce(t *testing.T) {
	tab := &filelock.Table{}
	take(t, tab, lock(1, 1, 0, 9))
	queue(t, tab, lock(2, 1, 0, 9), 7)
	if tab.Cancel(lock(2, 1, 0, 9), 7) {
		t.Fatal("held")
	}
	tab.Unlock(lock(1, 1, 0, 9))
	take(t, tab, lock(3, 1, 0, 9)) // the place is gone
	w := queue(t, tab, lock(2, 1, 0, 9), 8)
	tab.Unlock(lock(3, 1, 0, 9))
	if !served(w) || !tab.Cancel(lock(2, 1, 0, 9), 8) {
		t.Fatal("granted just before, but not told so")
	}
}

func TestTheSameRequestTwiceIsOnePlace(t *testing.T) {
	tab := &filelock.Table{}
	take(t, tab, lock(1, 1, 0, 9))
	if a, b := queue(t, tab, lock(2, 1, 0, 9), 7), queue(t, tab, lock(2, 1, 0, 9), 7); a != b {
		t.Fatal("two places")
	}
}

func TestASessionThatEndsFreesItsLocksAndPlaces(t *testing.T) {
	tab := &filelock.Table{}
	take(t, tab, lock(1, 1, 0, 9))
	gone := queue(t, tab, lock(2, 1, 0, 9), 1)
	w := queue(t, tab, lock(3, 1, 0, 9), 1)
	tab.Claim(2, nil)
	if !served(gone) {
		t.Fatal("its place stays")
	}
	tab.Claim(1, nil)
	if !served(w) {
		t.Fatal("its lock stays")
	}
	if held, waiting := tab.List(10); len(held) != 1 || held[0].Session != 3 || len(waiting) != 0 {
		t.Fatalf("held %v, waiting %v", held, waiting)
	}
}

func TestAClaimOfWhatOthersHoldIsRefused(t *testing.T) {
	tab := &filelock.Table{}
	take(t, tab, lock(1, 1, 0, 9))
	if tab.Claim(2, []file.Lock{lock(2, 1, 5, 20)}) {
		t.Fatal("two hold byte 5")
	}
	if !tab.Claim(2, []file.Lock{lock(2, 1, 10, 20)}) {
		t.Fatal("a claim of what is free fails")
	}
	refused(t, tab, lock(1, 1, 15, 15))
}

func TestAsManyWaitAsTheLimitSays(t *testing.T) {
	tab := &filelock.Table{}
	take(t, tab, flock(1, 1, true))
	for i := range uint64(file.MaxLockWaits) {
		queue(t, tab, flock(2, i+1, true), i+1)
	}
	if _, err := tab.Lock(flock(2, file.MaxLockWaits+1, true), file.MaxLockWaits+1, true); !errors.Is(err, dc.NoSpace) {
		t.Fatalf("%v; want NoSpace", err)
	}
	queue(t, tab, flock(3, 1, true), 1)
}

// Whatever is asked, each byte has the holders that a plain account of bytes allows, and nobody waits for what is free.
func TestBytesHaveOneWriterOrReaders(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tab := &filelock.Table{}
		number := uint64(0)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			l := lock(rapid.Uint64Range(1, 3).Draw(t, "session"), rapid.Uint64Range(1, 2).Draw(t, "owner"), rapid.Uint64Range(0, 15).Draw(t, "start"), 0)
			l.End = l.Start + rapid.Uint64Range(0, 6).Draw(t, "length")
			l.Exclusive, l.Ino = rapid.Bool().Draw(t, "exclusive"), file.Ino(rapid.IntRange(1, 2).Draw(t, "file"))
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0, 1:
				c, conflict := tab.Conflict(l)
				if _, err := tab.Lock(l, 0, false); (err != nil) != conflict {
					t.Fatalf("%v, though in its way is %v %v", err, c, conflict)
				}
			case 2:
				number++
				if _, err := tab.Lock(l, number, true); err != nil && !errors.Is(err, dc.Deadlock) {
					t.Fatal(err)
				}
			case 3, 4:
				tab.Unlock(l)
			case 5:
				tab.Claim(l.Session, nil)
			}
			check(t, tab)
		}
		for s := range uint64(3) {
			tab.Claim(s+1, nil)
		}
		for range 2 { // those who were waiting hold now
			for s := range uint64(3) {
				tab.Claim(s+1, nil)
			}
		}
		if held, waiting := tab.List(100); len(held) != 0 || len(waiting) != 0 {
			t.Fatalf("held %v, waiting %v after all have ended", held, waiting)
		}
	})
}

func check(t *rapid.T, tab *filelock.Table) {
	held, waiting := tab.List(10_000)
	for i, a := range held {
		for _, b := range held[i+1:] {
			if a.Ino == b.Ino && (a.Conflicts(b) || a.SameHolder(b) && a.Overlaps(b)) {
				t.Fatalf("both %v and %v are held", a, b)
			}
		}
	}
	for _, w := range waiting {
		if !slices.ContainsFunc(held, func(h file.Lock) bool { return h.Ino == w.Ino && h.Conflicts(w) }) {
			t.Fatalf("%v waits for nobody", w)
		}
	}
}
