package meta

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
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
	// settleAfterMove is how long the controller leaves a group's leadership alone after it has asked for it to be handed over.
	settleAfterMove = 3 * time.Second
	// behindEntries is how far a replica may be behind its leader's commit index and still count as healthy.
	behindEntries = 5000
)

// A handOver is a leadership that was asked to go to another node.
type handOver struct {
	at time.Time
	to dc.NodeID
}

// A term is this node's time as leader of the meta group.
type term struct {
	replica replica.Replica
	isMade  atomic.Bool // see made
	started time.Time
	woken   chan struct{} // holds one token when the controller should look at once

	mu         sync.Mutex
	beats      map[dc.NodeID]*beat
	moves      map[dc.NodeID][]*dcpb.MetaMove // to answer the next heartbeat with
	moved      map[dc.GroupID]handOver        // when a leadership was last handed over, and to whom; forgotten after settleAfterMove
	mapVersion uint64
	removed    map[dc.NodeID]bool
	groups     map[dc.GroupID]viewGroup
}

// A beat is the last heartbeat of a node.
type beat struct {
	at       time.Time
	clock    int64
	req      *dcpb.MetaHeartbeatRequest
	replicas map[dc.GroupID]*dcpb.MetaReplicaState
}

func newBeat(clock int64, req *dcpb.MetaHeartbeatRequest) *beat {
	b := &beat{at: time.Now(), clock: clock, req: req, replicas: make(map[dc.GroupID]*dcpb.MetaReplicaState, len(req.Replicas))}
	for _, r := range req.Replicas {
		b.replicas[dc.GroupID(r.Group)] = r
	}
	return b
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
		beats: map[dc.NodeID]*beat{}, moves: map[dc.NodeID][]*dcpb.MetaMove{}, moved: map[dc.GroupID]handOver{}, removed: map[dc.NodeID]bool{}, groups: map[dc.GroupID]viewGroup{},
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
		if err := s.change(ctx, t, p); err != nil {
			return err
		}
	}
	if err := s.dismiss(ctx, t, v); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range v.spread() {
		t.moved[m.group] = handOver{time.Now(), m.to}
		asked := slices.DeleteFunc(t.moves[m.from], func(old *dcpb.MetaMove) bool { return old.Group == uint64(m.group) })
		t.moves[m.from] = append(asked, &dcpb.MetaMove{Group: uint64(m.group), To: uint64(m.to)})
		s.cfg.Log.Info("leadership to be handed over", "group", m.group, "node", m.from, "to", m.to)
	}
	return nil
}

