package consensus

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"missingos/consensus/logstore"
	"missingos/consensus/transport"
	"missingos/srv/dc"
)

// alone is a cluster of which one follower is left; the test speaks to it as another node would.
type alone struct {
	*cluster
	t    *testing.T
	m    *member
	raft transport.RaftClient
	as   uint64 // who the test is
	term uint64
	last uint64 // entry of the log
}

func newAlone(t *testing.T, timing Timing, commands int) *alone {
	c := newCluster(t, 3, timing)
	for range commands {
		c.propose("x")
	}
	lead, _ := c.leader()
	a := &alone{cluster: c, t: t, as: uint64(lead)}
	id := lead%3 + 1
	a.m = c.nodes[id]
	_, leader := c.leader()
	eventually(t, func() bool { return a.m.group.raft.AppliedIndex() == leader.group.raft.LastIndex() })
	for n := range c.nodes {
		if n != id {
			c.stop(n)
		}
	}
	cc, err := c.dial(a.m, id)
	if err != nil {
		t.Fatal(err)
	}
	a.raft = transport.NewRaftClient(cc)
	a.term, a.last = a.m.group.raft.CurrentTerm(), a.m.group.raft.LastIndex()
	return a
}

// send sends entries after prev, of the term of the message.
func (a *alone) send(term, prev, prevTerm, commit uint64, entries ...*transport.Entry) *transport.AppendReply {
	a.t.Helper()
	r, err := a.raft.Append(a.t.Context(), &transport.AppendRequest{
		From: a.as, Group: uint64(testGroup), Term: term, PrevIndex: prev, PrevTerm: prevTerm, Commit: commit, Entries: entries,
	})
	if err != nil {
		a.t.Fatal(err)
	}
	return r
}

func (a *alone) offer(term, index, indexTerm uint64) (*transport.InstallSnapshotReply, error) {
	c := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "n1", Address: "n1"}}})
	return a.raft.InstallSnapshot(a.t.Context(), &transport.InstallSnapshotRequest{
		From: a.as, Group: uint64(testGroup), Term: term, LastIndex: index, LastTerm: indexTerm,
		Configuration: c, ConfigurationIndex: 1, Version: 1, Manifest: []byte("{}"),
	})
}

func (a *alone) entry(index uint64) *raft.Log {
	a.t.Helper()
	var l raft.Log
	if err := a.m.group.store.GetLog(index, &l); err != nil {
		a.t.Fatalf("entry %d: %v", index, err)
	}
	return &l
}

func noop(index, term uint64) *transport.Entry {
	return &transport.Entry{Index: index, Term: term, Type: uint32(raft.LogNoop)}
}

func TestALateOfferOfASnapshotTakesNothingAway(t *testing.T) {
	a := newAlone(t, fast, 20)
	r, err := a.offer(a.term, 3, 1)
	if err != nil || !r.Success {
		t.Fatalf("an offer of what is there: %v, %v; want success", r, err)
	}
	if got := a.m.group.raft.AppliedIndex(); got != a.last {
		t.Errorf("the replica went back to entry %d of %d", got, a.last)
	}
	if n := a.m.machine.restored(); n != 0 {
		t.Errorf("restored %d times", n)
	}
	a.entry(a.last)
}

func TestASnapshotThatTheLogHoldsLeavesWhatFollows(t *testing.T) {
	a := newAlone(t, fast, 5)
	if r := a.send(a.term, a.last, a.entry(a.last).Term, 0, noop(a.last+1, a.term), noop(a.last+2, a.term), noop(a.last+3, a.term)); !r.Success {
		t.Fatal("the entries were refused")
	}
	if r, err := a.offer(a.term, a.last+2, a.term); err != nil || !r.Success {
		t.Fatalf("an offer of what is in the log: %v, %v; want success", r, err)
	}
	a.entry(a.last + 3) // it was acknowledged
	if _, err := a.offer(a.term+1, a.last+2, a.term+1); err == nil {
		t.Error("an offer that the log contradicts was taken")
	}
	if r := a.send(a.term+1, a.last, a.entry(a.last).Term, 0, noop(a.last+1, a.term+1)); !r.Success || a.entry(a.last+1).Term != a.term+1 {
		t.Error("the next leader's entries do not replace them")
	}
}

