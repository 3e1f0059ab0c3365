package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"missingos/srv/client"
	"missingos/srv/dc"
)

// A told is all that one watch has told, over all its interruptions.
type told struct {
	name  string
	watch client.LockWatch
	mu    sync.Mutex
	revs  []client.LockRevision // with events
	mark  dc.Revision           // everything up to here has been told
	err   error
}

// run watches until ctx ends. Every few revisions it stops and begins anew after the last mark, as a program does that is restarted.
func (w *told) run(ctx context.Context, l *client.Lock, rng *rand.Rand) {
	again := errors.New("again")
	for ctx.Err() == nil {
		left := 1 + rng.IntN(60)
		err := l.Watch(ctx, w.watch, func(rev client.LockRevision) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(rev.Events) > 0 {
				if rev.Revision <= w.mark {
					w.err = errors.Join(w.err, fmt.Errorf("revision %d told after a mark of %d", rev.Revision, w.mark))
				}
				w.revs = append(w.revs, rev)
			}
			w.mark = max(w.mark, rev.Revision)
			w.watch.From = w.mark + 1
			if left--; left == 0 {
				return again
			}
			return nil
		})
		if err != nil && !errors.Is(err, again) && ctx.Err() == nil {
			w.mu.Lock()
			w.err = errors.Join(w.err, err)
			w.mu.Unlock()
			return
		}
	}
}

func (w *told) reached(rev dc.Revision) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err != nil || w.mark >= rev
}

// An acked is a change that a writer was told to have happened.
type acked struct {
	rev   dc.Revision
	paths []string // all in this revision
	value string
}

// writeRandomly changes files until stop, and gives what was acknowledged.
func writeRandomly(t *testing.T, l *client.Lock, id int, rng *rand.Rand, stop *atomic.Bool) (all []acked) {
	dirs := []string{"w/a", "w/b", "w/b/c"}
	for i := 0; !stop.Load(); i++ {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		one := dirs[rng.IntN(3)] + fmt.Sprint("/f", rng.IntN(4))
		other := dirs[rng.IntN(3)] + fmt.Sprint("/g", rng.IntN(4))
		value := fmt.Sprint(id, ".", i)
		switch rng.IntN(5) {
		case 0: // may find nothing
			_ = l.Remove(ctx, one, false)
		case 1:
			_ = l.Rename(ctx, one, other, false)
		case 2:
			r, err := l.Txn(ctx, client.LockTxn{Then: []client.LockOp{
				{Verb: client.LockPutOp, Path: one, Value: []byte(value)}, {Verb: client.LockPutOp, Path: other, Value: []byte(value)},
			}})
			if err != nil {
				t.Errorf("txn: %v", err)
			} else {
				all = append(all, acked{r.Revision, []string{one, other}, value})
			}
		default:
			f, err := l.Put(ctx, one, client.LockPut{Value: []byte(value)})
			if err != nil {
				t.Errorf("put: %v", err)
			} else {
				all = append(all, acked{f.Version, []string{one}, value})
			}
		}
		cancel()
		time.Sleep(2 * time.Millisecond) // leaves something to the tests beside this one
	}
	return all
}

// Watches over random histories, through kills of the leader, checked as etcd checks its own: ordered, unique, atomic, resumable, reliable,
// bookmarkable, and right about what was before.
func TestWatchesTellRandomHistoriesThroughKills(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	c.WaitWhole()
	var locks []*client.Lock
	for i := 1; i <= 3; i++ {
		// Clients of their own, that outlive the daemons: they stand for those on other nodes.
		l := client.NewLock(c.outsider(i))
		defer l.Close(context.WithoutCancel(t.Context()))
		locks = append(locks, l)
	}
	for _, d := range []string{"w", "w/a", "w/b", "w/b/c"} {
		if _, err := locks[0].Mkdir(t.Context(), d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var watching, writing sync.WaitGroup
	watches := []*told{
		{name: "all", watch: client.LockWatch{From: 1, Recursive: true, Before: true}},
		{name: "now on", watch: client.LockWatch{Path: "w", Recursive: true, Before: true}},
		{name: "below", watch: client.LockWatch{From: 1, Path: "w/b", Recursive: true}},
		{name: "directly in", watch: client.LockWatch{From: 1, Path: "w/b"}},
		{name: "one file", watch: client.LockWatch{From: 1, Path: "w/a/f1", Before: true}},
		{name: "from later on", watch: client.LockWatch{From: 300, Recursive: true, Before: true}},
	}
	asked := map[string]client.LockWatch{}
	for i, w := range watches {
		asked[w.name] = w.watch
		watching.Go(func() { w.run(ctx, locks[i%3], rand.New(rand.NewPCG(7, uint64(i)))) })
	}
	defer watching.Wait()
	defer cancel()
	var stop atomic.Bool
	acks := make([][]acked, 3)
	for i, l := range locks {
		writing.Go(func() { acks[i] = writeRandomly(t, l, i, rand.New(rand.NewPCG(8, uint64(i))), &stop) })
	}
	for range 2 {
		time.Sleep(500 * time.Millisecond)
		leader := c.lockLeader(t)
		c.Kill(leader)
		time.Sleep(500 * time.Millisecond)
		c.Restart(leader)
		c.WaitWhole()
	}
	stop.Store(true)
	writing.Wait()
	f, err := locks[0].Put(t.Context(), "w/last", client.LockPut{Value: []byte("end")})
	if err != nil {
		t.Fatal(err)
	}
	last := f.Version
	for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(20 * time.Millisecond) { // markers come every ten seconds
		missing := ""
		for _, w := range watches {
			if !w.reached(last) {
				missing += " " + w.name
			}
		}
		if missing == "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not told up to revision %d:%s", last, missing)
		}
	}
	cancel()
	watching.Wait()
	for _, w := range watches {
		if w.err != nil {
			t.Fatalf("%s: %v", w.name, w.err)
		}
	}
	checkHistory(t, watches[0].revs, last)
	checkAcks(t, watches[0].revs, acks)
	for _, w := range watches[1:] {
		checkPart(t, w, asked[w.name], watches[0].revs)
	}
	t.Logf("%d revisions", last)
}

