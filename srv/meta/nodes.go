package meta

import (
	"context"
	"slices"
	"time"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/pki"
	"missingos/srv/rpc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/meta"
)

// MintToken stores a join token.
func (s *Service) MintToken(ctx context.Context, req *dcpb.MetaMintTokenRequest) (*dcpb.MetaMintTokenReply, error) {
	t, _, err := s.admit("mint token", req.Header, true)
	if err != nil {
		return nil, err
	}
	life := time.Duration(req.TtlMs) * time.Millisecond
	if life == 0 {
		life = defaultTokenLife
	}
	if life < 0 || life > maxTokenLife {
		return nil, dc.Errorf(dc.Invalid, "mint token", "", "a life of %s is outside of 0 to %s", life, maxTokenLife)
	}
	if len(req.Hash) == 0 {
		return nil, dc.Errorf(dc.Invalid, "mint token", "", "the request has no hash")
	}
	expires := t.replica.Clock() + life.Milliseconds()
	_, err = t.do(ctx, rpc.RequestID(req.Header), &command.MetaCommand{
		Op: &command.MetaCommand_MintToken{MintToken: &command.MetaMintToken{Hash: req.Hash, ExpiresMs: expires}},
	})
	if err != nil {
		return nil, err
	}
	reply := &dcpb.MetaMintTokenReply{ExpiresMs: expires}
	err = t.replica.Local(func(r storage.Reader) error {
		if c, ok := meta.Cluster(r); ok {
			reply.CaCertificate = c.CaCert
		}
		return nil
	})
	return reply, err
}

// Admit spends a token on a new node and signs its certificate.
func (s *Service) Admit(ctx context.Context, req *dcpb.MetaAdmitRequest) (*dcpb.MetaAdmitReply, error) {
	t, _, err := s.admit("join", req.Header, true)
	if err != nil {
		return nil, err
	}
	if err := t.checkVersion(ctx, "join", req.Version); err != nil {
		return nil, err
	}
	csr, err := pki.ParseRequest(req.Csr)
	if err != nil {
		return nil, err
	}
	res, err := t.do(ctx, rpc.RequestID(req.Header), &command.MetaCommand{Op: &command.MetaCommand_Admit{Admit: &command.MetaAdmit{
		Hash: req.Hash, KeyHash: pki.KeyHash(csr), Name: req.Name, Address: req.Address,
	}}})
	if err != nil {
		return nil, err
	}
	reply := &dcpb.MetaAdmitReply{Node: res.Node.Id, Name: res.Node.Name}
	err = t.replica.View(ctx, func(r storage.Reader) error {
		c, _ := meta.Cluster(r)
		reply.Cluster, reply.CaCertificate, reply.Map = c.Cluster, c.CaCert, mapOf(r)
		ca, err := pki.LoadAuthority(c.Cluster, c.CaCert, c.CaKey)
		if err != nil {
			return err
		}
		reply.Certificate, err = ca.Sign(req.Csr, dc.NodeID(res.Node.Id))
		return err
	})
	if err != nil {
		return nil, err
	}
	s.cfg.Log.Info("node admitted", "node", res.Node.Id, "name", res.Node.Name, "address", res.Node.Address)
	t.wake()
	return reply, nil
}

// Register notes a starting node's address and version. One that is older than what all nodes run is refused: dc.Unsupported.
func (s *Service) Register(ctx context.Context, req *dcpb.MetaRegisterRequest) (*dcpb.MetaRegisterReply, error) {
	t, p, err := s.admit("register", req.Header, true)
	if err != nil {
		return nil, err
	}
	if err := t.checkVersion(ctx, "register", req.Version); err != nil {
		return nil, err
	}
	_, err = t.do(ctx, rpc.RequestID(req.Header), &command.MetaCommand{
		Op: &command.MetaCommand_Register{Register: &command.MetaRegister{Node: uint64(p.Node), Address: req.Address, Version: req.Version, SetLabels: req.SetLabels}},
	})
	if err != nil {
		return nil, err
	}
	reply := &dcpb.MetaRegisterReply{}
	err = t.replica.Local(func(r storage.Reader) error {
		if c, ok := meta.Cluster(r); ok {
			reply.Cluster = c.Cluster
		}
		return nil
	})
	return reply, err
}

