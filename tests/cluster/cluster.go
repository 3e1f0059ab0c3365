package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"missingos/srv/client"
	"missingos/srv/dcpb"
	"missingos/srv/node"
	"missingos/srv/pki"
)

// patience bounds every wait of the harness.
const patience = 60 * time.Second

// Cluster is a cluster in this process. Its methods fail the test when something does not work; nodes are numbered from 1, as they joined.
type Cluster struct {
	t   testing.TB
	dir string
	net *network
	log *slog.Logger
	cfg func(*node.Config)

	mu    sync.Mutex
	nodes []*member
}

type member struct {
	dir        string
	address    string
	*node.Node // nil while it is down
}

// An Option changes how a cluster is started.
type Option func(*Cluster)

// Configure lets a test change the configuration of every node before it starts.
func Configure(f func(*node.Config)) Option { return func(c *Cluster) { c.cfg = f } }

// Start makes a cluster of n nodes and waits until every group has as many voters as it should and n nodes give, all level.
func Start(t testing.TB, n int, opts ...Option) *Cluster {
	t.Helper()
	c := &Cluster{t: t, dir: t.TempDir(), net: newNetwork(), log: slog.New(slog.DiscardHandler), cfg: func(*node.Config) {}}
	if path := os.Getenv("DC_TEST_LOG"); path != "" {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		c.log = slog.New(slog.NewTextHandler(f, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	for _, o := range opts {
		o(c)
	}
	t.Cleanup(c.stop)
	for range n {
		c.Add()
	}
	c.WaitWhole()
	return c
}

// Add makes one more node and returns its number; the first makes the cluster.
func (c *Cluster) Add() int {
	c.t.Helper()
	i := len(c.nodes) + 1
	m := &member{dir: filepath.Join(c.dir, fmt.Sprint("n", i))}
	lis, err := c.net.listen(i, c.net.host(i)+":0")
	if err != nil {
		c.t.Fatal(err)
	}
	m.address = lis.Addr().String()
	_ = lis.Close() // only to find a free port; run takes it again
	name := fmt.Sprint("node", i)
	if i == 1 {
		_, err = node.Init(m.dir, m.address, name, "")
	} else {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, err = node.Join(ctx, m.dir, c.Token(ctx), m.address, name, "")
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	c.nodes = append(c.nodes, m)
	c.mu.Unlock()
	c.Restart(i)
	return i
}

// Token makes a join token, waiting for the cluster to be able to.
func (c *Cluster) Token(ctx context.Context) string {
	c.t.Helper()
	n := c.any()
	id, err := pki.LoadIdentity(n.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	t := pki.NewToken(id.Fingerprint(), []string{n.address})
	for {
		_, err := n.Meta().MintToken(ctx, pki.Hash(t.Secret[:]), time.Hour)
		if err == nil {
			return t.String()
		}
		if ctx.Err() != nil {
			c.t.Fatal(err)
		}
	}
}

// any gives a node that is up.
func (c *Cluster) any() *member {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, m := range c.nodes {
		if m.Node != nil {
			return m
		}
	}
	c.t.Fatal("no node is up")
	return nil
}

// Node gives a node that is up.
func (c *Cluster) Node(i int) *node.Node {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nodes[i-1].Node == nil {
		c.t.Fatalf("node %d is down", i)
	}
	return c.nodes[i-1].Node
}

// Client gives a node's client.
func (c *Cluster) Client(i int) *client.Client { c.t.Helper(); return c.Node(i).Client() }

// Meta gives a node's client of the meta group.
func (c *Cluster) Meta(i int) *client.Meta { c.t.Helper(); return c.Node(i).Meta() }

// Len is how many nodes there are, up or not.
func (c *Cluster) Len() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.nodes)
}

// Kill ends node i as a crash would, as far as that is possible in one process: it is cut off first, nothing is handed over.
func (c *Cluster) Kill(i int) {
	c.t.Helper()
	c.mu.Lock()
	m := c.nodes[i-1]
	n := m.Node
	m.Node = nil
	c.mu.Unlock()
	if n == nil {
		return
	}
	c.Isolate(i)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := n.Abort(ctx); err != nil {
		c.t.Errorf("node %d does not end: %v", i, err)
	}
}

// Stop ends node i cleanly.
func (c *Cluster) Stop(i int) {
	c.t.Helper()
	c.mu.Lock()
	m := c.nodes[i-1]
	n := m.Node
	m.Node = nil
	c.mu.Unlock()
	if n == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := n.Close(ctx); err != nil {
		c.t.Errorf("node %d does not end: %v", i, err)
	}
}

// Restart starts node i, where it was, with its connections healed.
func (c *Cluster) Restart(i int) {
	c.t.Helper()
	c.connect(i)
	c.mu.Lock()
	m := c.nodes[i-1]
	c.mu.Unlock()
	lis, err := c.net.listen(i, m.address)
	if err != nil {
		c.t.Fatal(err)
	}
	cfg := node.Config{
		Dir: m.dir, NoMount: true, Listener: lis, Dial: c.net.dialer(i), Log: c.log,
		Fatal: func(err error) { c.t.Errorf("node %d must not go on: %v", i, err) },
	}
	c.cfg(&cfg)
	n, err := node.Start(cfg)
	if err != nil {
		c.t.Fatalf("node %d: %v", i, err)
	}
	c.mu.Lock()
	m.Node = n
	c.mu.Unlock()
}

// Cut ends the connections between nodes i and j, both ways.
func (c *Cluster) Cut(i, j int) {
	c.net.set(func() { c.net.cut[[2]int{i, j}], c.net.cut[[2]int{j, i}] = true, true })
}

// Isolate cuts node i off from all others.
func (c *Cluster) Isolate(i int) {
	c.net.set(func() {
		for j := 1; j <= c.Len(); j++ {
			if j != i {
				c.net.cut[[2]int{i, j}], c.net.cut[[2]int{j, i}] = true, true
			}
		}
	})
}

// Stall holds everything that node i sends and receives, until Heal or Restart.
func (c *Cluster) Stall(i int) { c.net.set(func() { c.net.stalled[i] = true }) }

// Heal undoes every Cut, Isolate and Stall; nodes that are down stay down.
func (c *Cluster) Heal() {
	c.net.set(func() { clear(c.net.cut); clear(c.net.stalled) })
}

// connect undoes what concerns node i.
func (c *Cluster) connect(i int) {
	c.net.set(func() {
		delete(c.net.stalled, i)
		for pair := range c.net.cut {
			if pair[0] == i || pair[1] == i {
				delete(c.net.cut, pair)
			}
		}
	})
}

// WaitWhole waits until every group that the nodes serve has a leader and as many level voters as it should have, of which nodes that are down cannot be one.
func (c *Cluster) WaitWhole() {
	c.t.Helper()
	c.Wait("groups to be whole", func(st *dcpb.MetaStatusReply) string {
		want := 0
		for _, n := range st.Nodes {
			if n.State == "up" || n.State == "draining" {
				want++
			}
		}
		if want < min(c.up(), 3) {
			return fmt.Sprintf("%d nodes up", want)
		}
		up := want
		for _, g := range st.Groups {
			want = min(up, int(g.Want))
			voters := 0
			for _, r := range g.Replicas {
				if r.Role != "voter" || r.Health != "ok" {
					return fmt.Sprintf("group %s: %v", g.Name, r)
				}
				voters++
			}
			if g.Leader == 0 || voters != want {
				return fmt.Sprintf("group %s: leader %d, %d of %d voters", g.Name, g.Leader, voters, want)
			}
		}
		return ""
	})
}

func (c *Cluster) up() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	up := 0
	for _, m := range c.nodes {
		if m.Node != nil {
			up++
		}
	}
	return up
}

// Wait polls the cluster's status until check finds nothing missing.
func (c *Cluster) Wait(what string, check func(*dcpb.MetaStatusReply) (missing string)) {
	c.t.Helper()
	deadline := time.Now().Add(patience)
	missing := "no status"
	for time.Now().Before(deadline) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		st, err := c.any().Meta().ClusterStatus(ctx)
		cancel()
		if err != nil {
			missing = err.Error()
		} else if missing = check(st); missing == "" {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	c.t.Fatalf("waited %v for %s in vain: %s", patience, what, missing)
}

// stop ends all nodes, together: none has anybody to hand over to.
func (c *Cluster) stop() {
	c.Heal()
	var wg sync.WaitGroup
	for i := 1; i <= c.Len(); i++ {
		wg.Go(func() { c.Stop(i) })
	}
	wg.Wait()
}