// lockLeader waits for a leader of the lock group.
func (c *Cluster) lockLeader(t *testing.T) int {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		st, err := c.Meta(1).ClusterStatus(t.Context())
		if err != nil {
			continue
		}
		for _, g := range st.Groups {
			if g.Name == client.LockGroup && g.Leader != 0 {
				return int(g.Leader)
			}
		}
	}
	t.Fatal("nobody leads the lock group")
	return 0
}

// checkHistory replays a complete history: in order, each revision once, and each event right about what was before it.
func checkHistory(t *testing.T, revs []client.LockRevision, last dc.Revision) {
	t.Helper()
	state := map[string]string{}
	next := revs[0].Revision
	for _, rev := range revs {
		if rev.Revision != next {
			t.Fatalf("revision %d follows %d", rev.Revision, next-1)
		}
		next++
		for _, ev := range rev.Events {
			had, ok := state[ev.Path]
			if ev.Before == nil || ev.Before.Absent == ok || ok && string(ev.Before.Value) != had {
				t.Fatalf("revision %d, %s %s: before is %+v, want %q (%v)", rev.Revision, ev.Kind, ev.Path, ev.Before, had, ok)
			}
			switch ev.Kind {
			case "put":
				state[ev.Path] = string(ev.File.Value)
			case "mkdir":
				state[ev.Path] = ""
			case "delete", "rmdir":
				delete(state, ev.Path)
			}
		}
	}
	if next != last+1 {
		t.Fatalf("told up to %d, want %d", next-1, last)
	}
}

// checkAcks finds every acknowledged change, whole, in the revision that was acknowledged.
func checkAcks(t *testing.T, revs []client.LockRevision, acks [][]acked) {
	t.Helper()
	n := 0
	for _, list := range acks {
		for _, a := range list {
			n++
			rev := revs[a.rev-revs[0].Revision]
			for _, path := range a.paths {
				found := false
				for _, ev := range rev.Events {
					found = found || ev.Kind == "put" && ev.Path == path && string(ev.File.Value) == a.value
				}
				if !found {
					t.Fatalf("acknowledged at revision %d: put %s %s; told %+v", a.rev, path, a.value, rev.Events)
				}
			}
		}
	}
	if n < 50 {
		t.Errorf("only %d changes were acknowledged: this showed little", n)
	}
}

// checkPart compares what a watch of a part has told with that part of the whole history.
func checkPart(t *testing.T, w *told, asked client.LockWatch, whole []client.LockRevision) {
	t.Helper()
	line := func(rev client.LockRevision, ev client.LockEvent) string {
		s := fmt.Sprintf("%d %s %s %q", rev.Revision, ev.Kind, ev.Path, ev.File.Value)
		if asked.Before {
			s += fmt.Sprintf(" before %v %q", ev.Before.Absent, ev.Before.Value)
		}
		return s
	}
	var got, want []string
	first := asked.From
	if first == 0 { // from now on: it began somewhere
		first = w.revs[0].Revision
	}
	for _, rev := range w.revs {
		for _, ev := range rev.Events {
			got = append(got, line(rev, ev))
		}
	}
	for _, rev := range whole {
		for _, ev := range rev.Events {
			rest, in := strings.CutPrefix(ev.Path, asked.Path+"/")
			concerns := asked.Path == "" || ev.Path == asked.Path || in && (asked.Recursive || !strings.Contains(rest, "/"))
			if rev.Revision >= first && concerns {
				want = append(want, line(rev, ev))
			}
		}
	}
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Fatalf("%s: of %d events (want %d), number %d differs: got %v, want %v", w.name, len(got), len(want), i, at(got, i), at(want, i))
		}
	}
}

func at(s []string, i int) string {
	if i < len(s) {
		return s[i]
	}
	return "none"
}
