package consensus

import (
	"context"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"missingos/srv/dc"
)

func (j *journal) markLocked() {
	if j.marks == nil {
		j.marks = map[dc.Index]Digest{}
	}
	sum := sha256.Sum256([]byte(strings.Join(j.State.Commands, "\n")))
	j.marks[j.State.Index] = Digest{Index: j.State.Index, Rows: uint64(len(j.State.Commands)), Sum: sum[:]}
}

// Digest implements Digester.
func (j *journal) Digest(ctx context.Context, at dc.Index) (Digest, error) {
	for {
		j.mu.Lock()
		d, ok := j.marks[at]
		gone := j.State.Index > at
		j.mu.Unlock()
		switch {
		case ok:
			return d, nil
		case gone:
			return d, dc.Errorf(dc.Again, "digest", "", "entry %d", at)
		case ctx.Err() != nil:
			return d, ctx.Err()
		}
		time.Sleep(time.Millisecond)
	}
}

// flip makes a replica's content wrong.
func (j *journal) flip() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.State.Commands = slices.Clone(j.State.Commands)
	j.State.Commands[3] = "flipped"
}

// compare compares until a leader has done it.
func (c *cluster) compare() *Compared {
	c.t.Helper()
	var found *Compared
	eventually(c.t, func() bool {
		_, m := c.leader()
		ctx, cancel := context.WithTimeout(c.t.Context(), 5*time.Second)
		defer cancel()
		var err error
		found, err = m.group.Compare(ctx)
		return err == nil
	})
	return found
}

// whole waits until all replicas have the same commands, want of them or more (one whose outcome was unknown is proposed again), and none is being rebuilt.
func (c *cluster) whole(want int) {
	c.t.Helper()
	eventually(c.t, func() bool {
		var first []string
		for _, m := range c.nodes {
			have := m.machine.commands()
			if first == nil {
				first = have
			}
			if len(have) < want || !slices.Equal(have, first) || m.group.Rebuilding() != "" || slices.Contains(have, "flipped") {
				return false
			}
		}
		return true
	})
}

func TestAReplicaThatDiffersIsRebuilt(t *testing.T) {
	c := newCluster(t, 3, fast)
	for range 20 {
		c.propose("x")
	}
	if found := c.compare(); len(found.Differ) != 0 || found.Undecided || len(found.Replicas) != 3 {
		t.Fatalf("replicas that are the same: %+v", found)
	}
	for i, which := range []string{"a follower", "the leader"} {
		id, _ := c.leader()
		if which == "a follower" {
			id = id%3 + 1
		}
		c.nodes[id].machine.flip()
		if found := c.compare(); !slices.Equal(found.Differ, []dc.NodeID{id}) {
			t.Fatalf("%s is wrong, n%d; found %+v", which, id, found)
		}
		c.propose("y")
		c.whole(21 + i)
		if _, err := os.Stat(filepath.Join(c.dir, id.String(), wrongFile)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was rebuilt and is still marked (%v)", which, err)
		}
	}
	if found := c.compare(); len(found.Differ) != 0 {
		t.Errorf("after both were rebuilt: %+v", found)
	}
}

// A replica that comes back with nothing of its state, and marked, is rebuilt before it applies what its log has after the snapshot.
func TestAReplicaThatLostItsStateIsRebuiltAtStart(t *testing.T) {
	timing := fast
	timing.SnapshotEvery, timing.SnapshotEntries, timing.TrailingEntries = 50*time.Millisecond, 10, 5
	c := newCluster(t, 3, timing)
	for range 30 {
		c.propose("x")
	}
	lead, _ := c.leader()
	id := lead%3 + 1
	m := c.nodes[id]
	eventually(t, func() bool {
		first, err := m.group.store.FirstIndex()
		return err == nil && first > 5
	})
	c.stop(id)
	if err := MarkWrong(filepath.Join(c.dir, id.String()), "a test took its state", nil); err != nil {
		t.Fatal(err)
	}
	c.start(id, &journal{}, nil)
	for range 5 {
		c.propose("y")
	}
	c.whole(35)
}

func TestTheMajorityIsRight(t *testing.T) {
	say := func(sums ...string) (c *Compared) {
		c = &Compared{}
		members := map[dc.NodeID]bool{}
		for i, s := range sums {
			n := dc.NodeID(i + 1)
			members[n] = !strings.HasPrefix(s, "non-voter ")
			r := ComparedReplica{Node: n, Digest: Digest{Sum: []byte(strings.TrimPrefix(s, "non-voter "))}}
			if s == "" {
				r.Err = errors.New("silent")
			}
			c.Replicas = append(c.Replicas, r)
		}
		c.judge(members)
		return c
	}
	for _, tc := range []struct {
		sums      []string
		differ    []dc.NodeID
		undecided bool
	}{
		{sums: []string{"a", "a", "a"}},
		{sums: []string{"a", "b", "a"}, differ: []dc.NodeID{2}},
		{sums: []string{"a", "b", ""}, undecided: true},
		{sums: []string{"a", "", ""}},
		{sums: []string{"a", "b", "c"}, undecided: true},
		{sums: []string{"a", "b"}, undecided: true},
		{sums: []string{"a", "a", "b", "b", ""}, undecided: true},
		{sums: []string{"a", "a", "non-voter b"}, differ: []dc.NodeID{3}},
		{sums: []string{"a", "b", "non-voter b"}, undecided: true}, // a member without a vote decides nothing
		{sums: []string{"a"}},
	} {
		if c := say(tc.sums...); !slices.Equal(c.Differ, tc.differ) || c.Undecided != tc.undecided {
			t.Errorf("%q: differ %v undecided %v", tc.sums, c.Differ, c.Undecided)
		}
	}
}
