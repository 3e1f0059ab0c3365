package storage

import (
	"context"
	"fmt"
	"testing"

	"missingos/srv/dc"
)

// Replicas have the same digest after a mark, however their entries were gathered, and whether they applied them or got them as a snapshot.
func TestReplicasWithTheSameEntriesHaveTheSameDigest(t *testing.T) {
	var log []Entry
	for i := 1; i <= 60; i++ {
		switch {
		case i%20 == 0:
			log = append(log, Entry{Index: dc.Index(i), Term: 1, Clock: int64(1000 + i)})
		case i%7 == 0:
			log = append(log, entry(i, fmt.Sprintf("big b%d %d", i%3, i*20_000), "del k3"))
		default:
			log = append(log, entry(i, fmt.Sprintf("set k%d v%d", i%5, i)))
		}
	}
	one, all := mustOpen(t, t.TempDir(), testConfig(t)), mustOpen(t, t.TempDir(), testConfig(t))
	defer one.Close()
	defer all.Close()
	for _, e := range log {
		one.Apply([]Entry{e})
	}
	all.Apply(log)
	sums := map[dc.Index]Digest{}
	for _, at := range []dc.Index{20, 40, 60} {
		a, err := one.Digest(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		b, err := all.Digest(t.Context(), at)
		if err != nil || a != b {
			t.Errorf("after entry %d: %+v and %+v (%v)", at, a, b, err)
		}
		sums[at] = a
	}
	if sums[20].Sum == sums[40].Sum || sums[20].Rows == 0 {
		t.Errorf("different states have the same digest: %+v", sums)
	}
	if err := one.Checkpoint(); err != nil {
		t.Fatal(err)
	}
	if _, err := one.Digest(t.Context(), 40); dc.KindOf(err) != dc.Again {
		t.Errorf("the digest of a version before the checkpoint: %v, want EAGAIN", err)
	}
	short, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := one.Digest(short, 99); err == nil {
		t.Error("the digest of what is not applied")
	}
	// One row more.
	all.Apply([]Entry{entry(61, "set k1 other"), {Index: 62, Term: 1, Clock: 2000}})
	one.Apply([]Entry{entry(61, "set k1 otheR"), {Index: 62, Term: 1, Clock: 2000}})
	a, err1 := one.Digest(t.Context(), 62)
	b, err2 := all.Digest(t.Context(), 62)
	if err1 != nil || err2 != nil || a.Sum == b.Sum {
		t.Errorf("states that differ have the same digest (%v, %v)", err1, err2)
	}
}
