package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"missingos/srv/client"
	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/node"
	"missingos/srv/pki"
)

func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", "5"); err != nil { // the tests wait more than they work
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

// put writes key as a descriptor of its own, which goes through the meta group, and checks that every node that is up reads it.
func (c *Cluster) put(t *testing.T, from int, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := c.Meta(from).CreateDescriptor(ctx, "table", name, 0o755); err != nil {
		t.Fatalf("node %d: create %s: %v", from, name, err)
	}
}

func (c *Cluster) has(t *testing.T, at int, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, err := client.NewMeta(c.Client(at)).Descriptor(ctx, "table", name); err != nil {
		t.Fatalf("node %d: find %s: %v", at, name, err)
	}
}

func TestOneNodeIsACluster(t *testing.T) {
	t.Parallel()
	c := Start(t, 1)
	c.put(t, 1, "a")
	c.Stop(1)
	c.Restart(1)
	c.has(t, 1, "a")
	if _, err := node.Start(node.Config{Dir: c.nodes[0].dir, NoMount: true}); !errors.Is(err, dc.Busy) {
		t.Errorf("a second daemon on the directory: %v, want busy", err)
	}
}

func TestThreeNodesSurviveTheLossOfEachInTurn(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	for i := 1; i <= 3; i++ {
		name := fmt.Sprint("before", i)
		c.put(t, i, name)
		c.Kill(i)
		other := i%3 + 1
		c.has(t, other, name)
		c.put(t, other, fmt.Sprint("without", i))
		c.Restart(i)
		c.has(t, i, fmt.Sprint("without", i))
		c.WaitWhole()
	}
}

func TestACleanStopHandsOver(t *testing.T) { // alone: it looks at the clock
	c := Start(t, 3)
	ctx := t.Context()
	st, err := c.Meta(1).ClusterStatus(ctx)
	if err != nil {
		t.Fatal(err)
	}
	leader := int(st.Groups[0].Leader)
	other := leader%3 + 1
	c.Stop(leader)
	start := time.Now()
	c.put(t, other, "after")
	if took := time.Since(start); took > 900*time.Millisecond {
		t.Errorf("the first write after a clean stop took %v: that is an election, not a hand-over", took)
	}
}

func TestNoQuorumIsAnErrorInTimeAndHeals(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	c.put(t, 1, "a")
	c.Isolate(2)
	c.Isolate(3)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if _, err := c.Meta(1).CreateDescriptor(ctx, "table", "b", 0); !errors.Is(err, dc.Unavailable) {
		t.Errorf("a write without a majority: %v, want unavailable", err)
	}
	if _, err := client.NewMeta(c.Client(1)).Descriptor(ctx, "table", "a"); !errors.Is(err, dc.Unavailable) {
		t.Errorf("a read without a majority: %v, want unavailable", err)
	}
	c.Heal()
	c.put(t, 1, "c")
	c.has(t, 3, "c")
}

func TestAStalledLeaderIsReplaced(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	st, err := c.Meta(1).ClusterStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	leader := int(st.Groups[0].Leader)
	other := leader%3 + 1
	c.Stall(leader)
	c.put(t, other, "while")
	c.Heal()
	c.has(t, leader, "while")
	c.WaitWhole()
}

// members waits until every group is on exactly the given nodes.
func (c *Cluster) members(want ...uint64) {
	c.t.Helper()
	c.Wait(fmt.Sprint("groups to be on nodes ", want), func(st *dcpb.MetaStatusReply) string {
		for _, g := range st.Groups {
			var got []uint64
			for _, r := range g.Replicas {
				if r.Role != "voter" || r.Health != "ok" {
					return fmt.Sprintf("group %s: %v", g.Name, r)
				}
				got = append(got, r.Node)
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				return fmt.Sprintf("group %s is on %v", g.Name, got)
			}
		}
		return ""
	})
}

func TestARemovedNodeIsReplacedAndRefused(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	c.put(t, 1, "a")
	c.Kill(3)
	if err := c.Meta(1).RemoveNode(t.Context(), "node3"); err != nil {
		t.Fatal(err)
	}
	c.members(1, 2)
	c.Add()
	c.members(1, 2, 4)
	c.has(t, 4, "a")
	c.Kill(2) // node 4's replicas must be real ones
	c.put(t, 4, "b")
	c.Restart(2)
	c.Restart(3) // comes back and does not know yet
	select {
	case err := <-c.Node(3).Ended():
		if !errors.Is(err, dc.Stale) {
			t.Errorf("the removed node ended with %v, want stale", err)
		}
	case <-time.After(patience):
		t.Error("the removed node goes on")
	}
}

func TestRemovingALivingNodeMovesItsReplicasAndLeaderships(t *testing.T) {
	t.Parallel()
	c := Start(t, 4)
	c.put(t, 1, "a")
	if err := c.Meta(2).RemoveNode(t.Context(), "n1"); err != nil {
		t.Fatal(err)
	}
	c.Stop(1)
	c.members(2, 3, 4)
	c.has(t, 4, "a")
}

