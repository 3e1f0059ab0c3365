// Package datatest runs /dc/data's services in one process for tests: one metadata replica in memory and a real block store
// on each of several nodes, which can be cut off.
//
//	c := datatest.New(t, 3)
//	d := c.Client(2)           // as node 2 sees it
//	c.Cut(3, true)             // node 3 no longer answers
//
// It is not a test of consensus: the metadata leader is node 1 and stays it.
package datatest

import (
	"context"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"missingos/srv/client"
	"missingos/srv/data"
	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/replica"
	"missingos/srv/rpc"
	"missingos/storage/block"
)

// LockExpiry is how long a session with locks may be silent.
const LockExpiry = 2 * time.Second

// lease is how long leases on files last.
const lease = 200 * time.Millisecond

// Group is the id of the one data group.
const Group dc.GroupID = 4

// grace is what a mount that reports every file.OpenReport just meets.
const grace = file.OpenReport + time.Second

// A Cluster is the running services.
type Cluster struct {
	t       testing.TB
	Meta    *replica.Memory
	Service *data.Service
	dir     string
	nodes   []*node
	ready   atomic.Bool // Meta is set

	mu    sync.Mutex
	cut   map[dc.NodeID]bool
	stall map[dc.NodeID]bool
	as    map[dc.NodeID]data.Member // what a test says of nodes
	deaf  map[dc.NodeID]bool
}

type node struct {
	id     dc.NodeID
	local  *rpc.Local
	store  *block.Store
	blocks *data.Blocks
	client *client.Data
}

// An Option changes how the services are started.
type Option func(*options)

type options struct {
	grace time.Duration
	bytes int64
	only  map[dc.NodeID]int64
	rate  int64 // of the care for blocks; 0: none
}

// Grace sets data.Config.Grace, by default a second more than a mount takes between reports.
func Grace(d time.Duration) Option { return func(o *options) { o.grace = d } }

// StoreBytes bounds each block store.
func StoreBytes(n int64) Option { return func(o *options) { o.bytes = n } }

// StoreBytesOf bounds one node's block store.
func StoreBytesOf(node dc.NodeID, n int64) Option {
	return func(o *options) {
		if o.only == nil {
			o.only = map[dc.NodeID]int64{}
		}
		o.only[node] = n
	}
}

// Care has blocks cared for, at a number of bytes a second; less than 0 is no limit. See [Cluster.Say].
func Care(rate int64) Option { return func(o *options) { o.rate = rate } }

// New starts the services of n nodes; they end with the test.
func New(t testing.TB, n int, opts ...Option) *Cluster {
	t.Helper()
	o := options{grace: grace}
	for _, opt := range opts {
		opt(&o)
	}
	c := &Cluster{t: t, cut: map[dc.NodeID]bool{}, stall: map[dc.NodeID]bool{}, as: map[dc.NodeID]data.Member{}, deaf: map[dc.NodeID]bool{}, Service: data.New(data.Config{Grace: o.grace, Lease: lease, LockExpiry: LockExpiry})}
	c.dir = t.TempDir()
	for i := range n {
		id := dc.NodeID(i + 1)
		most := o.bytes
		if n, ok := o.only[id]; ok {
			most = n
		}
		store, err := block.Open(block.Config{
			Dir: c.Dir(id), Node: id, MaxBytes: most, ReserveBytes: 1,
		})
		if err != nil {
			t.Fatal(err)
		}
		x := &node{id: id, local: rpc.NewLocal(), store: store, blocks: data.NewBlocks(store)}
		x.blocks.Register(x.local)
		c.nodes = append(c.nodes, x)
	}
	for _, x := range c.nodes {
		x.client = client.NewData(client.New(client.Config{Node: x.id, Nodes: caller{c, x.id}, Directory: c}), client.DataConfig{Store: x.store, Nodes: c.Nodes})
		x.blocks.SetPeers(x.client)
	}
	c.Service.SetDeleter(c.nodes[0].client)
	if o.rate != 0 {
		c.Service.SetCare(data.CareConfig{Stores: c.nodes[0].client, Members: c.members, Rate: o.rate, Every: 20 * time.Millisecond})
	}
	kind := c.Service.Kind()
	c.Service.SetReplicas(leading{c})
	kind.Register(c.nodes[0].local)
	c.Meta = replica.NewMemory(Group, kind)
	c.ready.Store(true)
	t.Cleanup(c.close)
	return c
}

func (c *Cluster) close() {
	c.Meta.Close()
	for _, x := range c.nodes {
		x.client.Close()
	}
	for _, x := range c.nodes {
		if err := x.store.Close(); err != nil {
			c.t.Errorf("close the store of %s: %v", x.id, err)
		}
	}
}

