package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"missingos/srv/client"
	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/node"
)

// careful has nodes counted as dead soon, and copies made at a rate.
func careful(rate int64) func(*node.Config) {
	return func(c *node.Config) {
		c.DeadAfter, c.RepairRate = 6*time.Second, rate
		c.ReserveBytes = dc.MiB
	}
}

// waitCare waits until the blocks are as check wants them.
func (c *Cluster) waitCare(what string, check func(*dcpb.DataCareReply) (missing string)) {
	c.t.Helper()
	deadline, missing := time.Now().Add(patience), "no answer"
	for ; time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		n := c.any()
		st, err := client.NewData(n.Client(), client.DataConfig{}).Care(ctx)
		cancel()
		if err != nil {
			missing = err.Error()
		} else if missing = check(st); missing == "" {
			return
		}
	}
	c.t.Fatalf("waited %v for %s in vain: %s", patience, what, missing)
}

// whole tells what is missing until every block has three copies and nothing is to be done.
func whole(st *dcpb.DataCareReply) string {
	for _, n := range st.Copies {
		if n.Copies != 3 {
			return fmt.Sprint(st)
		}
	}
	if st.CountedMs == 0 || st.Doing != "" || st.Queued > 0 || len(st.Copies) == 0 || st.Lost > 0 {
		return fmt.Sprint(st)
	}
	return ""
}

// leaderOf gives the number of the node that leads a group.
func (c *Cluster) leaderOf(t *testing.T, group string) int {
	t.Helper()
	leader := 0
	c.Wait("a leader of "+group, func(st *dcpb.MetaStatusReply) string {
		for _, g := range st.Groups {
			if g.Name == group {
				leader = int(g.Leader)
			}
		}
		if leader == 0 {
			return "none"
		}
		return ""
	})
	return leader
}

// TestBlocksSurviveTheDeathOfSourceTargetAndLeaderDuringRepair kills a node for good, and while its blocks are being copied the leader that sees to that, then nodes that copies
// come from and go to, which come back. All files are whole on all nodes afterwards, and have three copies of every block.
func TestBlocksSurviveTheDeathOfSourceTargetAndLeaderDuringRepair(t *testing.T) {
	t.Parallel()
	option, data := mounted(t)
	mount := Cluster{cfg: func(*node.Config) {}}
	option(&mount)
	c := Start(t, 5, Configure(func(cfg *node.Config) { mount.cfg(cfg); careful(dc.MiB)(cfg) }))
	files := tree(t)
	for name, content := range files {
		path := filepath.Join(data(1), "tree", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c.waitCare("three copies of all", whole)
	leader := c.leaderOf(t, "data/0")
	gone := leader%5 + 1
	c.Kill(gone)
	busy := func(st *dcpb.DataCareReply) string { // or all made already, if this test comes late
		if st.Done == 0 {
			return fmt.Sprint(st)
		}
		return ""
	}
	c.waitCare("copies being made", busy)
	c.Kill(leader)
	time.Sleep(200 * time.Millisecond)
	c.Restart(leader)
	for _, n := range []int{(leader+1)%5 + 1, (leader+2)%5 + 1} { // between them, a source or a target of most copies
		c.Kill(n)
		c.Restart(n)
		c.WaitWhole()
	}
	c.waitCare("three copies of all again", whole)
	for i := 1; i <= 5; i++ {
		if i != gone {
			sameTree(t, filepath.Join(data(i), "tree"), files)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.Meta(leader).RemoveNode(ctx, fmt.Sprint("node", gone)); err != nil {
		t.Fatal(err)
	}
	c.waitCare("three copies of all without the removed node", whole)
}

func TestADecommissionedNodeLeavesItsBlocksBehind(t *testing.T) {
	t.Parallel()
	option, data := mounted(t)
	mount := Cluster{cfg: func(*node.Config) {}}
	option(&mount)
	c := Start(t, 4, Configure(func(cfg *node.Config) { mount.cfg(cfg); careful(-1)(cfg) }))
	want := bytes.Repeat([]byte("what node 2 holds\n"), 400_000)
	path := func(i int) string { return filepath.Join(data(i), "file") }
	if err := os.WriteFile(path(2), want, 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.Meta(1).Decommission(ctx, "node2"); err != nil {
		t.Fatal(err)
	}
	c.Wait("node 2 to be removed", func(st *dcpb.MetaStatusReply) string {
		for _, n := range st.Nodes {
			if n.Name == "node2" && n.State != "removed" {
				return fmt.Sprint(n)
			}
		}
		return ""
	})
	c.waitCare("three copies of all", whole)
	for _, i := range []int{1, 3, 4} {
		if got, err := os.ReadFile(path(i)); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("on node %d: %d bytes, %v", i, len(got), err)
		}
	}
}
