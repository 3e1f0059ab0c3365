package client

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	mrand "math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/rpc"
)

// A Call is one attempt of one request on one node. It must put h into the request message and use cc, e.g.
//
//	reply, err = dcpb.NewKVClient(cc).Put(ctx, &dcpb.KVPutRequest{Header: h, ...})
//
// It may run several times and must not keep state between runs besides its last reply.
type Call func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error

// Nodes is how the client reaches nodes: mutual TLS, or in process for this node itself.
type Nodes interface {
	Conn(n dc.NodeID) (grpc.ClientConnInterface, error)
}

// Directory is what the client must know of the cluster: which groups there are and which nodes hold them (a cache of meta).
type Directory interface {
	// Group finds a group by name ("lock", "kv/1"); dc.Unavailable while the directory is empty.
	Group(name string) (dc.GroupID, error)
	// Replicas gives the nodes that hold g, in any order; nil if unknown.
	Replicas(g dc.GroupID) []dc.NodeID
}

// Config says how a client finds the cluster.
type Config struct {
	Node      dc.NodeID // the node this process runs on; principals without a node get it
	Nodes     Nodes
	Directory Directory
	Log       *slog.Logger
	// AttemptTimeout bounds one attempt on one node, so that a hung node does not use up the caller's time. Default 3 s.
	AttemptTimeout time.Duration
	// Fences, if set, says dc.Unsupported while a node of the cluster runs a version that would write without looking at a dc.Fence.
	Fences func() error
}

const (
	firstBackoff = 10 * time.Millisecond
	maxBackoff   = 250 * time.Millisecond
	maxHops      = 3 // leader hints followed in a row
)

// Client routes requests. It is safe for concurrent use and has no goroutines of its own.
type Client struct {
	cfg    Config
	window *window
	clock  atomic.Int64 // the latest cluster time seen, Unix milliseconds
	trace  atomic.Uint64

	mu      sync.Mutex
	leaders map[dc.GroupID]dc.NodeID // last node that answered as leader
}

// New makes a client with a fresh client id.
func New(cfg Config) *Client {
	if cfg.AttemptTimeout == 0 {
		cfg.AttemptTimeout = 3 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Fences == nil {
		cfg.Fences = func() error { return nil }
	}
	return &Client{cfg: cfg, window: newWindow(randomID(), dc.MaxInFlightPerClient), leaders: map[dc.GroupID]dc.NodeID{}}
}

func randomID() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand aborts the process instead)
	return binary.LittleEndian.Uint64(b[:]) | 1
}

// Node is the node this client runs on.
func (c *Client) Node() dc.NodeID { return c.cfg.Node }

// Group finds a group by name.
func (c *Client) Group(name string) (dc.GroupID, error) { return c.cfg.Directory.Group(name) }

// Clock is the cluster time as far as this client knows: never behind its own wall clock, never going back.
func (c *Client) Clock() int64 {
	now := time.Now().UnixMilli()
	for {
		seen := c.clock.Load()
		if now <= seen {
			return seen
		}
		if c.clock.CompareAndSwap(seen, now) {
			return now
		}
	}
}

// Mutate runs one mutation on the leader of g. All attempts carry one request id, so the mutation takes effect at most once and,
// when Mutate returns nil, exactly once. dc.Unavailable means that the outcome is unknown. Without a deadline in ctx it takes
// dc.OpTimeout; it blocks while dc.MaxInFlightPerClient mutations are unanswered.
func (c *Client) Mutate(ctx context.Context, g dc.GroupID, call Call) error {
	ctx, cancel := withDefaultDeadline(ctx)
	defer cancel()
	seq, err := c.window.begin(ctx)
	if err != nil {
		return err
	}
	defer c.window.end(seq)
	h := c.header(ctx, g)
	if f := dc.FenceOf(ctx); !f.IsZero() {
		if err := c.cfg.Fences(); err != nil {
			return err
		}
		h.Fence = rpc.FenceHeader(f)
	}
	h.Client, h.Seq, h.Done, h.IssuedMs = c.window.client, seq, c.window.done(), c.Clock()
	return c.onLeader(ctx, g, h, call)
}

