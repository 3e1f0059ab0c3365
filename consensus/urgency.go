package consensus

import (
	"time"

	"github.com/hashicorp/raft"
)

// Raft ties two things together: a leader sends heartbeats ten times as often as its followers' patience lasts. Quick failover so costs every idle
// group a heartbeat each 100 ms. Here they are apart: groups run with the long timeout Timing.Heartbeat, and the host's watch looks for
// followers whose leader has said nothing for Timing.Election. Those get the short timeout, at which Raft stands for election at once, and
// keep it until they have a leader that speaks.

// lookForSilence chooses between the two timeouts. It is called by the host's watch only.
func (g *Group) lookForSilence() {
	t := g.host.cfg.Timing
	urgent := g.raft.State() != raft.Leader
	if leader, _ := g.Leader(); leader != 0 && time.Since(g.raft.LastContact()) <= t.Election {
		urgent = false
	}
	if urgent == g.urgent {
		return
	}
	c := g.raft.ReloadableConfig()
	c.HeartbeatTimeout, c.ElectionTimeout = t.Heartbeat, t.Heartbeat // Raft wants the second no shorter than the first
	if urgent {
		c.HeartbeatTimeout, c.ElectionTimeout = t.Election, t.Election
	}
	if err := g.raft.ReloadConfig(c); err != nil {
		g.log.Error("timeouts are as they were", "err", err)
		return
	}
	g.urgent = urgent
}
