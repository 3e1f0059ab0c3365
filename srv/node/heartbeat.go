package node

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

const (
	heartbeatEvery   = time.Second
	firstHeartbeats  = 100 * time.Millisecond // until the map is confirmed
	heartbeatTimeout = 3 * time.Second
	registerTimeout  = 10 * time.Second
)

// beats tells meta's leader once a second that this node lives, until ctx ends. It returns an error only if the node has been removed.
func (n *Node) beats(ctx context.Context) error {
	var moving sync.WaitGroup
	defer moving.Wait()
	for {
		reply, err := n.beat(ctx)
		switch {
		case errors.Is(err, dc.Stale), err == nil && reply.Removed:
			return dc.Errorf(dc.Stale, "run", n.id.Node.String(), "this node has been removed from the cluster; its directory %s is of no more use", n.cfg.Dir)
		case err != nil:
			n.log.Debug("heartbeat", "err", err)
		default:
			n.directory.confirm(reply.MapVersion)
			n.space.hear(slices.DeleteFunc(reply.FullNodes, func(id uint64) bool { return id == uint64(n.id.Node) })) // of itself it knows better
			n.directory.hearDown(reply.DownNodes)
			for _, move := range reply.Moves {
				moving.Go(func() { n.handOver(ctx, dc.GroupID(move.Group), dc.NodeID(move.To)) })
			}
			n.dropReplicas(ctx, reply.Drop)
		}
		pause := heartbeatEvery
		if !n.directory.fresh(mapFreshness) {
			pause = firstHeartbeats
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

func (n *Node) beat(ctx context.Context) (*dcpb.MetaHeartbeatReply, error) {
	ctx, cancel := context.WithTimeout(ctx, heartbeatTimeout)
	defer cancel()
	req := &dcpb.MetaHeartbeatRequest{Cpus: uint32(runtime.NumCPU())}
	req.FreeBytes, req.TotalBytes = n.space.sizes()
	req.Full = n.space.full.Load()
	req.Blocks = uint64(n.blocks.Stats().Blocks)
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		unit := uint64(info.Unit)
		req.MemoryBytes, req.MemoryFreeBytes = uint64(info.Totalram)*unit, uint64(info.Freeram+info.Bufferram)*unit
		req.Load = float64(info.Loads[0]) / (1 << 16)
	}
	for _, m := range n.replicas.all() {
		req.Replicas = append(req.Replicas, m.state())
	}
	return n.meta.Heartbeat(ctx, req)
}

// state describes a replica for meta's leader.
func (m *member) state() *dcpb.MetaReplicaState {
	st := m.group.Status()
	s := &dcpb.MetaReplicaState{
		Group: uint64(m.id), Leader: uint64(st.Leader), Term: uint64(st.Term), Commit: uint64(st.Commit), Applied: uint64(st.Applied),
	}
	if r, ok := m.shard.Receiving(); ok {
		s.Receiving = &dcpb.Receiving{From: uint64(st.PullingFrom), Index: uint64(r.Index), Bytes: r.Bytes, Size: r.Size, Whole: r.Whole}
	}
	s.Rebuilding = m.group.Rebuilding() != ""
	if st.Leading {
		for _, member := range st.Members {
			s.Members = append(s.Members, &dcpb.MetaMember{Node: uint64(member.Node), Voter: member.Voter})
		}
		if c := m.group.Compared(); c != nil {
			s.ComparedMs = c.At.UnixMilli()
			for _, n := range c.Differ {
				s.Differ = append(s.Differ, uint64(n))
			}
		}
	}
	return s
}

// handOver moves a leadership as meta's leader asked.
func (n *Node) handOver(ctx context.Context, g dc.GroupID, to dc.NodeID) {
	m, ok := n.replicas.member(g)
	if !ok || !m.group.IsLeader() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	if err := m.group.TransferTo(ctx, to); err != nil {
		n.log.Info("leadership not handed over", "group", g.String(), "to", to.String(), "err", err)
	}
}

// dropReplicas destroys replicas that meta's leader has seen to be superfluous, if the map here does not want them either.
func (n *Node) dropReplicas(ctx context.Context, groups []uint64) {
	for _, id := range groups {
		g := dc.GroupID(id)
		rec, ok := n.directory.group(g)
		if !ok || slices.Contains(rec.Nodes, uint64(n.id.Node)) {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, changeTimeout)
		if err := n.replicas.destroy(ctx, g); err != nil {
			n.log.Warn("replica is not destroyed", "group", g.String(), "err", err)
		}
		cancel()
	}
}

// register tells the cluster where this node listens now and which labels it was started with, until it has been heard or ctx ends.
func (n *Node) register(ctx context.Context) {
	for ctx.Err() == nil {
		attempt, cancel := context.WithTimeout(ctx, registerTimeout)
		err := n.meta.Register(attempt, n.address, Version, n.cfg.Labels)
		cancel()
		if err == nil {
			n.log.Info("registered", "address", n.address)
			return
		}
		if errors.Is(err, dc.Unsupported) {
			n.cfg.Fatal(err)
			return
		}
		n.log.Debug("register", "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(heartbeatEvery):
		}
	}
}

// host opens the replicas that the map wants here, at every change of it, until ctx ends. A group is made of nothing only by a map that meta's leader has just
// confirmed: by an old one, this node could make a second group of one that has long lived elsewhere.
func (n *Node) host(ctx context.Context) {
	for {
		changes := n.directory.changes()
		again := time.Duration(0)
		for _, rec := range n.directory.wanted() {
			founder := rec.Bootstrap == uint64(n.id.Node)
			if _, open := n.replicas.member(dc.GroupID(rec.Id)); founder && !open && !n.directory.fresh(mapFreshness) {
				again = firstHeartbeats
				continue
			}
			if err := n.replicas.ensure(rec, founder); err != nil && !errors.Is(err, dc.Unsupported) {
				n.log.Error("replica is not opened", "group", dc.GroupID(rec.Id).String(), "err", err)
				again = heartbeatEvery
			}
		}
		n.conns.prune(n.directory.removed)
		var retry <-chan time.Time
		if again > 0 {
			retry = time.After(again)
		}
		select {
		case <-ctx.Done():
			return
		case <-changes:
		case <-retry:
		}
	}
}