// Query runs one read on the leader of g, with retries like Mutate's.
func (c *Client) Query(ctx context.Context, g dc.GroupID, call Call) error {
	ctx, cancel := withDefaultDeadline(ctx)
	defer cancel()
	return c.onLeader(ctx, g, c.header(ctx, g), call)
}

// Stream runs call on the leader of g with ctx as it is: call opens a stream and consumes it. A wrong or dead leader is
// retried only until call has been admitted once (it returned something else than NotLeader or Unavailable); the caller resumes a broken stream.
func (c *Client) Stream(ctx context.Context, g dc.GroupID, call Call) error {
	h := c.header(ctx, g)
	backoff := firstBackoff
	var last error
	for _, n := range c.Leader(g) {
		err := c.attempt(ctx, n, h, call)
		if err == nil || !retriable(err) || ctx.Err() != nil {
			return err
		}
		last = err
		c.forget(g, n, err)
		if hint := leaderHint(err); hint != 0 && hint != n {
			if err = c.attempt(ctx, hint, h, call); err == nil || !retriable(err) {
				return err
			}
		}
		if err := sleep(ctx, backoff); err != nil {
			return err
		}
	}
	if last == nil {
		last = dc.Errorf(dc.Unavailable, "route", g.String(), "no replica of the group is known")
	}
	return last
}