// SetNode changes a node's marks.
func (s *Service) SetNode(ctx context.Context, req *dcpb.MetaSetNodeRequest) (*dcpb.MetaSetNodeReply, error) {
	t, _, err := s.admit("change node", req.Header, true)
	if err != nil {
		return nil, err
	}
	id, err := t.nodeNamed(ctx, req.Node)
	if err != nil {
		return nil, err
	}
	if req.GetDecommission() {
		if err := s.mayDecommission(ctx, t, dc.NodeID(id)); err != nil {
			return nil, err
		}
	}
	res, err := t.do(ctx, rpc.RequestID(req.Header), &command.MetaCommand{
		Op: &command.MetaCommand_SetNode{SetNode: &command.MetaSetNode{Node: id, Drain: req.Drain, SetLabels: req.SetLabels, Decommission: req.Decommission}},
	})
	if err != nil {
		return nil, err
	}
	t.wake()
	return &dcpb.MetaSetNodeReply{Node: mapNode(res.Node)}, nil
}

// mayDecommission refuses to begin what cannot end: without enough other nodes for every replica.
func (s *Service) mayDecommission(ctx context.Context, t *term, id dc.NodeID) error {
	rec, err := read(func(fn func(storage.Reader) error) error { return t.replica.View(ctx, fn) })
	if err != nil {
		return err
	}
	t.mu.Lock()
	v := s.viewLocked(t, rec)
	others := 0
	for _, n := range v.nodes { // one that this leader has not had the time to hear of counts
		if n.id != id && !n.removed && !n.drain && t.silentLocked(n.id) < downAfter {
			others++
		}
	}
	t.mu.Unlock()
	for _, g := range v.groups {
		if others < g.want && slices.Contains(g.desired, id) {
			return dc.Errorf(dc.Busy, "decommission", v.name(id),
				"%d other nodes are up and not draining, fewer than the %d replicas of group %s: add a node first, or take this one out with `dcctl node rm`, which leaves fewer replicas",
				others, g.want, g.name)
		}
	}
	return nil
}

// RemoveNode takes a node out for ever.
func (s *Service) RemoveNode(ctx context.Context, req *dcpb.MetaRemoveNodeRequest) (*dcpb.MetaRemoveNodeReply, error) {
	t, _, err := s.admit("remove node", req.Header, true)
	if err != nil {
		return nil, err
	}
	id, err := t.nodeNamed(ctx, req.Node)
	if err != nil {
		return nil, err
	}
	res, err := t.do(ctx, rpc.RequestID(req.Header), &command.MetaCommand{
		Op: &command.MetaCommand_RemoveNode{RemoveNode: &command.MetaRemoveNode{Node: id}},
	})
	if err != nil {
		return nil, err
	}
	s.cfg.Log.Info("node removed", "node", id, "name", res.Node.Name)
	t.wake()
	return &dcpb.MetaRemoveNodeReply{Node: mapNode(res.Node)}, nil
}

func (t *term) nodeNamed(ctx context.Context, name string) (uint64, error) {
	var id uint64
	err := t.replica.View(ctx, func(r storage.Reader) error {
		n, err := findNode(r, name)
		if err == nil {
			id = n.Id
		}
		return err
	})
	return id, err
}

// GroupStarted closes the time in which a group may be bootstrapped.
func (s *Service) GroupStarted(ctx context.Context, req *dcpb.MetaGroupStartedRequest) (*dcpb.MetaGroupStartedReply, error) {
	t, _, err := s.admit("group started", req.Header, true)
	if err != nil {
		return nil, err
	}
	_, err = t.do(ctx, rpc.RequestID(req.Header), &command.MetaCommand{
		Op: &command.MetaCommand_GroupStarted{GroupStarted: &command.MetaGroupStarted{Group: req.Started}},
	})
	return &dcpb.MetaGroupStartedReply{}, err
}
