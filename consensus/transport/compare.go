package transport

import (
	"context"

	"missingos/srv/dc"
)

// Digest asks n for the sum of its replica's content after an entry. It has no deadline but ctx's.
func (t *Transport) Digest(ctx context.Context, n dc.NodeID, g dc.GroupID, index uint64) (*DigestReply, error) {
	c, err := t.client(n)
	if err != nil {
		return nil, err
	}
	return c.Digest(ctx, &DigestRequest{From: uint64(t.cfg.Node), Group: uint64(g), Index: index})
}

// Compare asks n, the leader of g, to compare the content of all replicas; or only to put an entry without commands into the log.
func (t *Transport) Compare(ctx context.Context, n dc.NodeID, g dc.GroupID, markOnly bool) (*CompareReply, error) {
	c, err := t.client(n)
	if err != nil {
		return nil, err
	}
	return c.Compare(ctx, &CompareRequest{From: uint64(t.cfg.Node), Group: uint64(g), MarkOnly: markOnly})
}

// Digest serves a sum of this node's replica.
func (s service) Digest(ctx context.Context, r *DigestRequest) (*DigestReply, error) {
	l, err := s.t.lane(ctx, r.From, r.Group)
	if err != nil {
		return nil, err
	}
	return l.replica.Digest(ctx, r.Index)
}

// Compare serves a comparison of the replicas of a group that this node leads.
func (s service) Compare(ctx context.Context, r *CompareRequest) (*CompareReply, error) {
	l, err := s.t.lane(ctx, r.From, r.Group)
	if err != nil {
		return nil, err
	}
	return l.replica.Compare(ctx, r.MarkOnly)
}

// Rebuild tells n that its replica is wrong.
func (t *Transport) Rebuild(ctx context.Context, n dc.NodeID, r *RebuildRequest) error {
	c, err := t.client(n)
	if err != nil {
		return err
	}
	r.From = uint64(t.cfg.Node)
	_, err = c.Rebuild(ctx, r)
	return err
}

// Rebuild serves the leader's word that this node's replica is wrong.
func (s service) Rebuild(ctx context.Context, r *RebuildRequest) (*RebuildReply, error) {
	l, err := s.t.lane(ctx, r.From, r.Group)
	if err != nil {
		return nil, err
	}
	return &RebuildReply{}, l.replica.Rebuild(ctx, r)
}
