package consensus

import (
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// Heartbeats that are no news are answered without Raft, which still hears often enough to stay a follower; those that are news go to it.
func TestHeartbeatsThatAreNoNews(t *testing.T) {
	c := newCluster(t, 3, fast)
	id, lead := c.leader()
	term := lead.group.raft.CurrentTerm()
	var follower *Group
	for n, m := range c.nodes {
		if n != id {
			follower = m.group
		}
	}
	eventually(t, func() bool { return follower.heard.Load() > 0 })
	other := id%3 + 1
	if _, ok := (replica{follower}).Heard(other, term); ok {
		t.Error("a heartbeat of another leader was no news")
	}
	if _, ok := (replica{follower}).Heard(id, term+1); ok {
		t.Error("a heartbeat of another term was no news")
	}
	if _, ok := (replica{lead.group}).Heard(id, term); ok {
		t.Error("a leader took a heartbeat")
	}
	began := time.Now()
	for heard := follower.heard.Load(); time.Since(began) < 4*fast.Heartbeat; heard = follower.heard.Load() {
		eventually(t, func() bool { return follower.heard.Load() > heard })
	}
	if follower.raft.State() != raft.Follower || follower.raft.CurrentTerm() != term {
		t.Errorf("the follower is %v in term %d, was in %d", follower.raft.State(), follower.raft.CurrentTerm(), term)
	}
	if s := follower.Status(); time.Since(s.LastSpoken) > fast.Heartbeat {
		t.Errorf("the follower has not heard of its leader since %v", s.LastSpoken)
	}
}