func TestEntriesThatBeginInTheCompactedLogAreTaken(t *testing.T) {
	timing := fast
	timing.SnapshotEvery, timing.SnapshotEntries, timing.TrailingEntries = 50*time.Millisecond, 10, 5
	a := newAlone(t, timing, 30)
	var first uint64
	eventually(t, func() bool {
		first, _ = a.m.group.store.FirstIndex()
		return first > 3
	})
	var entries []*transport.Entry
	for i := uint64(2); i <= a.last+2; i++ {
		entries = append(entries, noop(i, a.term)) // up to the last these are not what is there, but committed: they are not looked at
	}
	r := a.send(a.term, 1, 1, a.last+1, entries...)
	if !r.Success || a.m.group.raft.LastIndex() != a.last+2 {
		t.Fatalf("%v; the log ends at %d, want %d", r, a.m.group.raft.LastIndex(), a.last+2)
	}
	eventually(t, func() bool { return a.m.group.raft.AppliedIndex() == a.last+1 })
	if got := a.entry(a.last); got.Type == raft.LogNoop {
		t.Error("a committed entry was replaced")
	}
	// The same again from the next leader, who has another entry at the end.
	entries[len(entries)-1] = noop(a.last+2, a.term+1)
	if r := a.send(a.term+1, 1, 1, 0, entries...); !r.Success || a.entry(a.last+2).Term != a.term+1 {
		t.Fatalf("%v; the last entry is of term %d", r, a.entry(a.last+2).Term)
	}
	if r := a.send(a.term+1, 1, 1, 2, entries[0]); !r.Success {
		t.Fatal("entries all of which are compacted were refused")
	}
}

func TestOnlyWhatWasComparedIsCommitted(t *testing.T) {
	a := newAlone(t, fast, 3)
	if r := a.send(a.term, a.last, a.entry(a.last).Term, 0, noop(a.last+1, a.term), noop(a.last+2, a.term)); !r.Success {
		t.Fatal("the entries were refused")
	}
	// The next leader has something else at last+2, has it committed, and finds that the log agrees up to last+1.
	if r := a.send(a.term+1, a.last, a.entry(a.last).Term, a.last+2, noop(a.last+1, a.term)); !r.Success {
		t.Fatal("refused")
	}
	if got := a.m.group.raft.CommitIndex(); got != a.last+1 {
		t.Errorf("committed up to %d, want %d", got, a.last+1)
	}
}

func TestALogThatDoesNotFitTheSnapshotIsReconciled(t *testing.T) {
	for _, tc := range []struct {
		name        string
		first, last uint64 // of term 2
		snap        snapshotFile
		want        uint64 // the first entry then; zero: none
		kind        dc.Kind
	}{
		{name: "nothing"},
		{name: "no snapshot", first: 1, last: 9, want: 1},
		{name: "a snapshot of the log", first: 4, last: 9, snap: snapshotFile{Index: 6, Term: 2}, want: 4},
		{name: "all compacted", first: 7, last: 9, snap: snapshotFile{Index: 6, Term: 2}, want: 7},
		{name: "it ends at the snapshot", first: 4, last: 6, snap: snapshotFile{Index: 6, Term: 2}, want: 4},
		{name: "it ends before the snapshot", first: 4, last: 9, snap: snapshotFile{Index: 20, Term: 3}},
		{name: "it contradicts the snapshot", first: 4, last: 9, snap: snapshotFile{Index: 6, Term: 3}},
		{name: "a hole", first: 8, last: 9, snap: snapshotFile{Index: 6, Term: 2}, kind: dc.Corrupt},
		{name: "no beginning", first: 2, last: 9, kind: dc.Corrupt},
	} {
		t.Run(tc.name, func(t *testing.T) {
			store, err := openOwnLog(logstore.Config{Dir: filepath.Join(t.TempDir(), "g"), Group: testGroup, Fatal: func(err error) { t.Error(err) }})
			if err != nil {
				t.Fatal(err)
			}
			defer store.Close()
			for i := tc.first; i <= tc.last && i > 0; i++ {
				if err := store.StoreLog(&raft.Log{Index: i, Term: 2}); err != nil {
					t.Fatal(err)
				}
			}
			g := &Group{cfg: GroupConfig{ID: testGroup}, store: newAheadLog(store), snaps: &snapshots{}, log: slog.New(slog.DiscardHandler)}
			if tc.snap.Index != 0 {
				g.snaps.current = &tc.snap
			}
			err = g.reconcile()
			if (err != nil) != (tc.kind != 0) || err != nil && dc.KindOf(err) != tc.kind {
				t.Fatalf("%v, want kind %v", err, tc.kind)
			}
			if first, _ := store.FirstIndex(); err == nil && first != tc.want {
				t.Errorf("the log begins at %d, want %d", first, tc.want)
			}
		})
	}
}
