package file

import (
	"slices"

	"missingos/srv/dc"
)

// InlineEnd is the offset after the inline run.
func (c *Content) InlineEnd() int64 { return c.InlineOff + int64(len(c.Inline)) }

// After gives the content as it is once commit, which led to attr, is applied to c, or nil if something else came between, or c is nil.
func (c *Content) After(commit *Commit, attr Attr) *Content {
	if c == nil || attr.Version != c.Attr.Version+1 {
		return nil
	}
	next := &Content{Attr: attr, InlineOff: c.InlineOff, Inline: c.Inline, Extents: c.Extents, From: c.From, To: c.To}
	if commit.Inline != nil {
		next.Extents = punch(c.Extents, commit.InlineOff, commit.InlineOff+int64(len(commit.Inline)))
		mergeInline(next, commit.InlineOff, commit.Inline)
		return next
	}
	nodes := map[BlockID][]dc.NodeID{}
	for _, l := range commit.Blocks {
		nodes[l.Block] = l.Nodes
	}
	for _, p := range commit.Pieces {
		end := p.Off + p.Len
		next.Extents = punch(next.Extents, p.Off, end)
		coverInline(next, p.Off, end)
		if p.Block.IsZero() {
			continue
		}
		e := Extent{Off: p.Off, Len: p.Len, Block: p.Block, BlockOff: p.BlockOff, Nodes: nodes[p.Block]}
		i, _ := slices.BinarySearchFunc(next.Extents, e.Off, func(x Extent, off int64) int { return int(min(1, max(-1, x.Off-off))) })
		next.Extents = slices.Insert(next.Extents, i, e)
	}
	if len(next.Extents) > 2*MaxExtentsPage {
		return nil
	}
	return next
}

// punch gives a copy of extents without [from, to).
func punch(extents []Extent, from, to int64) []Extent {
	out := make([]Extent, 0, len(extents)+2)
	for _, e := range extents {
		if e.End() <= from || e.Off >= to {
			out = append(out, e)
			continue
		}
		if e.Off < from {
			head := e
			head.Len = from - e.Off
			out = append(out, head)
		}
		if e.End() > to {
			rest := e
			rest.Off, rest.Len, rest.BlockOff = to, e.End()-to, e.BlockOff+to-e.Off
			out = append(out, rest)
		}
	}
	return out
}

func mergeInline(c *Content, off int64, data []byte) {
	if len(c.Inline) == 0 {
		c.InlineOff, c.Inline = off, data
		return
	}
	from, to := min(off, c.InlineOff), max(off+int64(len(data)), c.InlineEnd())
	merged := make([]byte, to-from)
	copy(merged[c.InlineOff-from:], c.Inline)
	copy(merged[off-from:], data)
	c.InlineOff, c.Inline = from, merged
}

// coverInline gives up what [from, to) covers of the inline run.
func coverInline(c *Content, from, to int64) {
	end := c.InlineEnd()
	switch {
	case len(c.Inline) == 0 || from >= end || to <= c.InlineOff:
	case from <= c.InlineOff && to >= end:
		c.InlineOff, c.Inline = 0, nil
	case from <= c.InlineOff:
		c.InlineOff, c.Inline = to, c.Inline[to-c.InlineOff:]
	case to >= end:
		c.Inline = c.Inline[:from-c.InlineOff]
	default:
		c.Inline = slices.Clone(c.Inline)
		clear(c.Inline[from-c.InlineOff : to-c.InlineOff])
	}
}
