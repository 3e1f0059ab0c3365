package sim

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"missingos/consensus/transport"
	"missingos/srv/dc"
	"missingos/srv/rpc"
)

// usualDelay is what a message takes at most when nothing is wrong.
const usualDelay = 5 * time.Millisecond

type link struct{ from, to dc.NodeID }

// network carries messages between nodes of one bubble; every message and every answer takes its time, or is lost.
type network struct {
	mu     sync.Mutex
	rng    *rand.Rand
	nodes  map[dc.NodeID]*rpc.Local // by node, while its process lives
	cut    map[link]bool            // nothing passes this way
	paused map[dc.NodeID]chan struct{}
	held   map[link]chan struct{} // answers to heartbeats wait for this
	kept   map[link]int           // how many do
	loss   float64
	slow   time.Duration // delays are up to this
}

func newNetwork(rng *rand.Rand) *network {
	return &network{
		rng: rng, nodes: map[dc.NodeID]*rpc.Local{}, cut: map[link]bool{}, paused: map[dc.NodeID]chan struct{}{},
		held: map[link]chan struct{}{}, kept: map[link]int{}, slow: usualDelay,
	}
}

// conn is one process' way to another node.
type conn struct {
	net  *network
	dead *atomic.Bool // the process; a ghost sends nothing
	link
}

var errLost = dc.Errorf(dc.Unavailable, "send", "", "the message is lost")

// pass takes a message's time on a link. A lost one is noticed only by its deadline, as on a real network.
func (n *network) pass(ctx context.Context, l link) error {
	n.mu.Lock()
	delay := time.Duration(n.rng.Int64N(int64(n.slow) + 1))
	lost := n.rng.Float64() < n.loss
	n.mu.Unlock()
	if err := sleep(ctx, delay); err != nil {
		return err
	}
	for {
		n.mu.Lock()
		lost = lost || n.cut[l]
		pause := n.paused[l.to]
		if n.paused[l.from] != nil {
			pause = n.paused[l.from]
		}
		n.mu.Unlock()
		if lost {
			if err := sleep(ctx, time.Second); err != nil {
				return err
			}
			return errLost
		}
		if pause == nil {
			return nil
		}
		select {
		case <-pause:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Invoke carries a call there and its answer back.
func (c conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if c.dead.Load() {
		return errLost
	}
	if err := c.net.pass(ctx, c.link); err != nil {
		return err
	}
	c.net.mu.Lock()
	to, held := c.net.nodes[c.to], c.net.held[c.link]
	c.net.mu.Unlock()
	if to == nil {
		return dc.Errorf(dc.Unavailable, "call", method, "node %s is down", c.to)
	}
	if err := to.Invoke(ctx, method, args, reply, opts...); err != nil {
		return err
	}
	c.net.mu.Lock()
	lives := c.net.nodes[c.to] == to
	c.net.mu.Unlock()
	if !lives {
		return errLost // the answer is a ghost's
	}
	if held != nil && method == transport.Raft_Beat_FullMethodName {
		c.net.mu.Lock()
		c.net.kept[c.link]++
		c.net.mu.Unlock()
		select {
		case <-held:
			return nil // it was on its way already: a cut does not take it back
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return c.net.pass(ctx, link{c.to, c.from})
}

// NewStream opens a stream; streams take no time, but fail where nothing passes.
func (c conn) NewStream(ctx context.Context, d *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if c.dead.Load() {
		return nil, errLost
	}
	if err := c.net.pass(ctx, c.link); err != nil {
		return nil, err
	}
	c.net.mu.Lock()
	to := c.net.nodes[c.to]
	c.net.mu.Unlock()
	if to == nil {
		return nil, dc.Errorf(dc.Unavailable, "call", method, "node %s is down", c.to)
	}
	return to.NewStream(ctx, d, method, opts...)
}

func (n *network) set(f func()) { n.mu.Lock(); defer n.mu.Unlock(); f() }

// heal takes all faults of the network away.
func (n *network) heal() {
	n.set(func() {
		clear(n.cut)
		for id, p := range n.paused {
			close(p)
			delete(n.paused, id)
		}
		for l, h := range n.held {
			close(h)
			delete(n.held, l)
		}
		clear(n.kept)
		n.loss, n.slow = 0, usualDelay
	})
}
