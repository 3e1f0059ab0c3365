package node

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"missingos/consensus"
	"missingos/srv/client"
	"missingos/srv/dc"
)

const (
	reconcileEvery = 500 * time.Millisecond
	changeTimeout  = 10 * time.Second
	// mapFreshness is how lately meta's leader must have confirmed the map that a group's leader changes its membership by.
	mapFreshness = 5 * time.Second
	// promoteLag is how far, in entries, a non-voter may be behind and still become a voter.
	promoteLag = 1000
)

// membership is the care of a leader for its group's members.
type membership struct {
	self      dc.NodeID
	directory *directory
	meta      *client.Meta
	log       *slog.Logger
}

// lead brings m's members towards the map as long as it leads.
func (c *membership) lead(ctx context.Context, m *member) {
	tick := time.NewTicker(reconcileEvery)
	defer tick.Stop()
	for {
		changes := c.directory.changes()
		if err := c.step(ctx, m); err != nil && ctx.Err() == nil && !errors.Is(err, dc.NotLeader) {
			c.log.Debug("membership step", "group", m.id.String(), "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-changes:
		}
	}
}

// step makes the one next change, if one is due. Everything it decides by is read anew, so nothing is remembered between steps.
func (c *membership) step(ctx context.Context, m *member) error {
	rec, ok := c.directory.group(m.id)
	if !ok || !c.directory.fresh(mapFreshness) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	if rec.Bootstrap != 0 {
		if err := c.meta.GroupStarted(ctx, m.id); err != nil {
			return err
		}
	}
	st := m.group.Status()
	next := plan(st, desiredNodes(rec), c.self)
	switch next.action {
	case addNonVoter:
		c.log.Info("adding replica", "group", m.id.String(), "node", next.node.String())
		return m.group.AddNonVoter(ctx, next.node, st.ConfIndex)
	case promote:
		return c.promote(ctx, m, st, next.candidates)
	case removeMember:
		if !c.safeWithout(ctx, m, st, next.node) {
			return nil
		}
		c.log.Info("removing replica", "group", m.id.String(), "node", next.node.String())
		return m.group.Remove(ctx, next.node, st.ConfIndex)
	case handOver:
		c.log.Info("handing over leadership", "group", m.id.String())
		for _, n := range next.candidates {
			if err := m.group.TransferTo(ctx, n); err == nil {
				return nil
			}
		}
	}
	return nil
}

// promote makes the first candidate a voter that has applied everything up to its own admission and is about level.
func (c *membership) promote(ctx context.Context, m *member, st consensus.Status, candidates []dc.NodeID) error {
	var errs []error
	for _, n := range candidates {
		lag, err := m.group.Lag(ctx, n)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if lag > promoteLag || uint64(st.Commit) < st.ConfIndex+lag {
			continue
		}
		c.log.Info("promoting replica", "group", m.id.String(), "node", n.String(), "lag", lag)
		return m.group.Promote(ctx, n, st.ConfIndex)
	}
	return errors.Join(errs...)
}

// safeWithout tells whether the voters that stay have a majority that is about level with this leader.
func (c *membership) safeWithout(ctx context.Context, m *member, st consensus.Status, leaving dc.NodeID) bool {
	stay, level := 0, 0
	for _, v := range st.Members {
		if !v.Voter || v.Node == leaving {
			continue
		}
		stay++
		if v.Node == c.self {
			level++
			continue
		}
		if lag, err := m.group.Lag(ctx, v.Node); err == nil && lag <= promoteLag {
			level++
		}
	}
	return level >= stay/2+1
}

// What a leader does next.
type action int

const (
	nothing action = iota
	addNonVoter
	promote
	removeMember
	handOver
)

type change struct {
	action     action
	node       dc.NodeID
	candidates []dc.NodeID
}

// plan compares a group's members with those desired. First everything desired is added and promoted, then what is not desired goes: non-voters at
// once, voters only when all that are desired vote, and this leader only after it has handed over.
func plan(st consensus.Status, desired []dc.NodeID, self dc.NodeID) change {
	voter := map[dc.NodeID]bool{}
	var surplus, waiting []dc.NodeID
	for _, m := range st.Members {
		voter[m.Node] = m.Voter
		switch wanted := slices.Contains(desired, m.Node); {
		case !wanted && !m.Voter:
			return change{action: removeMember, node: m.Node}
		case !wanted:
			surplus = append(surplus, m.Node)
		case !m.Voter:
			waiting = append(waiting, m.Node)
		}
	}
	for _, n := range desired {
		if _, member := voter[n]; !member {
			return change{action: addNonVoter, node: n}
		}
	}
	if len(waiting) > 0 {
		return change{action: promote, candidates: waiting}
	}
	if len(surplus) == 0 || len(desired) == 0 {
		return change{}
	}
	for _, n := range surplus {
		if n != self {
			return change{action: removeMember, node: n}
		}
	}
	return change{action: handOver, candidates: desired}
}
