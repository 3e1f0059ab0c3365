package consensus

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"missingos/consensus/transport"
	"missingos/srv/dc"
)

// Replicas apply the same entries and so have the same rows. A disk that returns something else, memory that flips a bit and a state machine that is not
// deterministic make them differ, and nobody would know until the replica leads. So a leader compares now and then: it puts an entry without
// commands into the log, has every member read its whole state as it was right after that entry, and compares the sums.

// A Digest is a sum of a replica's content after one entry.
type Digest struct {
	Index dc.Index
	Rows  uint64
	Bytes uint64
	Sum   []byte
}

// A Digester is a StateMachine whose content can be compared. Digest reads it as it was after entry at, one without commands, while later entries are
// applied; it takes as long as reading everything does, and waits until the entry is applied. dc.Again: that version is not kept any more.
type Digester interface {
	Digest(ctx context.Context, at dc.Index) (Digest, error)
}

// Compared is what a comparison found.
type Compared struct {
	At       time.Time
	Index    dc.Index
	Through  dc.Index          // last entry that the comparison itself put into the log; zero if another node compared
	Replicas []ComparedReplica // by node
	// Differ are those unlike what a majority of the voters has. Undecided says that they differ and no majority agrees.
	Differ    []dc.NodeID
	Undecided bool
}

// ComparedReplica is one member's content.
type ComparedReplica struct {
	Node dc.NodeID
	Digest
	Err error // it did not tell
}

// compareTries is how often a comparison begins anew when a replica's checkpoint came in between.
const compareTries = 5

