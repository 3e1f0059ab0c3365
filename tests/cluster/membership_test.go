package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"missingos/srv/client"
	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/node"
)

// A writer puts rows until it is stopped, and remembers which were acknowledged.
type writer struct {
	table client.Descriptor
	acked []string
	wg    sync.WaitGroup
	stop  context.CancelFunc
}

func (c *Cluster) writer(t *testing.T, from int) *writer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	table, err := client.NewKV(c.Client(from), c.Meta(from)).CreateTable(ctx, "written", 0o755)
	if err != nil {
		t.Fatal(err)
	}
	w := &writer{table: table}
	ctx, w.stop = context.WithCancel(t.Context())
	kv := client.NewKV(c.Client(from), c.Meta(from))
	w.wg.Go(func() {
		pace := time.NewTicker(5 * time.Millisecond)
		defer pace.Stop()
		for i := 0; ctx.Err() == nil; i++ {
			<-pace.C
			key := fmt.Sprintf("row%06d", i)
			attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
			if err := kv.Load(attempt, table, []client.KVPair{{Key: key, Value: []byte(key)}}); err == nil {
				w.acked = append(w.acked, key)
			}
			cancel()
		}
	})
	t.Cleanup(w.end)
	return w
}

func (w *writer) end() {
	w.stop()
	w.wg.Wait()
}

// check ends the writer and looks for every acknowledged row.
func (w *writer) check(t *testing.T, c *Cluster, at int) {
	t.Helper()
	w.end()
	kv := client.NewKV(c.Client(at), c.Meta(at))
	if len(w.acked) < 10 {
		t.Errorf("only %d rows were acknowledged", len(w.acked))
	}
	for _, key := range w.acked {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		_, value, err := kv.Get(ctx, w.table, key)
		cancel()
		if err != nil || string(value) != key {
			t.Fatalf("row %s, acknowledged, is %q, %v", key, value, err)
		}
	}
	t.Logf("%d acknowledged rows are there", len(w.acked))
}

// settled waits until no group has a change under way or a replica that is not level, none is on the nodes named, and every node is open.
func (c *Cluster) settled(t *testing.T, not ...uint64) {
	t.Helper()
	c.Wait(fmt.Sprint("groups to be settled, not on ", not), func(st *dcpb.MetaStatusReply) string {
		for _, g := range st.Groups {
			if g.Leader == 0 || g.Change != "" || len(g.Replicas) < int(g.Want) {
				return fmt.Sprintf("group %s: leader %d, %d of %d replicas, %s %v", g.Name, g.Leader, len(g.Replicas), g.Want, g.Change, g.Reasons)
			}
			for _, r := range g.Replicas {
				if r.Health != "ok" || slices.Contains(not, r.Node) {
					return fmt.Sprintf("group %s: %v", g.Name, r)
				}
			}
		}
		return ""
	})
}

func (c *Cluster) status(t *testing.T) *dcpb.MetaStatusReply {
	t.Helper()
	var found *dcpb.MetaStatusReply
	c.Wait("a status", func(st *dcpb.MetaStatusReply) string { found = st; return "" })
	return found
}

func (c *Cluster) group(t *testing.T, name string) *dcpb.AdminGroup {
	t.Helper()
	for _, g := range c.status(t).Groups {
		if g.Name == name {
			return g
		}
	}
	t.Fatalf("there is no group %s", name)
	return nil
}

// even waits until nothing moves, what the nodes that are up hold differs by one at most, and what they lead by two: then nothing will move by itself.
func (c *Cluster) even() {
	c.t.Helper()
	c.Wait("the load to be even", func(st *dcpb.MetaStatusReply) string {
		for _, g := range st.Groups {
			if g.Change != "" {
				return fmt.Sprint(g)
			}
		}
		var held, leads []uint32
		for _, n := range st.Nodes {
			if n.State == "up" {
				held, leads = append(held, n.Replicas), append(leads, n.Leaders)
			}
		}
		if slices.Max(held)-slices.Min(held) > 1 || slices.Max(leads)-slices.Min(leads) > 2 {
			return fmt.Sprint("held ", held, ", led ", leads)
		}
		return ""
	})
}

