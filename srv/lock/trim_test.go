package lock_test

import (
	"testing"
	"testing/synctest"
	"time"

	"missingos/srv/client"
	"missingos/srv/dc"
)

func (n node) totals(t *testing.T) client.LockTotals {
	t.Helper()
	st, err := n.Totals(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestHistoryIsCompactedByAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		n := c.node(1)
		n.put(t, "f", "0")
		age := time.Hour
		if err := n.SetHistory(t.Context(), client.LockHistory{Age: &age}); err != nil {
			t.Fatal(err)
		}
		var last dc.Revision
		for range 18 { // three hours
			last = n.put(t, "f", "x")
			time.Sleep(10 * time.Minute)
		}
		st := n.totals(t)
		if kept := st.Revision - st.Compacted; st.Revision != last || kept < 5 || kept > 7 {
			t.Errorf("%d revisions are kept of three hours, one every ten minutes, with a bound of an hour", kept)
		}
		c.rep.Resign()
		time.Sleep(time.Second)
		c.rep.Lead()
		time.Sleep(3 * time.Hour) // nothing happens; the next leader goes on
		if st := n.totals(t); st.Compacted != last {
			t.Errorf("compacted up to %d after hours of quiet, want %d", st.Compacted, last)
		}
		n.put(t, "f", "y")
		time.Sleep(2 * time.Hour)
		if st := n.totals(t); st.Compacted != last+1 {
			t.Errorf("compacted up to %d, want %d: what came after the quiet grew old too", st.Compacted, last+1)
		}
	})
}

func TestHistoryIsCompactedByCountAndBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		n := c.node(1)
		revisions := uint64(100)
		if err := n.SetHistory(t.Context(), client.LockHistory{Revisions: &revisions}); err != nil {
			t.Fatal(err)
		}
		for range 3000 {
			n.put(t, "f", "x")
		}
		synctest.Wait()
		if st := n.totals(t); st.Revision-st.Compacted > 100+2048 || st.MaxHistoryRevisions != 100 {
			t.Errorf("%d revisions are kept", st.Revision-st.Compacted)
		}
		none, bytes := uint64(0), uint64(4096)
		if err := n.SetHistory(t.Context(), client.LockHistory{Revisions: &none, Bytes: &bytes}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if st := n.totals(t); st.HistoryBytes > 100_000 || st.MaxHistoryRevisions != dc.MaxLockHistory {
			t.Errorf("%d bytes are kept, of at most %d revisions", st.HistoryBytes, st.MaxHistoryRevisions)
		}
		huge := uint64(dc.MaxLockHistoryB + 1)
		wantKind(t, n.SetHistory(t.Context(), client.LockHistory{Bytes: &huge}), dc.Invalid)
	})
}

func TestStaleReadsNeedNoLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		n := c.node(1)
		rev := n.put(t, "f", "old")
		n.put(t, "f", "new")
		c.rep.Resign()
		v := n.StaleView()
		if f, err := v.Read(t.Context(), "f"); err != nil || string(f.Value) != "new" {
			t.Errorf("stale: %v, %v", f, err)
		}
		if files, err := v.List(t.Context(), "", "", 10); err != nil || len(files) != 1 {
			t.Errorf("stale list: %v, %v", files, err)
		}
		_, err := v.Read(t.Context(), "none")
		wantKind(t, err, dc.NotFound)
		_, err = n.At(rev).Read(t.Context(), "f") // the past is linearizable: it asks a leader
		wantKind(t, err, dc.Unavailable)
		c.rep.Lead()
		if f, err := n.At(rev).Read(t.Context(), "f"); err != nil || string(f.Value) != "old" {
			t.Errorf("at %d: %v, %v", rev, f, err)
		}
	})
}
