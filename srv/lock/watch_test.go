package lock_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"missingos/srv/client"
	"missingos/srv/dc"
)

// A follower gathers what a watch tells.
type follower struct {
	mu    sync.Mutex
	revs  []client.LockRevision // with events
	next  dc.Revision           // everything before has been told
	err   error
	ended chan struct{}

	compacted dc.Revision // what the watch was told to be gone
}

// follow watches until the test ends; each is called for every message, before it is noted.
func (n node) follow(t *testing.T, w client.LockWatch, each func(client.LockRevision) error) *follower {
	t.Helper()
	f := &follower{ended: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(f.ended)
		f.err = n.Watch(ctx, w, func(rev client.LockRevision) error {
			if each != nil {
				if err := each(rev); err != nil {
					return err
				}
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			if rev.Compacted != 0 {
				f.compacted = rev.Compacted
				return nil
			}
			if len(rev.Events) > 0 {
				if rev.Revision < f.next {
					t.Errorf("revision %d told after everything before %d", rev.Revision, f.next) // etcd #15271, #17247
				}
				f.revs = append(f.revs, rev)
			}
			f.next = max(f.next, rev.Revision+1)
			return nil
		})
	}()
	t.Cleanup(func() { cancel(); <-f.ended })
	time.Sleep(time.Millisecond)
	synctest.Wait()
	return f
}

// over waits for the end of the watch and gives why.
func (f *follower) over(t *testing.T) error {
	t.Helper()
	select {
	case <-f.ended:
		return f.err
	case <-time.After(10 * time.Minute):
		t.Fatal("the watch goes on")
		return nil
	}
}

func (f *follower) told() []client.LockRevision {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.revs
}

// complete fails unless f was told every revision from first to last, once, in order.
func (f *follower) complete(t *testing.T, first, last dc.Revision) {
	t.Helper()
	revs := f.told()
	for i, rev := range revs {
		if want := first + dc.Revision(i); rev.Revision != want {
			t.Fatalf("message %d is revision %d, want %d", i, rev.Revision, want)
		}
	}
	if got := first + dc.Revision(len(revs)); got != last+1 {
		t.Fatalf("told up to revision %d, want %d", got-1, last)
	}
}

func (n node) put(t *testing.T, path, value string) dc.Revision {
	t.Helper()
	f, err := n.Put(t.Context(), path, client.LockPut{Value: []byte(value)})
	if err != nil {
		t.Fatal(err)
	}
	return f.Version
}

func TestWatchTellsFromNowOnOrFromARevision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		n := c.node(1)
		first := n.put(t, "a", "1")
		now := n.follow(t, client.LockWatch{Recursive: true}, nil)
		past := n.follow(t, client.LockWatch{From: first, Recursive: true}, nil)
		future := n.follow(t, client.LockWatch{From: first + 3, Recursive: true}, nil)
		n.put(t, "a", "2")
		n.put(t, "a", "3")
		last := n.put(t, "b", "4")
		synctest.Wait()
		now.complete(t, first+1, last)
		past.complete(t, first, last)
		future.complete(t, first+3, last)
		if ev := past.told()[2].Events[0]; ev.Kind != "put" || ev.Path != "a" || string(ev.File.Value) != "3" || ev.File.Version != first+2 {
			t.Fatalf("event %+v", ev)
		}
	})
}

func TestWatchTellsARevisionWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		n := c.node(1)
		f := n.follow(t, client.LockWatch{Recursive: true}, nil)
		_, err := n.Txn(t.Context(), client.LockTxn{Then: []client.LockOp{
			{Verb: client.LockMkdirOp, Path: "d"}, {Verb: client.LockPutOp, Path: "d/x"}, {Verb: client.LockPutOp, Path: "y"},
		}})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if revs := f.told(); len(revs) != 1 || len(revs[0].Events) != 3 {
			t.Fatalf("told %+v", revs)
		}
	})
}

func TestWatchOfAPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		n := c.node(1)
		for _, d := range []string{"d", "d/e", "dx"} {
			if _, err := n.Mkdir(t.Context(), d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		flat := n.follow(t, client.LockWatch{Path: "d"}, nil)
		deep := n.follow(t, client.LockWatch{Path: "d", Recursive: true}, nil)
		for _, p := range []string{"top", "dx/f", "d/f", "d/e/f"} {
			n.put(t, p, "x")
		}
		x := n.take(t, "d/f", true, false)
		_ = x.Release(t.Context())
		synctest.Wait()
		paths := func(f *follower) string {
			var out []string
			for _, r := range f.told() {
				for _, ev := range r.Events {
					out = append(out, ev.Kind+" "+ev.Path)
				}
			}
			return strings.Join(out, ", ")
		}
		if got := paths(flat); got != "put d/f, lock d/f, unlock d/f" {
			t.Errorf("d: %s", got)
		}
		if got := paths(deep); got != "put d/f, put d/e/f, lock d/f, unlock d/f" {
			t.Errorf("d recursive: %s", got)
		}
	})
}

// etcd #17529: a slow watcher lost events. Here it falls behind what the hub holds and reads stored history instead.
func TestSlowWatchLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		n := c.node(1)
		first := n.put(t, "f", "0")
		slow := n.follow(t, client.LockWatch{From: first, Recursive: true}, func(rev client.LockRevision) error {
			if rev.Revision%100 == 0 {
				time.Sleep(time.Second)
			}
			return nil
		})
		value := strings.Repeat("v", 16<<10) // the hub holds about 1000 of these
		var last dc.Revision
		for range 3000 {
			last = n.put(t, "f", value)
		}
		time.Sleep(time.Minute)
		slow.complete(t, first, last)
	})
}

func TestWatchSurvivesChangesOfLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		n, writer := c.node(1), c.node(2)
		f := n.follow(t, client.LockWatch{From: 1, Recursive: true}, nil)
		var last dc.Revision
		for i := range 20 {
			for j := range 10 {
				last = writer.put(t, "f", fmt.Sprint(i, j))
			}
			c.rep.Resign()
			time.Sleep(300 * time.Millisecond)
			c.rep.Lead()
		}
		time.Sleep(5 * time.Second)
		f.complete(t, 1, last)
	})
}

// etcd #15220: a progress marker overtook events.
func TestProgressNeverOvertakesEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		n := c.node(1)
		var told, markers dc.Revision
		n.follow(t, client.LockWatch{From: 1, Recursive: true}, func(rev client.LockRevision) error {
			if len(rev.Events) > 0 {
				told = rev.Revision
				return nil
			}
			if markers++; rev.Revision != told {
				t.Errorf("a marker says %d when events up to %d were told", rev.Revision, told)
			}
			return nil
		})
		for range 30 {
			n.put(t, "f", "x")
			time.Sleep(7 * time.Second)
		}
		synctest.Wait()
		if markers < 10 {
			t.Errorf("%d progress markers in %v", markers, 30*7*time.Second)
		}
	})
}

// etcd #18089 and #19179: the deletion at the edge of a compaction was lost.
func TestWatchAtTheEdgeOfACompaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		n := c.node(1)
		n.put(t, "f", "x")
		gone := n.put(t, "f", "y") + 1
		if err := n.Remove(t.Context(), "f", false); err != nil {
			t.Fatal(err)
		}
		if err := n.Compact(t.Context(), gone-1); err != nil {
			t.Fatal(err)
		}
		edge := n.follow(t, client.LockWatch{From: gone, Recursive: true}, nil)
		if revs := edge.told(); len(revs) != 1 || revs[0].Events[0].Kind != "delete" {
			t.Fatalf("told %+v", revs)
		}
		below := n.follow(t, client.LockWatch{From: gone - 1, Recursive: true}, nil)
		wantKind(t, below.over(t), dc.Stale)
		if want := fmt.Sprintf("the oldest that is kept is %d", gone); !strings.Contains(below.err.Error(), want) {
			t.Fatalf("%v, want it to say %q", below.err, want)
		}
	})
}

// etcd #18667: a watcher overtaken by a compaction must be told, not skip silently.
func TestSlowWatchIsToldOfACompaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		n := c.node(1)
		n.put(t, "f", "0")
		block := make(chan struct{})
		slow := n.follow(t, client.LockWatch{From: 1, Recursive: true}, func(rev client.LockRevision) error {
			if rev.Revision == 1 && len(rev.Events) > 0 {
				<-block
			}
			return nil
		})
		var last dc.Revision
		value := strings.Repeat("v", 64<<10)
		for range 1000 {
			last = n.put(t, "f", value)
		}
		if err := n.Compact(t.Context(), last-1); err != nil {
			t.Fatal(err)
		}
		close(block)
		wantKind(t, slow.over(t), dc.Stale)
		if slow.compacted != last-1 {
			t.Fatalf("told that everything up to %d is gone, want %d", slow.compacted, last-1)
		}
		for i, rev := range slow.told() {
			if rev.Revision != dc.Revision(i+1) {
				t.Fatalf("skipped to revision %d before it was told of the compaction", rev.Revision)
			}
		}
	})
}

func TestWatcherCanStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		n := c.node(1)
		enough := errors.New("enough")
		f := n.follow(t, client.LockWatch{Path: "f"}, func(rev client.LockRevision) error {
			if len(rev.Events) > 0 {
				return enough
			}
			return nil
		})
		n.put(t, "f", "x")
		if err := f.over(t); !errors.Is(err, enough) {
			t.Fatal(err)
		}
	})
}

// etcd #15271: a watch from a revision to come was told of earlier ones.
func TestAWatchFromTheFutureIsToldNothingEarlier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		n := c.node(1)
		first := n.put(t, "f", "0")
		markers := 0
		f := n.follow(t, client.LockWatch{From: first + 30, Recursive: true}, func(rev client.LockRevision) error {
			if len(rev.Events) == 0 {
				if markers++; rev.Revision > first+29 {
					t.Errorf("a marker of revision %d before anything was to be told", rev.Revision)
				}
			} else if rev.Revision < first+30 {
				t.Errorf("told revision %d, asked from %d", rev.Revision, first+30)
			}
			if rev.Revision >= first+30 {
				return errors.New("enough")
			}
			return nil
		})
		for i := range 30 {
			if i%7 == 3 {
				c.rep.Resign()
				time.Sleep(300 * time.Millisecond)
				c.rep.Lead()
			}
			n.put(t, "f", "x")
			time.Sleep(3 * time.Second)
		}
		if f.over(t); len(f.told()) != 0 || markers == 0 {
			t.Errorf("told %d revisions and %d markers before the one that was asked for", len(f.told()), markers)
		}
	})
}

func TestWatchTellsWhatWasBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		n := c.node(1)
		f := n.follow(t, client.LockWatch{Recursive: true, Before: true}, nil)
		plain := n.follow(t, client.LockWatch{Recursive: true}, nil)
		first := n.put(t, "f", "1")
		n.put(t, "f", "2")
		if err := n.Remove(t.Context(), "f", false); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		revs := f.told()
		if len(revs) != 3 || !revs[0].Events[0].Before.Absent || string(revs[1].Events[0].Before.Value) != "1" ||
			string(revs[2].Events[0].Before.Value) != "2" || revs[2].Events[0].Before.Version != first+1 {
			t.Fatalf("told %+v", revs)
		}
		if plain.told()[1].Events[0].Before != nil {
			t.Error("told what was not asked for")
		}
	})
}
