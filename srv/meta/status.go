package meta

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/storage"
	"missingos/storage/command"
)

// Status describes the cluster by desire and heartbeats.
func (s *Service) Status(ctx context.Context, req *dcpb.MetaStatusRequest) (*dcpb.MetaStatusReply, error) {
	t, _, err := s.admit("status", req.Header, false)
	if err != nil {
		return nil, err
	}
	rec, err := read(func(fn func(storage.Reader) error) error { return t.replica.View(ctx, fn) })
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	v := s.viewLocked(t, rec)
	reply := &dcpb.MetaStatusReply{Cluster: rec.cluster}
	held, leads := v.held(), map[dc.NodeID]int{}
	for i, g := range v.groups {
		leads[g.leader]++
		reply.Groups = append(reply.Groups, s.adminGroupLocked(t, v, held, g, rec.groups[i]))
	}
	for _, n := range rec.nodes {
		a := t.adminNodeLocked(n)
		a.Replicas, a.Leaders = uint32(held[dc.NodeID(n.Id)]), uint32(leads[dc.NodeID(n.Id)])
		a.Dead = v.node(dc.NodeID(n.Id)).dead && a.State != "removed"
		if a.Drain && a.State != "removed" {
			a.Waits = t.leftLocked(dc.NodeID(n.Id), v.groups)
		}
		reply.Nodes = append(reply.Nodes, a)
	}
	return reply, nil
}

func (t *term) adminNodeLocked(n *command.MetaNode) *dcpb.AdminNode {
	a := &dcpb.AdminNode{Id: n.Id, Name: n.Name, Address: n.Address, State: "down", Version: n.Version, Labels: n.Labels, Drain: n.Drain, Decommission: n.Decommission}
	if b := t.beats[dc.NodeID(n.Id)]; b != nil {
		a.FreeBytes, a.TotalBytes, a.SeenMs, a.Blocks = b.req.FreeBytes, b.req.TotalBytes, b.clock, b.req.Blocks
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

// leftLocked tells what is still on a node that is to be emptied: one text each. Nothing is left only when the node itself, or its death, says so.
func (t *term) leftLocked(n dc.NodeID, groups []viewGroup) []string {
	var left []string
	b := t.beats[n]
	heard := b != nil && time.Since(b.at) < downAfter
	for _, g := range groups {
		leader, r := t.leaderLocked(g.id)
		member := r != nil && slices.ContainsFunc(r.Members, func(m *dcpb.MetaMember) bool { return dc.NodeID(m.Node) == n })
		switch {
		case slices.Contains(g.desired, n):
			left = append(left, fmt.Sprintf("group %s is placed on it", g.name))
		case member:
			left = append(left, fmt.Sprintf("group %s is leaving it", g.name))
		case leader == 0:
			left = append(left, fmt.Sprintf("group %s has no leader that says whether it has left", g.name))
		case heard && b.replica(g.id) != nil:
			left = append(left, fmt.Sprintf("its replica of group %s is not destroyed yet", g.name))
		}
	}
	switch {
	case !heard:
		left = append(left, "the node is not heard of, so nobody knows what it stores; if it is dead, `dcctl node rm` removes it")
	case b.req.Blocks > 0:
		left = append(left, fmt.Sprintf("%d blocks of /dc/data are stored on it; they are moved to other nodes (see `dcctl data status`)", b.req.Blocks))
	}
	return left
}

func (s *Service) adminGroupLocked(t *term, v *view, held map[dc.NodeID]int, vg viewGroup, g *command.MetaGroup) *dcpb.AdminGroup {
	leader, r := t.leaderLocked(vg.id)
	a := &dcpb.AdminGroup{
		Id: g.Id, Name: g.Name, Kind: g.Kind, Leader: uint64(leader), Want: uint32(v.want(vg)), Pinned: g.Pinned, Prefer: g.Prefer, Reasons: v.reasons(vg, held),
	}
	var members []*dcpb.MetaMember
	if r != nil {
		a.Term, a.Commit, a.ComparedMs, members = r.Term, r.Commit, r.ComparedMs, r.Members
	}
	var changes []string
	seen := map[uint64]bool{}
	add := func(n uint64, role string) {
		seen[n] = true
		rep := &dcpb.AdminReplica{Node: n, Role: role, Health: t.healthLocked(vg.id, dc.NodeID(n), r)}
		if b := t.beats[dc.NodeID(n)]; b != nil {
			if own := b.replica(vg.id); own != nil {
				rep.Applied, rep.Lag = own.Applied, a.Commit-min(a.Commit, own.Applied)
				rep.Receiving = own.Receiving
			}
		}
		a.Replicas = append(a.Replicas, rep)
		name := v.name(dc.NodeID(n))
		switch role {
		case "leaving":
			changes = append(changes, name+" leaves")
		case "non-voter":
			changes = append(changes, fmt.Sprintf("%s catches up (%d entries to go)", name, rep.Lag))
		case "wanted":
			changes = append(changes, name+" is to join")
		}
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
	slices.SortStableFunc(a.Replicas, func(x, y *dcpb.AdminReplica) int { return cmp.Compare(x.Node, y.Node) })
	if leader != 0 {
		a.Change = strings.Join(changes, ", ")
	}
	return a
}
