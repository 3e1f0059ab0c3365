package node

import (
	"context"
	"errors"
	"time"

	"missingos/consensus"
	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/rpc"
)

const (
	defaultCompareEvery = time.Hour
	compareTimeout      = 30 * time.Minute // of one group
	compareLook         = 64               // looks for groups that are due, in a period
	compareAgain        = 10 * time.Second // after replicas were found to differ: are they right now?
	compareHops         = 4                // leaders asked for one comparison
)

// compare has the groups that this node leads compare their replicas' content, one group at a time, as long as there is something new to compare.
func (n *Node) compare(ctx context.Context) {
	period := n.cfg.CompareEvery
	switch {
	case period < 0:
		return
	case period == 0:
		period = defaultCompareEvery
	}
	every(ctx, min(max(period/compareLook, time.Millisecond), compareAgain), func() {
		for _, m := range n.replicas.all() {
			if !m.comparisonDue(period) {
				continue
			}
			once, cancel := context.WithTimeout(ctx, compareTimeout)
			if _, err := m.group.Compare(once); err != nil && ctx.Err() == nil {
				n.log.Info("replicas not compared", "group", m.id.String(), "err", err)
			}
			cancel()
		}
	})
}

// comparisonDue tells whether this replica leads and the last comparison, or the beginning of the replica, is a period ago and something was written
// since.
func (m *member) comparisonDue(period time.Duration) bool {
	if !m.group.IsLeader() {
		return false
	}
	last, index := m.opened, dc.Index(0)
	if c := m.group.Compared(); c != nil {
		last, index = c.At, c.Through
		if len(c.Differ) > 0 {
			return time.Since(last) >= min(period, compareAgain)
		}
	}
	// Groups begin at different times, by their number.
	return time.Since(last) >= period+period*time.Duration(m.id%compareLook)/compareLook/8 && m.group.Status().Applied > index
}

// compareOn has the leader of a group compare, wherever it is.
func (n *Node) compareOn(ctx context.Context, g dc.GroupID) (*consensus.Compared, error) {
	m, ok := n.replicas.member(g)
	leader := dc.NodeID(0)
	switch rec, known := n.directory.group(g); {
	case ok:
		leader, _ = m.group.Leader()
	case known && len(rec.Nodes) > 0:
		leader = dc.NodeID(rec.Nodes[0])
	case !known:
		return nil, dc.Errorf(dc.NotFound, "compare", g.String(), "there is no such group")
	}
	var err error
	for range compareHops {
		var c *consensus.Compared
		switch {
		case leader == 0:
			return nil, errors.Join(err, dc.Errorf(dc.Unavailable, "compare", g.String(), "nobody leads the group now"))
		case leader == n.id.Node && ok:
			c, err = m.group.Compare(ctx)
		default:
			c, err = n.replicas.host.CompareOn(ctx, leader, g)
			err = rpc.FromStatus(err)
		}
		if err == nil {
			return c, nil
		}
		e, is := errors.AsType[*dc.Error](err)
		if !is || e.Kind != dc.NotLeader {
			return nil, err
		}
		leader = e.Leader
	}
	return nil, err
}

// CompareGroup compares the content of a group's replicas now.
func (a *adminServer) CompareGroup(ctx context.Context, req *dcpb.AdminCompareGroupRequest) (*dcpb.AdminCompareGroupReply, error) {
	c, err := a.n.compareOn(ctx, dc.GroupID(req.Group))
	if err != nil {
		return nil, err
	}
	out := &dcpb.AdminCompareGroupReply{Index: uint64(c.Index), Undecided: c.Undecided}
	for _, r := range c.Replicas {
		x := &dcpb.AdminComparedReplica{Node: uint64(r.Node), Rows: r.Rows, Bytes: r.Bytes, Sum: r.Sum}
		if r.Err != nil {
			x.Err = r.Err.Error()
		}
		for _, d := range c.Differ {
			x.Differs = x.Differs || d == r.Node
		}
		out.Replicas = append(out.Replicas, x)
	}
	return out, nil
}