// Compare has all members sum up their content and compares it. Only the leader does. It takes long: see Digester. One at a time: dc.Busy.
func (g *Group) Compare(ctx context.Context) (c *Compared, err error) {
	if !g.comparing.TryLock() {
		return nil, dc.Errorf(dc.Busy, "compare", g.cfg.ID.String(), "the replicas are being compared already")
	}
	defer g.comparing.Unlock()
	for range compareTries {
		if c, err = g.compare(ctx); err != nil || !slices.ContainsFunc(c.Replicas, func(r ComparedReplica) bool { return dc.KindOf(r.Err) == dc.Again }) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	g.compared = c
	g.mu.Unlock()
	c.report(g.log)
	g.condemn(ctx, c)
	return c, nil
}

// Compared is what the last comparison by this replica found; nil if there was none.
func (g *Group) Compared() *Compared {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.compared
}

func (g *Group) compare(ctx context.Context) (*Compared, error) {
	if _, ok := g.leading(); !ok {
		return nil, g.notLeader("compare")
	}
	through := dc.Index(0)
	index, err := g.mark(ctx)
	if err == nil {
		through, err = g.mark(ctx) // with the second, followers hear at once that the first is committed
	}
	if err != nil {
		return nil, err
	}
	c := &Compared{At: time.Now(), Index: index, Through: through}
	members := g.members()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for n := range members {
		wg.Go(func() {
			r := ComparedReplica{Node: n}
			r.Digest, r.Err = g.digestOf(ctx, n, c.Index)
			mu.Lock()
			defer mu.Unlock()
			c.Replicas = append(c.Replicas, r)
		})
	}
	wg.Wait()
	slices.SortFunc(c.Replicas, func(a, b ComparedReplica) int { return int(int64(a.Node) - int64(b.Node)) })
	c.judge(members)
	return c, nil
}

// mark puts an entry without commands into the log and returns when it is applied here.
func (g *Group) mark(ctx context.Context) (dc.Index, error) {
	clock := g.Clock()
	g.fsm.stamp(clock)
	f := g.raft.Apply(encodeEntry(clock, nil), 0)
	if err := g.wait(ctx, func() error { return g.answer(f) }); err != nil {
		return 0, g.proposalError(err)
	}
	return dc.Index(f.Index()), nil
}

func (g *Group) digestOf(ctx context.Context, n dc.NodeID, at dc.Index) (Digest, error) {
	if n == g.host.cfg.Node {
		return g.digest(ctx, at)
	}
	r, err := g.host.transport.Digest(ctx, n, g.cfg.ID, uint64(at))
	if err != nil {
		return Digest{}, err
	}
	if r.Gone {
		return Digest{}, dc.Errorf(dc.Again, "compare", g.cfg.ID.String(), "node %s does not keep the state after entry %d any more", n, at)
	}
	return Digest{Index: at, Rows: r.Rows, Bytes: r.Bytes, Sum: r.Sum}, nil
}

func (g *Group) digest(ctx context.Context, at dc.Index) (Digest, error) {
	if g.Rebuilding() != "" {
		return Digest{}, dc.Errorf(dc.Unavailable, "compare", g.cfg.ID.String(), "the replica is being rebuilt")
	}
	d, ok := g.cfg.Machine.(Digester)
	if !ok {
		return Digest{}, dc.Errorf(dc.Unsupported, "compare", g.cfg.ID.String(), "the state machine's content cannot be compared")
	}
	return d.Digest(ctx, at)
}

// wait runs f and returns when it has, or ctx ends.
func (g *Group) wait(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }() // ends at the latest with the group: see answer
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// judge finds who differs: what more than half of the voters have is right.
func (c *Compared) judge(members map[dc.NodeID]bool) {
	voters, have := 0, map[string]int{}
	for _, voter := range members {
		if voter {
			voters++
		}
	}
	for _, r := range c.Replicas {
		if r.Err == nil && members[r.Node] {
			have[string(r.Sum)]++
		}
	}
	right := ""
	for sum, n := range have {
		if n > voters/2 {
			right = sum
		}
	}
	for _, r := range c.Replicas {
		switch {
		case r.Err != nil:
		case right != "" && string(r.Sum) != right:
			c.Differ = append(c.Differ, r.Node)
		case right == "" && !bytes.Equal(r.Sum, c.first()):
			c.Undecided = true
		}
	}
}

// first is the sum of the first that told.
func (c *Compared) first() []byte {
	for _, r := range c.Replicas {
		if r.Err == nil {
			return r.Sum
		}
	}
	return nil
}

// report says what was found, loudly if anything is wrong.
func (c *Compared) report(log *slog.Logger) {
	if len(c.Differ) == 0 && !c.Undecided {
		log.Debug("the replicas have the same content", "index", uint64(c.Index))
		return
	}
	for _, r := range c.Replicas {
		log.Error("REPLICAS DIFFER", "index", uint64(c.Index), "node", r.Node.String(), "rows", r.Rows, "bytes", r.Bytes, "sum", hex.EncodeToString(r.Sum),
			"wrong", slices.Contains(c.Differ, r.Node), "undecided", c.Undecided, "err", r.Err)
	}
}

func (c *Compared) encode() *transport.CompareReply {
	out := &transport.CompareReply{Index: uint64(c.Index), Undecided: c.Undecided}
	for _, r := range c.Replicas {
		x := &transport.ComparedReplica{Node: uint64(r.Node), Rows: r.Rows, Bytes: r.Bytes, Sum: r.Sum, Differs: slices.Contains(c.Differ, r.Node)}
		if r.Err != nil {
			x.Err = r.Err.Error()
		}
		out.Replicas = append(out.Replicas, x)
	}
	return out
}

func decodeCompared(r *transport.CompareReply) *Compared {
	c := &Compared{At: time.Now(), Index: dc.Index(r.Index), Undecided: r.Undecided}
	for _, x := range r.Replicas {
		have := ComparedReplica{Node: dc.NodeID(x.Node), Digest: Digest{Index: c.Index, Rows: x.Rows, Bytes: x.Bytes, Sum: x.Sum}}
		if x.Err != "" {
			have.Err = errors.New(x.Err)
		}
		if x.Differs {
			c.Differ = append(c.Differ, have.Node)
		}
		c.Replicas = append(c.Replicas, have)
	}
	return c
}

// CompareOn has leader, another node, compare the replicas of g; see [Group.Compare].
func (h *Host) CompareOn(ctx context.Context, leader dc.NodeID, g dc.GroupID) (*Compared, error) {
	r, err := h.transport.Compare(ctx, leader, g, false)
	if err != nil {
		return nil, err
	}
	return decodeCompared(r), nil
}