// change replicates one placement.
func (s *Service) change(ctx context.Context, t *term, p placement) error {
	t.mu.Lock()
	delete(t.groups, p.group) // what heartbeats are answered by until the next look
	t.mu.Unlock()
	nodes := make([]uint64, len(p.nodes))
	for i, n := range p.nodes {
		nodes[i] = uint64(n)
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	_, err := t.do(ctx, t.replica.NewID(), &command.MetaCommand{
		Op: &command.MetaCommand_Place{Place: &command.MetaPlace{Group: uint64(p.group), IfVersion: p.ifVersion, Nodes: nodes}},
	})
	if err == nil {
		s.cfg.Log.Info("group placed", "group", p.group, "nodes", nodes)
	}
	return err
}

// dismiss removes the nodes that are to be decommissioned and hold nothing any more.
func (s *Service) dismiss(ctx context.Context, t *term, v *view) error {
	for _, n := range v.nodes {
		if !n.decommission || n.removed {
			continue
		}
		t.mu.Lock()
		left := t.leftLocked(n.id, v.groups)
		t.mu.Unlock()
		if len(left) > 0 {
			continue
		}
		attempt, cancel := context.WithTimeout(ctx, proposeTimeout)
		_, err := t.do(attempt, t.replica.NewID(), &command.MetaCommand{
			Op: &command.MetaCommand_RemoveNode{RemoveNode: &command.MetaRemoveNode{Node: uint64(n.id), IfEmpty: true}},
		})
		cancel()
		if err != nil {
			return err
		}
		s.cfg.Log.Info("node decommissioned", "node", n.id)
	}
	return nil
}

// records are the stored facts of the cluster.
type records struct {
	cluster string
	version uint64
	nodes   []*command.MetaNode
	groups  []*command.MetaGroup
}

// read reads the records with one of a replica's ways to read.
func read(view func(func(storage.Reader) error) error) (*records, error) {
	var rec *records
	err := view(func(r storage.Reader) error {
		rec = &records{}
		if c, ok := meta.Cluster(r); ok {
			rec.cluster = c.Cluster
		}
		for n := range meta.Nodes(r) {
			rec.nodes = append(rec.nodes, n)
			rec.version = max(rec.version, n.Record)
		}
		for g := range meta.Groups(r) {
			rec.groups = append(rec.groups, g)
			rec.version = max(rec.version, g.Version)
		}
		return nil
	})
	return rec, err
}

// look gathers what the controller decides by, and notes what heartbeats are answered by.
func (s *Service) look(t *term) (*view, error) {
	rec, err := read(t.replica.Local)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	v := s.viewLocked(t, rec)
	t.mapVersion = rec.version
	for _, n := range v.nodes {
		t.removed[n.id] = n.removed
	}
	for _, g := range v.groups {
		t.groups[g.id] = g
	}
	return v, nil
}

// viewLocked puts records and heartbeats together.
func (s *Service) viewLocked(t *term, rec *records) *view {
	v := &view{}
	for _, n := range rec.nodes {
		id := dc.NodeID(n.Id)
		silent, b := t.silentLocked(id), t.beats[id]
		v.nodes = append(v.nodes, viewNode{
			id: id, name: n.Name, removed: n.State == command.MetaNode_STATE_REMOVED, drain: n.Drain, decommission: n.Decommission,
			up: b != nil && silent < downAfter, dead: silent > s.cfg.DeadAfter, full: b != nil && b.req.Full,
			zone: n.Labels[zoneLabel], rack: n.Labels[rackLabel],
		})
	}
	for _, g := range rec.groups {
		vg := viewGroup{id: dc.GroupID(g.Id), name: g.Name, version: g.Version, want: int(g.Want), pinned: g.Pinned, prefer: dc.NodeID(g.Prefer)}
		for _, n := range g.Nodes {
			vg.desired = append(vg.desired, dc.NodeID(n))
		}
		t.factsLocked(v, &vg)
		v.groups = append(v.groups, vg)
	}
	return v
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

func (b *beat) replica(g dc.GroupID) *dcpb.MetaReplicaState { return b.replicas[g] }

// factsLocked fills in what the heartbeats tell of a group: who leads it, whether its members are those desired, all voting, up and about level with
// the leader, and whether they are on the way to that.
func (t *term) factsLocked(v *view, g *viewGroup) {
	if m, ok := t.moved[g.id]; ok {
		if g.resting = time.Since(m.at) < settleAfterMove; g.resting {
			g.heir = m.to
		} else {
			delete(t.moved, g.id)
		}
	}
	leader, r := t.leaderLocked(g.id)
	if g.leader = leader; leader == 0 {
		return
	}
	voters, level := 0, true
	for _, m := range r.Members {
		id := dc.NodeID(m.Node)
		if m.Voter && slices.Contains(g.desired, id) {
			voters++
		}
		level = level && t.healthLocked(g.id, id, r) == "ok"
	}
	same := voters == len(g.desired) && voters == len(r.Members)
	g.settled, g.changing = same && level, !same
	for _, id := range g.desired {
		votes := slices.ContainsFunc(r.Members, func(m *dcpb.MetaMember) bool { return m.Voter && dc.NodeID(m.Node) == id })
		g.changing = g.changing && (votes || v.node(id).up)
	}
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
	case r.Rebuilding:
		return "rebuilding"
	case slices.Contains(leader.Differ, uint64(n)):
		return "differs"
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
	t.beats[p.Node] = newBeat(t.replica.Clock(), req)
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
	for n, removed := range t.removed {
		if !removed && t.silentLocked(n) >= downAfter {
			reply.DownNodes = append(reply.DownNodes, uint64(n))
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
