package data

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/dcpb"
	"missingos/srv/replica"
	"missingos/storage"
	"missingos/storage/machine/data"
)

// The parts of a check, in their order.
const (
	checkInodes     = "inodes"
	checkEntries    = "entries"
	checkReferences = "references"
	checkBlocks     = "blocks"
)

// CheckParts lists them.
func CheckParts() []string { return []string{checkInodes, checkEntries, checkReferences, checkBlocks} }

const (
	checkPage = 256
	// checkBlocksAtOnce is how many blocks one pass over all extents counts.
	checkBlocksAtOnce = 1 << 20
)

// Check checks a page of a part. Each page is of one moment, so what changes meanwhile is not taken for wrong.
func (s *Service) Check(ctx context.Context, q *dcpb.DataCheckRequest) (*dcpb.DataCheckReply, error) {
	const op = "data check"
	c, err := s.caring(op, q.Header)
	if err != nil {
		return nil, err
	}
	r, err := s.cfg.Replicas.Leading(dc.GroupID(q.Header.GetGroup()))
	if err != nil {
		return nil, err
	}
	switch q.Part {
	case checkInodes, checkEntries, checkReferences:
		return checkRows(ctx, r, q)
	case checkBlocks:
		if c == nil {
			return nil, dc.Errorf(dc.Unsupported, op, "", "nobody cares for the blocks here")
		}
		return c.check(ctx, q)
	}
	return nil, dc.Errorf(dc.Invalid, op, q.Part, "there is no such part")
}

func checkRows(ctx context.Context, r replica.Replica, q *dcpb.DataCheckRequest) (*dcpb.DataCheckReply, error) {
	out := &dcpb.DataCheckReply{}
	from := uint64(0)
	if q.Part != checkEntries && len(q.From) == 8 {
		from = binary.BigEndian.Uint64(q.From)
	}
	err := r.View(ctx, func(rd storage.Reader) error {
		var n int
		var found []data.Finding
		switch q.Part {
		case checkInodes:
			var next file.Ino
			if next, n, found = data.CheckInodes(rd, 0, file.Ino(from), checkPage); next != 0 {
				out.Next = binary.BigEndian.AppendUint64(nil, uint64(next))
			}
		case checkEntries:
			out.Next, n, found = data.CheckEntries(rd, 0, q.From, checkPage)
		case checkReferences:
			parts := data.BlockCount(rd, 0)/checkBlocksAtOnce + 1
			n, found = data.CheckReferences(rd, 0, int(from), parts)
			if int(from)+1 < parts {
				out.Next = binary.BigEndian.AppendUint64(nil, from+1)
			}
		}
		out.Checked = uint64(n)
		for _, f := range found {
			out.Findings = append(out.Findings, &dcpb.DataFinding{What: f.What, Where: f.Where, Text: f.Text})
		}
		return nil
	})
	return out, err
}

// check compares a page of blocks with what the nodes have, and has what is wrong looked at if that is asked for.
func (c *care) check(ctx context.Context, q *dcpb.DataCheckRequest) (*dcpb.DataCheckReply, error) {
	var from file.BlockID
	if len(q.From) > 0 {
		var err error
		if from, err = file.ParseBlockID(q.From); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	members := c.known
	c.mu.Unlock()
	limit := scanPage
	if q.Read {
		limit = file.MaxFetch // so many are read within one answer's time
	}
	page, err := c.page(ctx, members, from, nil, limit)
	if err != nil {
		return nil, err
	}
	corrupt := map[file.BadCopy]bool{}
	if q.Read {
		c.readAll(ctx, page, corrupt)
	}
	out := &dcpb.DataCheckReply{Checked: uint64(len(page))}
	if len(page) == limit {
		out.Next = page[limit-1].Block.Bytes()
	}
	for _, h := range page {
		if fs := findings(members, h, corrupt); len(fs) > 0 {
			out.Findings = append(out.Findings, fs...)
			if q.Repair {
				c.note(h.Block, 0)
				for _, n := range h.bad {
					c.note(h.Block, n)
				}
			}
		}
	}
	return out, nil
}

// readAll has the nodes read the blocks of a page.
func (c *care) readAll(ctx context.Context, page []held, corrupt map[file.BadCopy]bool) {
	asked := map[dc.NodeID][]int{}
	for i, h := range page {
		for _, n := range h.up {
			asked[n] = append(asked[n], i)
		}
	}
	for n, which := range asked {
		ids := make([]file.BlockID, len(which))
		for i, at := range which {
			ids[i] = page[at].Block
		}
		each, err := c.cfg.Stores.VerifyBlocks(ctx, n, ids)
		if err != nil {
			continue
		}
		for i, at := range which {
			if h := &page[at]; each[i] != nil {
				corrupt[file.BadCopy{Block: h.Block, Node: n}] = dc.KindOf(each[i]) == dc.Corrupt
				h.up, h.bad = drop(h.up, n), append(h.bad, n)
			}
		}
	}
}

func findings(members map[dc.NodeID]Member, h held, corrupt map[file.BadCopy]bool) (all []*dcpb.DataFinding) {
	find := func(what, format string, args ...any) {
		all = append(all, &dcpb.DataFinding{What: what, Where: "block " + h.Block.String(), Text: fmt.Sprintf(format, args...)})
	}
	name := func(n dc.NodeID) string {
		if m := members[n]; m.Name != "" {
			return m.Name
		}
		return n.String()
	}
	for _, n := range h.bad {
		if corrupt[file.BadCopy{Block: h.Block, Node: n}] {
			find("corrupt", "the copy on %s is damaged", name(n))
		} else {
			find("missing", "%s should have it, and has not", name(n))
		}
	}
	keep := keep(members, h)
	staying := 0
	for _, m := range members {
		if !m.gone() && !m.Drain {
			staying++
		}
	}
	switch {
	case len(h.up) == 0:
		find("lost", "no node that is up has a good copy")
	case len(keep) < min(staying, file.Replicas) && len(h.bad) == 0:
		find("few", "it has %d copies, %d would be right", len(keep), min(staying, file.Replicas))
	case len(h.Nodes) > file.Replicas && !slices.ContainsFunc(h.Nodes, func(n dc.NodeID) bool { return !members[n].Up }):
		find("surplus", "it has %d copies", len(h.Nodes))
	}
	return all
}