func TestADeadNodesReplicasMoveAfterItsGrace(t *testing.T) {
	t.Parallel()
	c := Start(t, 4, Configure(func(cfg *node.Config) { cfg.DeadAfter = 7 * time.Second }))
	c.put(t, 1, "a")
	c.Kill(2)
	c.members(1, 3, 4)
	c.Restart(2)
	c.has(t, 2, "a")
}

// rehouse gives node i, which is down, another address.
func (c *Cluster) rehouse(i int) {
	c.t.Helper()
	lis, err := c.net.listen(i, "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	c.nodes[i-1].address = lis.Addr().String()
	if err := lis.Close(); err != nil {
		c.t.Fatal(err)
	}
}

// The node that must lead knows the other's old address only, and where a node listens is recorded by a leader.
func TestANodeComesBackElsewhereWhileNobodyLeads(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	c.Stop(2)
	c.put(t, 3, "a") // node 2 does not have it, so it cannot lead
	c.rehouse(2)
	c.Kill(1)
	c.Restart(2)
	c.put(t, 3, "b")
	c.has(t, 2, "b")
}

func TestANodeComesBackElsewhere(t *testing.T) {
	t.Parallel()
	c := Start(t, 3)
	c.Stop(2)
	c.rehouse(2)
	c.Restart(2)
	c.Wait("the new address to be known", func(st *dcpb.MetaStatusReply) string {
		if got := st.Nodes[1].Address; got != c.nodes[1].address {
			return got
		}
		return ""
	})
	c.WaitWhole()
	c.Kill(1) // only with node 2 at its new address is there a majority
	c.put(t, 3, "a")
	c.has(t, 2, "a")
}

func TestAFullNodeKeepsItsGroupsFromGrowing(t *testing.T) {
	t.Parallel()
	var st unix.Statfs_t
	if err := unix.Statfs(t.TempDir(), &st); err != nil {
		t.Fatal(err)
	}
	free := st.Bavail * uint64(st.Bsize)
	started := 0
	c := Start(t, 3, Configure(func(cfg *node.Config) {
		if started++; started == 3 {
			cfg.ReserveBytes = free + free/2 // reached, but not used up
		}
	}))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	kv := client.NewKV(c.Client(1), c.Meta(1))
	table, err := kv.CreateTable(ctx, "t", 0o755)
	if err != nil {
		t.Fatal(err)
	}
	for {
		err := kv.Load(ctx, table, []client.KVPair{{Key: "row", Value: []byte("x")}})
		if errors.Is(err, dc.NoSpace) {
			return
		}
		if err != nil || ctx.Err() != nil {
			t.Fatalf("a row on a full node: %v, want no space", err)
		}
	}
}

func TestAJoinTokenAdmitsOneNodeOnceAndInTime(t *testing.T) {
	t.Parallel()
	c := Start(t, 1)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	join := func(dir, token string) error {
		_, err := node.Join(ctx, dir, token, "127.0.0.1:1", "x", "")
		return err
	}
	good := c.Token(ctx)
	first := t.TempDir()
	wrong, err := pki.ParseToken(good)
	if err != nil {
		t.Fatal(err)
	}
	wrong.Secret[0] ^= 1
	if err := join(t.TempDir(), wrong.String()); !errors.Is(err, dc.Denied) {
		t.Errorf("a wrong token: %v, want denied", err)
	}
	stranger := wrong
	stranger.Fingerprint[0] ^= 1
	if err := join(t.TempDir(), stranger.String()); err == nil {
		t.Error("a node joined a cluster whose authority is not the token's")
	}
	if err := join(first, good); err != nil {
		t.Fatal(err)
	}
	if err := join(first, good); !errors.Is(err, dc.Exists) {
		t.Errorf("a directory that is a node's already: %v, want exists", err)
	}
	if err := join(t.TempDir(), good); !errors.Is(err, dc.Denied) {
		t.Errorf("a used token: %v, want denied", err)
	}
	late := pki.NewToken(wrong.Fingerprint, wrong.Addresses)
	if _, err := c.Meta(1).MintToken(ctx, pki.Hash(late.Secret[:]), time.Millisecond); err != nil {
		t.Fatal(err)
	}
	c.put(t, 1, "later") // the cluster's clock moves with its log
	if err := join(t.TempDir(), late.String()); !errors.Is(err, dc.Denied) {
		t.Errorf("an expired token: %v, want denied", err)
	}
	id, err := node.Init(t.TempDir(), "127.0.0.1:1", "other", "")
	if err != nil {
		t.Fatal(err)
	}
	conf := id.Client(1) // a certificate of another cluster, shown to this one
	conf.VerifyConnection = nil
	cc, err := tls.Dial("tcp", c.Node(1).Address(), conf)
	if err == nil {
		if _, err = cc.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("a certificate of another cluster was accepted")
		}
		_ = cc.Close()
	}
}