func TestANodeIsDrainedUndrainedAndDecommissioned(t *testing.T) {
	t.Parallel()
	c := Start(t, 5)
	c.Wait("five voters of meta", func(st *dcpb.MetaStatusReply) string {
		if g := st.Groups[0]; g.Change != "" || len(g.Replicas) != 5 {
			return fmt.Sprint(g)
		}
		return ""
	})
	c.even()
	victim := int(c.group(t, "meta").Leader)
	other := victim%5 + 1
	name := fmt.Sprint("node", victim)
	w := c.writer(t, other)

	if err := c.Meta(other).Drain(t.Context(), name, true); err != nil {
		t.Fatal(err)
	}
	c.settled(t, uint64(victim))
	n, err := c.Meta(other).Node(t.Context(), name)
	if err != nil || n.State != "draining" || n.Leaders != 0 || n.Replicas != 0 {
		t.Errorf("the drained node is %+v, %v", n, err)
	}
	if g := c.group(t, "meta"); len(g.Replicas) != 3 {
		t.Errorf("meta has %d replicas while four nodes are open, want 3", len(g.Replicas))
	}
	if err := c.Meta(other).Drain(t.Context(), name, false); err != nil {
		t.Fatal(err)
	}
	c.Wait("five voters of meta", func(st *dcpb.MetaStatusReply) string {
		if g := st.Groups[0]; g.Change != "" || len(g.Replicas) != 5 {
			return fmt.Sprint(g)
		}
		return ""
	})
	c.even()

	running := c.Node(victim)
	if err := c.Meta(other).Decommission(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-running.Ended():
		if !errors.Is(err, dc.Stale) || !strings.Contains(err.Error(), "has been removed from the cluster") {
			t.Errorf("the decommissioned node ended with %v, want that it has been removed", err)
		}
	case <-time.After(patience):
		t.Error("the decommissioned node goes on")
	}
	c.Stop(victim)
	c.Wait("the node to be removed", func(st *dcpb.MetaStatusReply) string {
		if n := st.Nodes[victim-1]; n.State != "removed" {
			return fmt.Sprint(n)
		}
		return ""
	})
	c.settled(t, uint64(victim))
	w.check(t, c, other)
}

func TestDecommissionIsRefusedWithTooFewNodes(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	err := c.Meta(1).Decommission(t.Context(), "node3")
	if !errors.Is(err, dc.Busy) || !strings.Contains(err.Error(), "add a node first") {
		t.Errorf("got %v, want busy and what to do", err)
	}
	if err := c.Meta(1).Drain(t.Context(), "node3", true); err != nil {
		t.Fatal(err)
	}
	c.Wait("the leaderships to leave", func(st *dcpb.MetaStatusReply) string {
		if n := st.Nodes[2]; n.Leaders > 0 || n.Replicas != 6 || len(n.Waits) < 6 {
			return fmt.Sprint(n)
		}
		return ""
	})
	if g := c.group(t, "kv/0"); !slices.Contains(g.Reasons, "node3 drains, and no other node is open to take its replica") {
		t.Errorf("no reason why the replica stays: %v", g.Reasons)
	}
}

func TestReplicasAreSpreadOverZones(t *testing.T) {
	t.Parallel()
	zones, started := []string{"a", "a", "a", "b", "c"}, 0
	c := Start(t, 3, Configure(func(cfg *node.Config) {
		cfg.Labels = map[string]string{"zone": zones[started%len(zones)]}
		started++
	}))
	c.Add()
	c.Add()
	spread := func(st *dcpb.MetaStatusReply) string {
		for _, g := range st.Groups {
			used := map[string]bool{}
			for _, r := range g.Replicas {
				used[st.Nodes[r.Node-1].Labels["zone"]] = true
			}
			if g.Change != "" || len(used) != 3 {
				return fmt.Sprintf("group %s is in zones %v: %s", g.Name, used, g.Change)
			}
		}
		return ""
	}
	c.Wait("every group to be in three zones", spread)
	// With another label at its start, the zones are a, b, b, b, c: what node 4 and 5 hold is elsewhere again.
	w := c.writer(t, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := c.Meta(1).Label(ctx, "node5", map[string]string{"zone": "b"}); err != nil {
		t.Fatal(err)
	}
	c.Stop(2)
	started = 4 // the zone of node 2 is c now
	c.Restart(2)
	c.Wait("every group to be in three zones again", func(st *dcpb.MetaStatusReply) string {
		if z := st.Nodes[1].Labels["zone"]; z != "c" {
			return "node 2 is in zone " + z
		}
		return spread(st)
	})
	w.check(t, c, 3)
}

func TestAPersonMovesGroups(t *testing.T) {
	t.Parallel()
	c := Start(t, 4)
	c.settled(t)
	c.even()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	g := c.group(t, "kv/0")
	var on []uint64
	for _, r := range g.Replicas {
		on = append(on, r.Node)
	}
	spare := 10 - on[0] - on[1] - on[2]
	name := func(n uint64) string { return fmt.Sprint("node", n) }
	m := c.Meta(1)
	for _, tt := range []struct {
		move client.GroupMove
		want dc.Kind
		says string
	}{
		{client.GroupMove{Group: "nosuch", From: "node1", To: "node2"}, dc.NotFound, "no such group"},
		{client.GroupMove{Group: "kv/0"}, dc.Invalid, "nothing to move"},
		{client.GroupMove{Group: "kv/0", From: "node1"}, dc.Invalid, "both --from and --to"},
		{client.GroupMove{Group: "kv/0", From: name(spare), To: name(on[0])}, dc.Invalid, "no replica on " + name(spare)},
		{client.GroupMove{Group: "kv/0", From: name(on[1]), To: name(on[0])}, dc.Exists, "no node holds two"},
		{client.GroupMove{Group: "kv/0", From: name(on[0]), To: "node9"}, dc.NotFound, "no node node9"},
		{client.GroupMove{Group: "kv/0", Leader: name(spare)}, dc.Invalid, "no replica of it to lead with"},
		{client.GroupMove{Group: "kv/0", Leader: name(on[0]), Automatic: true}, dc.Invalid, "--auto goes with no other"},
	} {
		if err := m.MoveGroup(ctx, tt.move); !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%+v: got %v, want %v that says %q", tt.move, err, tt.want, tt.says)
		}
	}
	w := c.writer(t, 1)
	from := g.Leader // the victim leads: it hands over before it goes
	if err := m.MoveGroup(ctx, client.GroupMove{Group: "g5", From: name(from), To: name(spare), Leader: name(spare)}); err != nil {
		t.Fatal(err)
	}
	c.Wait("the move", func(st *dcpb.MetaStatusReply) string {
		g := st.Groups[4]
		if g.Change != "" || g.Leader != spare || !g.Pinned || len(g.Replicas) != 3 {
			return fmt.Sprint(g)
		}
		return ""
	})
	c.settled(t)
	w.check(t, c, 2)
	if err := m.MoveGroup(ctx, client.GroupMove{Group: "kv/0", Automatic: true}); err != nil {
		t.Fatal(err)
	}
	if g := c.group(t, "kv/0"); g.Pinned || g.Prefer != 0 {
		t.Errorf("given back: %v", g)
	}
}

