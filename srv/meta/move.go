package meta

import (
	"context"
	"slices"

	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/rpc"
	"missingos/storage"
	"missingos/storage/command"
)

// MoveGroup moves one replica of a group by a person's word, says who should lead it, or gives it back to the controller. It changes desire only: the
// group's leader carries it out, and whoever leads meta sees to the leadership.
func (s *Service) MoveGroup(ctx context.Context, req *dcpb.MetaMoveGroupRequest) (*dcpb.MetaMoveGroupReply, error) {
	t, _, err := s.admit("move group", req.Header, true)
	if err != nil {
		return nil, err
	}
	rec, err := read(func(fn func(storage.Reader) error) error { return t.replica.View(ctx, fn) })
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	v := s.viewLocked(t, rec)
	t.mu.Unlock()
	op, err := v.moveGroup(req)
	if err != nil {
		return nil, err
	}
	if _, err := t.do(ctx, rpc.RequestID(req.Header), &command.MetaCommand{Op: &command.MetaCommand_Place{Place: op}}); err != nil {
		return nil, err
	}
	s.cfg.Log.Info("group placed by request", "group", dc.GroupID(op.Group), "nodes", op.Nodes, "prefer", op.Prefer)
	t.wake()
	return &dcpb.MetaMoveGroupReply{}, nil
}

// moveGroup turns a request into a placement, or says why not.
func (v *view) moveGroup(req *dcpb.MetaMoveGroupRequest) (*command.MetaPlace, error) {
	g, ok := v.groupNamed(req.Moved)
	if !ok {
		return nil, dc.Errorf(dc.NotFound, "move group", req.Moved, "there is no such group (see `dcctl group ls`)")
	}
	op := &command.MetaPlace{Group: uint64(g.id), IfVersion: g.version}
	nodes := g.desired
	switch {
	case req.Automatic && req.From+req.To+req.Leader != "":
		return nil, dc.Errorf(dc.Invalid, "move group", g.name, "it is either placed by hand or by the controller: --auto goes with no other flag")
	case req.Automatic:
		op.Pinned, op.Prefer = proto.Bool(false), proto.Uint64(0)
	case (req.From == "") != (req.To == ""):
		return nil, dc.Errorf(dc.Invalid, "move group", g.name, "a replica moves from one node to another: give both --from and --to")
	case req.From == "" && req.Leader == "":
		return nil, dc.Errorf(dc.Invalid, "move group", g.name, "nothing to move: give --from and --to, --leader, or --auto")
	case req.From != "":
		var err error
		if nodes, err = v.exchange(g, req); err != nil {
			return nil, err
		}
		op.Pinned = proto.Bool(true)
	}
	if req.Leader != "" {
		n, err := v.openNode(g, req.Leader)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(nodes, n.id) {
			return nil, dc.Errorf(dc.Invalid, "move group", g.name, "%s has no replica of it to lead with: it is on %s", n.name, v.names(nodes))
		}
		op.Prefer = proto.Uint64(uint64(n.id))
	}
	for _, n := range nodes {
		op.Nodes = append(op.Nodes, uint64(n))
	}
	return op, nil
}

// exchange gives the nodes of a group after one replica has moved.
func (v *view) exchange(g viewGroup, req *dcpb.MetaMoveGroupRequest) ([]dc.NodeID, error) {
	from, ok := v.nodeNamed(req.From)
	if !ok {
		return nil, dc.Errorf(dc.NotFound, "move group", g.name, "there is no node %s (see `dcctl node ls`)", req.From)
	}
	to, err := v.openNode(g, req.To)
	switch {
	case err != nil:
		return nil, err
	case !slices.Contains(g.desired, from.id):
		return nil, dc.Errorf(dc.Invalid, "move group", g.name, "it has no replica on %s: it is on %s", from.name, v.names(g.desired))
	case slices.Contains(g.desired, to.id):
		return nil, dc.Errorf(dc.Exists, "move group", g.name, "it has a replica on %s already: no node holds two", to.name)
	case to.full:
		return nil, dc.Errorf(dc.NoSpace, "move group", g.name, "the disk of %s has reached its reserve", to.name)
	case g.leader == 0:
		return nil, dc.Errorf(dc.Unavailable, "move group", g.name, "nobody leads it now, and only its leader can change its members; try again when `dcctl group ls` shows one")
	case !g.settled:
		return nil, dc.Errorf(dc.Busy, "move group", g.name,
			"a change is under way, or a replica is down or behind; one change at a time: try again when `dcctl group show %s` shows all replicas level", g.name)
	}
	nodes := with(without(g.desired, from.id), to.id)
	if v.shared(g.desired).less(v.shared(nodes)) && !req.Force {
		after := g
		after.desired = nodes
		return nil, dc.Errorf(dc.Invalid, "move group", g.name, "its replicas would fail together more than now (%s): --force moves it nevertheless", v.sharedText(after))
	}
	return nodes, nil
}

// openNode finds a node that may hold more and lead.
func (v *view) openNode(g viewGroup, name string) (viewNode, error) {
	n, ok := v.nodeNamed(name)
	switch {
	case !ok:
		return n, dc.Errorf(dc.NotFound, "move group", g.name, "there is no node %s (see `dcctl node ls`)", name)
	case !n.up:
		return n, dc.Errorf(dc.Unavailable, "move group", g.name, "%s is down", n.name)
	case n.drain:
		return n, dc.Errorf(dc.Busy, "move group", g.name, "%s drains: `dcctl node undrain %s` first", n.name, n.name)
	}
	return n, nil
}

func (v *view) groupNamed(name string) (viewGroup, bool) {
	for _, g := range v.groups {
		if g.name == name || g.id.String() == name {
			return g, true
		}
	}
	return viewGroup{}, false
}

// nodeNamed finds a node that has not been removed by name or id.
func (v *view) nodeNamed(name string) (viewNode, bool) {
	for _, n := range v.nodes {
		if !n.removed && (n.name == name || n.id.String() == name) {
			return n, true
		}
	}
	return viewNode{}, false
}