// Nearest runs one read that any replica of g may answer: on this node if it has one, else on the others in turn, once each.
func (c *Client) Nearest(ctx context.Context, g dc.GroupID, call Call) error {
	ctx, cancel := withDefaultDeadline(ctx)
	defer cancel()
	nodes := c.cfg.Directory.Replicas(g)
	h := c.header(ctx, g)
	if slices.Contains(nodes, c.cfg.Node) {
		nodes = append([]dc.NodeID{c.cfg.Node}, slices.DeleteFunc(slices.Clone(nodes), func(n dc.NodeID) bool { return n == c.cfg.Node })...)
	}
	err := error(dc.Errorf(dc.Unavailable, "route", g.String(), "no replica of the group is known"))
	for _, n := range nodes {
		attempt, cancel := context.WithTimeout(ctx, c.cfg.AttemptTimeout)
		err = c.attempt(attempt, n, h, call)
		cancel()
		if err == nil || !retriable(err) || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// OnNode makes one attempt on a given node, for requests that name a node (block stores, task output).
func (c *Client) OnNode(ctx context.Context, n dc.NodeID, call Call) error {
	return c.attempt(ctx, n, c.header(ctx, 0), call)
}

// Leader gives the nodes to ask for g, the likely leader first.
func (c *Client) Leader(g dc.GroupID) []dc.NodeID {
	c.mu.Lock()
	likely := c.leaders[g]
	c.mu.Unlock()
	replicas := c.cfg.Directory.Replicas(g)
	nodes := make([]dc.NodeID, 0, len(replicas)+1)
	if likely != 0 {
		nodes = append(nodes, likely)
	}
	for _, n := range replicas {
		if n != likely {
			nodes = append(nodes, n)
		}
	}
	return nodes
}

func (c *Client) header(ctx context.Context, g dc.GroupID) *dcpb.Header {
	p, ok := dc.PrincipalOf(ctx)
	if !ok {
		p = dc.System(c.cfg.Node)
	}
	if p.Node == 0 {
		p.Node = c.cfg.Node
	}
	return &dcpb.Header{Group: uint64(g), Principal: rpc.PrincipalHeader(p), Trace: c.nextTrace()}
}

// onLeader tries nodes until one answers as the leader or ctx ends.
func (c *Client) onLeader(ctx context.Context, g dc.GroupID, h *dcpb.Header, call Call) error {
	backoff := firstBackoff
	var last error
	for {
		for _, n := range c.Leader(g) {
			// A node that does not lead may name the leader: follow it, but not in circles while an election is under way.
			for hop := 0; n != 0 && hop < maxHops; hop++ {
				attempt, cancel := context.WithTimeout(ctx, c.cfg.AttemptTimeout)
				err := c.attempt(attempt, n, h, call)
				cancel()
				if err == nil {
					c.remember(g, n)
					return nil
				}
				if !retriable(err) && ctx.Err() == nil {
					c.remember(g, n)
					return err
				}
				if ctx.Err() != nil {
					return c.gaveUp(ctx, g, h.Client != 0, err, last)
				}
				last = err
				c.forget(g, n, err)
				n = follow(n, err)
			}
		}
		if err := sleep(ctx, backoff); err != nil {
			return c.gaveUp(ctx, g, h.Client != 0, last, last)
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// leaderHint gives the leader that a NotLeader error names, or zero.
func leaderHint(err error) dc.NodeID {
	if e, ok := errors.AsType[*dc.Error](err); ok && e.Kind == dc.NotLeader {
		return e.Leader
	}
	return 0
}

// follow gives the node that err names as leader, or zero to go on down the list.
func follow(asked dc.NodeID, err error) dc.NodeID {
	if hint := leaderHint(err); hint != asked {
		return hint
	}
	return 0
}

func (c *Client) attempt(ctx context.Context, n dc.NodeID, h *dcpb.Header, call Call) error {
	cc, err := c.cfg.Nodes.Conn(n)
	if err != nil {
		return err
	}
	return rpc.FromStatus(call(ctx, cc, h))
}

func (c *Client) remember(g dc.GroupID, n dc.NodeID) {
	c.mu.Lock()
	c.leaders[g] = n
	c.mu.Unlock()
}

// forget drops n as the likely leader of g and takes the one that err names instead.
func (c *Client) forget(g dc.GroupID, n dc.NodeID, err error) {
	hint := leaderHint(err)
	c.mu.Lock()
	defer c.mu.Unlock()
	if hint != 0 && hint != n {
		c.leaders[g] = hint
	} else if c.leaders[g] == n {
		delete(c.leaders, g)
	}
}

// gaveUp says why the caller's time ended without an answer, to a change or to a question.
func (c *Client) gaveUp(ctx context.Context, g dc.GroupID, change bool, err, last error) error {
	kind := dc.KindOf(ctx.Err())
	cause := err
	if last != nil && (cause == nil || dc.KindOf(cause) == kind) {
		cause = last
	}
	unknown := ""
	if change {
		unknown = "; the outcome of the change is unknown"
	}
	if kind == dc.Interrupted {
		return dc.Errorf(kind, "", "", "interrupted before an answer came%s", unknown)
	}
	if cause == nil {
		cause = dc.Errorf(dc.Unavailable, "route", g.String(), "no replica of the group is known")
	}
	return dc.Errorf(dc.Unavailable, "", "", "no answer in time from a leader of group %s (is a majority of its nodes up? see dcctl status)%s: %w", g, unknown, cause)
}

func (c *Client) nextTrace() string {
	var b [12]byte
	binary.BigEndian.PutUint64(b[:8], c.trace.Add(1))
	binary.BigEndian.PutUint32(b[8:], uint32(c.window.client))
	return string(appendHex(nil, b[:]))
}

func appendHex(dst, src []byte) []byte {
	const digits = "0123456789abcdef"
	for _, x := range src {
		dst = append(dst, digits[x>>4], digits[x&15])
	}
	return dst
}

func retriable(err error) bool {
	switch dc.KindOf(err) {
	case dc.NotLeader, dc.Unavailable:
		return true
	}
	return false
}

func withDefaultDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, dc.OpTimeout)
}

// sleep waits about d (jittered by half) or until ctx ends, whose error it then returns.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d/2 + mrand.N(d))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