// Nodes die and come, the leader of meta among them, while replicas move. Nothing acknowledged is lost, and in the end everything is whole and even.
func TestMovesGoOnThroughFailures(t *testing.T) {
	t.Parallel()
	c := Start(t, 5, Configure(func(cfg *node.Config) { cfg.DeadAfter = 8 * time.Second }))
	c.settled(t)
	w := c.writer(t, 1)
	mayKill := func(n uint64) bool { return n != 1 } // the writer's node
	drain := uint64(2)
	if err := c.Meta(1).Drain(t.Context(), "node2", true); err != nil {
		t.Fatal(err)
	}
	c.Wait("a change under way", func(st *dcpb.MetaStatusReply) string {
		for _, g := range st.Groups {
			if g.Change != "" {
				return ""
			}
		}
		for _, n := range st.Nodes {
			if n.Id == drain && n.Replicas == 0 {
				return "" // it was quick
			}
		}
		return "none"
	})
	leader := c.group(t, "meta").Leader
	if !mayKill(leader) { // the writer stays: let another lead
		c.Wait("another leader of meta", func(st *dcpb.MetaStatusReply) string {
			g := st.Groups[0]
			if leader = g.Leader; mayKill(leader) && leader != 0 {
				return ""
			}
			if g.Prefer != 0 {
				return fmt.Sprint(g)
			}
			for _, r := range g.Replicas {
				if r.Node > 2 {
					err := c.Meta(1).MoveGroup(t.Context(), client.GroupMove{Group: "meta", Leader: fmt.Sprint("node", r.Node)})
					return fmt.Sprint("asked for node ", r.Node, ": ", err) // again, if another change came first
				}
			}
			return fmt.Sprint(g)
		})
	}
	c.Kill(int(leader)) // the controller, in the midst of moves
	c.Add()             // a sixth, to move to
	c.settled(t, leader)
	c.Restart(int(leader))
	c.settled(t)
	source := 2 + int(leader)%3 // of nodes 2 to 4 another one than was dead
	if err := c.Meta(1).Drain(t.Context(), "node2", false); err != nil {
		t.Fatal(err)
	}
	if err := c.Meta(1).Drain(t.Context(), fmt.Sprint("node", source), true); err != nil {
		t.Fatal(err)
	}
	c.Wait("a change under way", func(st *dcpb.MetaStatusReply) string {
		if st.Nodes[source-1].Replicas == 0 || slices.ContainsFunc(st.Groups, func(g *dcpb.AdminGroup) bool { return g.Change != "" }) {
			return ""
		}
		return "none"
	})
	c.Kill(source)
	c.settled(t, uint64(source))
	c.Restart(source)
	c.Kill(6) // the target of moves
	c.settled(t, 6)
	c.Restart(6)
	if err := c.Meta(1).Drain(t.Context(), fmt.Sprint("node", source), false); err != nil {
		t.Fatal(err)
	}
	c.settled(t)
	c.even()
	w.check(t, c, 6)
}
