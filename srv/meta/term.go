package meta

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/replica"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/meta"
)

const (
	controlEvery   = 500 * time.Millisecond
	proposeTimeout = 5 * time.Second
	// settleAfterMove is how long the controller waits for one leadership to move before it asks for the next.
	settleAfterMove = 3 * time.Second
	// behindEntries is how far a replica may be behind its leader's commit index and still count as healthy.
	behindEntries = 5000
)

// A term is this node's time as leader of the meta group.
type term struct {
	replica replica.Replica
	started time.Time
	woken   chan struct{} // holds one token when the controller should look at once

	mu         sync.Mutex
	beats      map[dc.NodeID]*beat
	moves      map[dc.NodeID][]*dcpb.MetaMove // to answer the next heartbeat with
	moved      time.Time
	mapVersion uint64
	removed    map[dc.NodeID]bool
	groups     map[dc.GroupID]viewGroup
}

// A beat is the last heartbeat of a node.
type beat struct {
	at    time.Time
	clock int64
	req   *dcpb.MetaHeartbeatRequest
}

func (t *term) wake() {
	select {
	case t.woken <- struct{}{}:
	default:
	}
}

// lead runs one term.
func (s *Service) lead(ctx context.Context, r replica.Replica) {
	t := &term{
		replica: r, started: time.Now(), woken: make(chan struct{}, 1),
		beats: map[dc.NodeID]*beat{}, moves: map[dc.NodeID][]*dcpb.MetaMove{}, removed: map[dc.NodeID]bool{}, groups: map[dc.GroupID]viewGroup{},
	}
	s.mu.Lock()
	s.term = t
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.term == t {
			s.term = nil
		}
	}()
	tick := time.NewTicker(controlEvery)
	defer tick.Stop()
	for {
		if err := s.control(ctx, t); err != nil && ctx.Err() == nil && !errors.Is(err, dc.NotLeader) {
			s.cfg.Log.Warn("placement is not done", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-t.woken:
		}
	}
}