// Client is node n's client.
func (c *Cluster) Client(n dc.NodeID) *client.Data { return c.nodes[n-1].client }

// Store is node n's block store.
func (c *Cluster) Store(n dc.NodeID) *block.Store { return c.nodes[n-1].store }

// Dir is where node n's store keeps its files.
func (c *Cluster) Dir(n dc.NodeID) string { return filepath.Join(c.dir, strconv.Itoa(int(n))) }

// Blocks is node n's block service.
func (c *Cluster) Blocks(n dc.NodeID) *data.Blocks { return c.nodes[n-1].blocks }

// leading finds Meta once it is there.
type leading struct{ c *Cluster }

func (l leading) Leading(g dc.GroupID) (replica.Replica, error) {
	if !l.c.ready.Load() {
		return nil, dc.Errorf(dc.NotLeader, "", "", "the group is being made")
	}
	return l.c.Meta.Leading(g)
}

// Say has the care for blocks believe something else of node n than that it is up unless it is cut off.
func (c *Cluster) Say(n dc.NodeID, m data.Member) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m.Node = n
	c.as[n] = m
}

func (c *Cluster) members(context.Context) ([]data.Member, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []data.Member
	for _, x := range c.nodes {
		m, said := c.as[x.id]
		if !said {
			m = data.Member{Node: x.id, Up: !c.cut[x.id] && !c.stall[x.id]}
		}
		all = append(all, m)
	}
	return all, nil
}

// Cut makes node n unreachable from the others, or reachable again.
func (c *Cluster) Cut(n dc.NodeID, cut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut[n] = cut
}

// Stall makes calls to node n wait for their deadlines, as a paused machine does, or go on again. Calls that n makes itself are not held.
func (c *Cluster) Stall(n dc.NodeID, stall bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stall[n] = stall
}

// Deafen makes the calls of node n's client fail, and has it hear nothing in streams that are open, or ends that.
func (c *Cluster) Deafen(n dc.NodeID, deaf bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deaf[n] = deaf
}

// isDeaf tells whether node n is deaf now.
func (c *Cluster) isDeaf(n dc.NodeID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.deaf[n]
}

// Nodes lists the nodes.
func (c *Cluster) Nodes() []dc.NodeID {
	var all []dc.NodeID
	for _, x := range c.nodes {
		all = append(all, x.id)
	}
	return all
}

// A caller is the cluster as one node sees it.
type caller struct {
	c    *Cluster
	node dc.NodeID
}

// Conn implements client.Nodes.
func (x caller) Conn(n dc.NodeID) (grpc.ClientConnInterface, error) {
	if n == 0 || int(n) > len(x.c.nodes) {
		return nil, dc.Errorf(dc.NotFound, "dial", n.String(), "no such node")
	}
	return &conn{x.c, x.node, n, x.c.nodes[n-1].local}, nil
}

// Group implements client.Directory.
func (c *Cluster) Group(string) (dc.GroupID, error) { return Group, nil }

// Replicas implements client.Directory.
func (c *Cluster) Replicas(dc.GroupID) []dc.NodeID { return []dc.NodeID{1} }

// conn refuses calls to a node that is cut off, and holds those to one that is stalled.
type conn struct {
	c     *Cluster
	from  dc.NodeID
	node  dc.NodeID
	local *rpc.Local
}

func (x *conn) check(ctx context.Context) error {
	x.c.mu.Lock()
	cut, stall := x.c.cut[x.node], x.c.stall[x.node]
	x.c.mu.Unlock()
	switch {
	case cut || x.c.isDeaf(x.from):
		return dc.Errorf(dc.Unavailable, "dial", x.node.String(), "cut off")
	case stall:
		<-ctx.Done()
		return dc.Errorf(dc.Unavailable, "call", x.node.String(), "%w", ctx.Err())
	}
	return nil
}

func (x *conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if err := x.check(ctx); err != nil {
		return err
	}
	return x.local.Invoke(ctx, method, args, reply, opts...)
}

func (x *conn) NewStream(ctx context.Context, d *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if err := x.check(ctx); err != nil {
		return nil, err
	}
	s, err := x.local.NewStream(ctx, d, method, opts...)
	return &stream{s, x.c, x.from}, err
}

// stream is one whose messages a deaf node does not hear while it is.
type stream struct {
	grpc.ClientStream
	c    *Cluster
	node dc.NodeID
}

// RecvMsg implements grpc.ClientStream.
func (s *stream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	for err == nil && s.c.isDeaf(s.node) {
		select {
		case <-s.Context().Done():
			return dc.Errorf(dc.Unavailable, "receive", "", "deaf: %w", s.Context().Err())
		case <-time.After(time.Millisecond):
		}
	}
	return err
}
