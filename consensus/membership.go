package consensus

import (
	"context"
	"time"

	"github.com/hashicorp/raft"

	"missingos/srv/dc"
)

// changeTimeout bounds one membership change.
const changeTimeout = 10 * time.Second

// Member is a server of the group's configuration.
type Member struct {
	Node  dc.NodeID
	Voter bool
}

// Status is what one replica knows of its group.
type Status struct {
	Group       dc.GroupID
	Leader      dc.NodeID // zero if unknown
	Leading     bool      // this replica leads and is ready
	Term        dc.Term
	Commit      dc.Index
	Applied     dc.Index // by the state machine, not counting no-ops
	LastIndex   dc.Index
	Members     []Member
	ConfIndex   uint64    // index of the configuration, for the change operations
	Held        int       // states that this replica keeps for others to pull
	PullingFrom dc.NodeID // who sends this replica a snapshot; zero if nobody does
	LastSpoken  time.Time // when a follower last heard of its leader
}

// Status describes the replica; it does not block.
func (g *Group) Status() Status {
	leader, term := g.Leader()
	_, leading := g.leading()
	s := Status{
		Group: g.cfg.ID, Leader: leader, Leading: leading, Term: term, Commit: dc.Index(g.raft.CommitIndex()),
		Applied: dc.Index(g.fsm.index()), LastIndex: dc.Index(g.raft.LastIndex()), LastSpoken: g.lastHeard(),
		PullingFrom: dc.NodeID(g.pulling.Load()), Held: g.holds.count(),
	}
	f := g.raft.GetConfiguration()
	if f.Error() == nil {
		s.ConfIndex = f.Index()
		for _, srv := range f.Configuration().Servers {
			s.Members = append(s.Members, Member{Node: nodeOf(srv.ID), Voter: srv.Suffrage == raft.Voter})
		}
	}
	return s
}

// members gives the nodes of the configuration and whether they vote.
func (g *Group) members() map[dc.NodeID]bool {
	m := map[dc.NodeID]bool{}
	for _, s := range g.raft.GetConfiguration().Configuration().Servers {
		m[nodeOf(s.ID)] = s.Suffrage == raft.Voter
	}
	return m
}

func (g *Group) voters() []dc.NodeID {
	var v []dc.NodeID
	for _, s := range g.raft.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			v = append(v, nodeOf(s.ID))
		}
	}
	return v
}

// Lag is how many entries node's replica is behind this leader's commit index.
func (g *Group) Lag(ctx context.Context, n dc.NodeID) (uint64, error) {
	p, err := g.host.transport.Progress(ctx, n, g.cfg.ID)
	if err != nil {
		return 0, dc.Wrap(err, "progress", n.String())
	}
	commit := g.raft.CommitIndex()
	if p.Applied >= commit {
		return 0, nil
	}
	return commit - p.Applied, nil
}

// AddNonVoter lets node receive the log without voting. confIndex is Status.ConfIndex at the time of the decision: the change is refused
// if another one came in between.
func (g *Group) AddNonVoter(ctx context.Context, n dc.NodeID, confIndex uint64) error {
	return g.change(ctx, g.raft.AddNonvoter(serverID(n), serverAddress(n), confIndex, changeTimeout))
}

// Promote makes a non-voter that has caught up a voter.
func (g *Group) Promote(ctx context.Context, n dc.NodeID, confIndex uint64) error {
	return g.change(ctx, g.raft.AddVoter(serverID(n), serverAddress(n), confIndex, changeTimeout))
}

// Remove takes node out of the group.
func (g *Group) Remove(ctx context.Context, n dc.NodeID, confIndex uint64) error {
	return g.change(ctx, g.raft.RemoveServer(serverID(n), confIndex, changeTimeout))
}

func (g *Group) change(ctx context.Context, f raft.IndexFuture) error {
	done := make(chan error, 1)
	go func() { done <- g.answer(f) }()
	select {
	case err := <-done:
		if err != nil {
			return g.proposalError(err)
		}
		return nil
	case <-ctx.Done():
		return dc.Errorf(dc.KindOf(ctx.Err()), "change members", g.cfg.ID.String(), "not committed in time; the outcome is unknown")
	}
}

// Transfer hands leadership to the voter that is furthest.
func (g *Group) Transfer(ctx context.Context) error {
	return g.change(ctx, transferFuture{g.raft.LeadershipTransfer()})
}

// transferLag is how many entries a node may be behind and still be handed the leadership: a group takes no writes until its heir has caught up.
const transferLag = 256

// TransferTo hands leadership to node. A node that does not answer, has not heard of this leader or is far behind is refused at once,
// since raft would stop writes for an election timeout to try it.
func (g *Group) TransferTo(ctx context.Context, n dc.NodeID) error {
	p, err := g.host.transport.Progress(ctx, n, g.cfg.ID)
	if err != nil {
		return dc.Wrap(err, "transfer", n.String())
	}
	last := g.raft.LastIndex()
	if p.Term != g.raft.CurrentTerm() || p.LastIndex+transferLag < last {
		return dc.Errorf(dc.Unavailable, "transfer", n.String(), "its replica of %s is at entry %d of term %d, this leader's at %d of term %d",
			g.cfg.ID, p.LastIndex, p.Term, last, g.raft.CurrentTerm())
	}
	return g.change(ctx, transferFuture{g.raft.LeadershipTransferToServer(serverID(n), serverAddress(n))})
}

// transferFuture lets change wait for a future without an index.
type transferFuture struct{ raft.Future }

func (transferFuture) Index() uint64 { return 0 }

// Snapshot makes the state durable and lets the log be truncated, now; for tests and operators. Nothing new is not an error.
func (g *Group) Snapshot() error {
	err := g.raft.Snapshot().Error()
	if err == raft.ErrNothingNewToSnapshot { //nolint:errorlint // raft returns it bare
		return nil
	}
	return err
}
