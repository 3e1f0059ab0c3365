package data

import (
	"cmp"
	"context"
	"slices"
	"time"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/dcpb"
	"missingos/srv/rpc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/data"
)

// Locate tells where blocks are now.
func (s *Service) Locate(ctx context.Context, q *dcpb.DataLocateRequest) (*dcpb.DataLocateReply, error) {
	out := &dcpb.DataLocateReply{}
	if len(q.Blocks) > dc.MaxScanPage {
		return nil, dc.Errorf(dc.Invalid, "locate", "", "%d blocks exceed the limit of %d a request", len(q.Blocks), dc.MaxScanPage)
	}
	_, err := s.view(ctx, "locate", q.Header, func(rd storage.Reader, _ *command.DataCaller, _ *look) error {
		for _, b := range q.Blocks {
			id, err := file.ParseBlockID(b)
			if err != nil {
				return err
			}
			h, _ := data.Held(rd, 0, id)
			out.Places = append(out.Places, &dcpb.DataPlace{Nodes: numbers(h.Nodes)})
		}
		return nil
	})
	return out, err
}

// Bad takes reports of bad copies.
func (s *Service) Bad(_ context.Context, q *dcpb.DataBadRequest) (*dcpb.DataBadReply, error) {
	const op = "report block"
	c, err := s.caring(op, q.Header)
	if err != nil {
		return nil, err
	}
	if len(q.Bad) > file.MaxBad {
		return nil, dc.Errorf(dc.Invalid, op, "", "%d copies exceed the limit of %d a report", len(q.Bad), file.MaxBad)
	}
	for _, b := range q.Bad {
		id, err := file.ParseBlockID(b.Block)
		if err != nil {
			return nil, err
		}
		if c != nil {
			c.note(id, dc.NodeID(b.Node))
		}
	}
	return &dcpb.DataBadReply{}, nil
}

// caring admits a request of a daemon and finds the care of its group; nil if this cluster's blocks are not cared for.
func (s *Service) caring(op string, h *dcpb.Header) (*care, error) {
	r, who, err := s.admit(op, h)
	if err != nil {
		return nil, err
	}
	if who.Uid != 0 {
		return nil, dc.Errorf(dc.Denied, op, "", "this is for daemons and root, not for uid %d", who.Uid)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.terms[r.Group()]; t != nil {
		return t.care, nil
	}
	return nil, dc.Errorf(dc.Unavailable, op, "", "this node has just begun to lead the group")
}

// thin has blocks looked at that were written to fewer nodes than they should be on.
func (s *Service) thin(g dc.GroupID, blocks ...*dcpb.DataLocation) {
	s.mu.Lock()
	t := s.terms[g]
	s.mu.Unlock()
	if t == nil || t.care == nil {
		return
	}
	enough := t.care.enough()
	for _, b := range blocks {
		if len(b.GetNodes()) >= enough {
			continue
		}
		if id, err := file.ParseBlockID(b.GetBlock()); err == nil {
			t.care.note(id, 0)
		}
	}
}

// enough is how many copies a block can have now.
func (c *care) enough() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, m := range c.known {
		if m.open() {
			n++
		}
	}
	return min(n, file.Replicas)
}

// hasRemoved tells whether a node has been removed for ever.
func (c *care) hasRemoved(n dc.NodeID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.known[n].Removed
}

// Care tells how blocks are.
func (s *Service) Care(_ context.Context, q *dcpb.DataCareRequest) (*dcpb.DataCareReply, error) {
	c, err := s.caring("data status", q.Header)
	if err != nil {
		return nil, err
	}
	if c == nil {
		return nil, dc.Errorf(dc.Unsupported, "data status", "", "nobody cares for the blocks here")
	}
	c.refresh()
	out := c.tell()
	out.Leader = uint64(rpc.Principal(q.Header).Node)
	return out, nil
}

// refresh has the blocks counted again for somebody who looks, unless that was done lately, as measured by what it takes.
func (c *care) refresh() {
	c.mu.Lock()
	old := !c.status.counted.IsZero() && time.Since(c.status.counted) > max(countFresh, 100*c.status.countTook)
	c.mu.Unlock()
	if old {
		c.recheck()
	}
}

// tell describes the care.
func (c *care) tell() *dcpb.DataCareReply {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.status
	out := &dcpb.DataCareReply{
		Blocks: s.blocks, Bytes: s.bytes, Lost: s.lost, Short: s.short, Queued: s.queued, QueuedBytes: s.queuedBytes, Moving: s.moving, Rate: s.rate(),
		Done: s.done, DoneBytes: s.doneBytes, Failed: s.failed, Doing: s.doing, LastError: s.lastErr, Wanted: uint64(s.wanted), RateLimit: c.cfg.Rate,
	}
	if !s.counted.IsZero() {
		out.CountedMs = s.counted.UnixMilli()
	}
	for n, blocks := range s.copies {
		if blocks > 0 {
			out.Copies = append(out.Copies, &dcpb.DataCopies{Copies: uint32(n), Blocks: blocks})
		}
	}
	slices.SortFunc(out.Copies, func(a, b *dcpb.DataCopies) int { return cmp.Compare(a.Copies, b.Copies) })
	for _, id := range s.lostBlocks {
		out.LostBlocks = append(out.LostBlocks, id.String())
	}
	for id, m := range c.known {
		if m.Removed {
			continue
		}
		st := &dcpb.DataStore{Node: uint64(id), Name: m.Name, State: m.state()}
		if sp := c.spaces[id]; sp != nil && sp.known {
			st.Known, st.Used, st.Free, st.Blocks = true, sp.Used, sp.Free, sp.Blocks
		}
		out.Stores = append(out.Stores, st)
	}
	slices.SortFunc(out.Stores, func(a, b *dcpb.DataStore) int { return cmp.Compare(a.Node, b.Node) })
	return out
}

func (m Member) state() string {
	switch {
	case m.Dead:
		return "dead"
	case !m.Up:
		return "down"
	case m.Drain:
		return "draining"
	}
	return "up"
}