// control looks once at the cluster and edits desire.
func (s *Service) control(ctx context.Context, t *term) error {
	v, err := s.look(t)
	if err != nil {
		return err
	}
	for _, p := range v.place() {
		t.mu.Lock()
		delete(t.groups, p.group) // what heartbeats are answered by until the next look
		t.mu.Unlock()
		nodes := make([]uint64, len(p.nodes))
		for i, n := range p.nodes {
			nodes[i] = uint64(n)
		}
		propose, cancel := context.WithTimeout(ctx, proposeTimeout)
		_, err := t.do(propose, t.replica.NewID(), &command.MetaCommand{
			Op: &command.MetaCommand_Place{Place: &command.MetaPlace{Group: uint64(p.group), IfVersion: p.ifVersion, Nodes: nodes}},
		})
		cancel()
		if err != nil {
			return err
		}
		s.cfg.Log.Info("group placed", "group", p.group, "nodes", nodes)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Since(t.moved) < settleAfterMove {
		return nil
	}
	if m, ok := v.spread(); ok {
		t.moved = time.Now()
		t.moves[m.from] = []*dcpb.MetaMove{{Group: uint64(m.group), To: uint64(m.to)}}
		s.cfg.Log.Info("leadership to be handed over", "group", m.group, "node", m.from, "to", m.to)
	}
	return nil
}

// look gathers what the controller decides by.
func (s *Service) look(t *term) (*view, error) {
	v := &view{}
	var nodes []*command.MetaNode
	var groups []*command.MetaGroup
	version := uint64(0)
	err := t.replica.Local(func(r storage.Reader) error {
		for n := range meta.Nodes(r) {
			nodes = append(nodes, n)
			version = max(version, n.Record)
		}
		for g := range meta.Groups(r) {
			groups = append(groups, g)
			version = max(version, g.Version)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mapVersion = version
	for _, n := range nodes {
		id := dc.NodeID(n.Id)
		silent := t.silentLocked(id)
		t.removed[id] = n.State == command.MetaNode_STATE_REMOVED
		v.nodes = append(v.nodes, viewNode{
			id: id, removed: t.removed[id], drain: n.Drain, up: t.beats[id] != nil && silent < downAfter, dead: silent > s.cfg.DeadAfter,
		})
	}
	for _, g := range groups {
		vg := viewGroup{id: dc.GroupID(g.Id), version: g.Version, want: int(g.Want)}
		for _, n := range g.Nodes {
			vg.desired = append(vg.desired, dc.NodeID(n))
		}
		vg.leader, vg.settled = t.settledLocked(vg)
		t.groups[vg.id] = vg
		v.groups = append(v.groups, vg)
	}
	return v, nil
}

// silentLocked is how long ago node n was heard of, counted from the start of the term if never.
func (t *term) silentLocked(n dc.NodeID) time.Duration {
	if b := t.beats[n]; b != nil {
		return time.Since(b.at)
	}
	return time.Since(t.started)
}

// leaderLocked finds the replica that leads g by the freshest reports: the one of the highest term that says so itself.
func (t *term) leaderLocked(g dc.GroupID) (dc.NodeID, *dcpb.MetaReplicaState) {
	var leader dc.NodeID
	var best *dcpb.MetaReplicaState
	for n, b := range t.beats {
		if time.Since(b.at) > downAfter {
			continue
		}
		r := b.replica(g)
		if r != nil && dc.NodeID(r.Leader) == n && (best == nil || r.Term > best.Term) {
			leader, best = n, r
		}
	}
	return leader, best
}

func (b *beat) replica(g dc.GroupID) *dcpb.MetaReplicaState {
	for _, r := range b.req.Replicas {
		if r.Group == uint64(g) {
			return r
		}
	}
	return nil
}

// settledLocked tells who leads a group and whether its members are those desired, all voting, up and about level with the leader.
func (t *term) settledLocked(g viewGroup) (dc.NodeID, bool) {
	leader, r := t.leaderLocked(g.id)
	if leader == 0 || len(r.Members) != len(g.desired) {
		return leader, false
	}
	for _, m := range r.Members {
		id := dc.NodeID(m.Node)
		if !m.Voter || !slices.Contains(g.desired, id) || t.healthLocked(g.id, id, r) != "ok" {
			return leader, false
		}
	}
	return leader, true
}

// healthLocked describes one replica beside its leader's report.
func (t *term) healthLocked(g dc.GroupID, n dc.NodeID, leader *dcpb.MetaReplicaState) string {
	b := t.beats[n]
	if b == nil || time.Since(b.at) > downAfter {
		return "down"
	}
	r := b.replica(g)
	switch {
	case r == nil || leader == nil:
		return "unknown"
	case r.Applied+behindEntries < leader.Commit:
		return "behind"
	}
	return "ok"
}

// Heartbeat notes that a node lives.
func (s *Service) Heartbeat(_ context.Context, req *dcpb.MetaHeartbeatRequest) (*dcpb.MetaHeartbeatReply, error) {
	t, p, err := s.admit("heartbeat", req.Header, true)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	first := t.beats[p.Node] == nil
	t.beats[p.Node] = &beat{at: time.Now(), clock: t.replica.Clock(), req: req}
	reply := &dcpb.MetaHeartbeatReply{MapVersion: t.mapVersion, Removed: t.removed[p.Node], Moves: t.moves[p.Node]}
	delete(t.moves, p.Node)
	for _, r := range req.Replicas {
		if g := dc.GroupID(r.Group); t.superfluousLocked(g, p.Node) {
			reply.Drop = append(reply.Drop, r.Group)
		}
	}
	for n, b := range t.beats {
		if b.req.Full && !t.removed[n] && time.Since(b.at) < downAfter {
			reply.FullNodes = append(reply.FullNodes, uint64(n))
		}
	}
	if first {
		t.wake()
	}
	return reply, nil
}

// superfluousLocked tells whether node n's replica of g is neither desired nor a member any more: the group's leader says so itself. What one
// replica holds may then be destroyed, for every acknowledged command is on a majority of others.
func (t *term) superfluousLocked(g dc.GroupID, n dc.NodeID) bool {
	want, ok := t.groups[g]
	if !ok || slices.Contains(want.desired, n) {
		return false
	}
	leader, r := t.leaderLocked(g)
	if leader == 0 || leader == n {
		return false
	}
	return !slices.ContainsFunc(r.Members, func(m *dcpb.MetaMember) bool { return dc.NodeID(m.Node) == n })
}

// Status describes the cluster by desire and heartbeats.
func (s *Service) Status(ctx context.Context, req *dcpb.MetaStatusRequest) (*dcpb.MetaStatusReply, error) {
	t, _, err := s.admit("status", req.Header, false)
	if err != nil {
		return nil, err
	}
	reply := &dcpb.MetaStatusReply{}
	var groups []*command.MetaGroup
	var nodes []*command.MetaNode
	err = t.replica.View(ctx, func(r storage.Reader) error {
		groups, nodes = nil, nil
		if c, ok := meta.Cluster(r); ok {
			reply.Cluster = c.Cluster
		}
		for n := range meta.Nodes(r) {
			nodes = append(nodes, n)
		}
		for g := range meta.Groups(r) {
			groups = append(groups, g)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range nodes {
		reply.Nodes = append(reply.Nodes, t.adminNodeLocked(n))
	}
	for _, g := range groups {
		reply.Groups = append(reply.Groups, t.adminGroupLocked(g))
	}
	return reply, nil
}

func (t *term) adminNodeLocked(n *command.MetaNode) *dcpb.AdminNode {
	a := &dcpb.AdminNode{Id: n.Id, Name: n.Name, Address: n.Address, State: "down", Version: n.Version, Labels: n.Labels}
	if b := t.beats[dc.NodeID(n.Id)]; b != nil {
		a.FreeBytes, a.TotalBytes, a.SeenMs = b.req.FreeBytes, b.req.TotalBytes, b.clock
		if time.Since(b.at) < downAfter {
			a.State = "up"
		}
	}
	switch {
	case n.State == command.MetaNode_STATE_REMOVED:
		a.State = "removed"
	case n.Drain && a.State == "up":
		a.State = "draining"
	}
	return a
}

func (t *term) adminGroupLocked(g *command.MetaGroup) *dcpb.AdminGroup {
	id := dc.GroupID(g.Id)
	leader, r := t.leaderLocked(id)
	a := &dcpb.AdminGroup{Id: g.Id, Name: g.Name, Leader: uint64(leader)}
	var members []*dcpb.MetaMember
	if r != nil {
		a.Term, a.Commit, members = r.Term, r.Commit, r.Members
	}
	seen := map[uint64]bool{}
	add := func(n uint64, role string) {
		seen[n] = true
		rep := &dcpb.AdminReplica{Node: n, Role: role, Health: t.healthLocked(id, dc.NodeID(n), r)}
		if b := t.beats[dc.NodeID(n)]; b != nil {
			if own := b.replica(id); own != nil {
				rep.Applied = own.Applied
			}
		}
		a.Replicas = append(a.Replicas, rep)
	}
	for _, m := range members {
		switch {
		case !slices.Contains(g.Nodes, m.Node):
			add(m.Node, "leaving")
		case m.Voter:
			add(m.Node, "voter")
		default:
			add(m.Node, "non-voter")
		}
	}
	for _, n := range g.Nodes {
		if !seen[n] {
			add(n, "wanted")
		}
	}
	return a
}
