package consensus

import (
	"time"

	"github.com/hashicorp/raft"
)

// Raft ties two things together: a leader sends heartbeats ten times as often as its followers' patience lasts. Quick failover so costs every idle
// group a heartbeat each 100 ms. Here they are apart: groups run with the long timeout Timing.Heartbeat, and the host's watch looks for
// followers whose leader has said nothing for Timing.Election. Those get the short timeout, at which Raft stands for election at once, and
// keep it until they have a leader that speaks.

// A tuning is what Raft's settings depend on.
type tuning struct {
	urgent bool // there is no leader that speaks
	held   bool // a state is held for a replica that pulls it: the log should reach back to it
}

// tune chooses Raft's settings, and lets held states go whose time is over. It is called by the host's watch only.
func (g *Group) tune() {
	t := g.host.cfg.Timing
	now := tuning{urgent: g.raft.State() != raft.Leader, held: g.holds.sweep(time.Now())}
	if now.held && g.host.cfg.Space() != nil {
		now.held = false // the log must not fill the disk
	}
	if leader, _ := g.Leader(); leader != 0 && time.Since(g.lastHeard()) <= t.Election {
		now.urgent = false
	}
	if now == g.tuned {
		return
	}
	c := g.raft.ReloadableConfig()
	c.HeartbeatTimeout, c.ElectionTimeout = t.Heartbeat, t.Heartbeat // Raft wants the second no shorter than the first
	if now.urgent {
		c.HeartbeatTimeout, c.ElectionTimeout = t.Election, t.Election
	}
	c.SnapshotThreshold = t.SnapshotEntries
	if now.held {
		c.SnapshotThreshold *= heldSnapshotFactor
	}
	if err := g.raft.ReloadConfig(c); err != nil {
		g.log.Error("timeouts are as they were", "err", err)
		return
	}
	g.tuned = now
	g.patient.Store(!now.urgent)
}

// steady tells cheaply that tune would leave everything as it is, but for held states.
func (g *Group) steady(sinceBegin int64) bool {
	if g.tuned.urgent {
		return false
	}
	return g.raft.State() == raft.Leader || sinceBegin-g.heard.Load() <= int64(g.host.cfg.Timing.Election)
}

// lastHeard is when this follower last heard of its leader.
func (g *Group) lastHeard() time.Time {
	raft, other := g.raft.LastContact(), g.host.began.Add(time.Duration(g.heard.Load()))
	if other.After(raft) {
		return other
	}
	return raft
}
