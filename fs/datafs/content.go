package datafs

import (
	"slices"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

// inlineEnd is the offset after the inline run.
func inlineEnd(c *file.Content) int64 { return c.InlineOff + int64(len(c.Inline)) }

// fitsInline tells whether data at off can join the inline run; the machine decides, this only saves asking in vain.
func fitsInline(c *file.Content, off int64, n int) bool {
	from, to := off, off+int64(n)
	if len(c.Inline) > 0 {
		if from > inlineEnd(c) || to < c.InlineOff {
			return false
		}
		from, to = min(from, c.InlineOff), max(to, inlineEnd(c))
	}
	return to-from <= dc.InlineFileBytes
}

// foldable gives the inline run if data at off would continue it and no extent hides a part of it.
func foldable(c *file.Content, off int64) []byte {
	if c == nil || len(c.Inline) == 0 || inlineEnd(c) != off || c.From > c.InlineOff || c.To < off {
		return nil
	}
	for _, e := range c.Extents {
		if e.Off < off && e.End() > c.InlineOff {
			return nil
		}
	}
	return c.Inline
}

// after gives the content as it is once commit, which led to attr, is applied to c, or nil if something else came between.
func after(c *file.Content, commit *file.Commit, attr file.Attr) *file.Content {
	if c == nil || attr.Version != c.Attr.Version+1 {
		return nil
	}
	next := &file.Content{Attr: attr, InlineOff: c.InlineOff, Inline: c.Inline, Extents: c.Extents, From: c.From, To: c.To}
	if commit.Inline != nil {
		next.Extents = punch(c.Extents, commit.InlineOff, commit.InlineOff+int64(len(commit.Inline)))
		mergeInline(next, commit.InlineOff, commit.Inline)
		return next
	}
	nodes := map[file.BlockID][]dc.NodeID{}
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
		e := file.Extent{Off: p.Off, Len: p.Len, Block: p.Block, BlockOff: p.BlockOff, Nodes: nodes[p.Block]}
		i, _ := slices.BinarySearchFunc(next.Extents, e.Off, func(x file.Extent, off int64) int { return int(min(1, max(-1, x.Off-off))) })
		next.Extents = slices.Insert(next.Extents, i, e)
	}
	if len(next.Extents) > 2*file.MaxExtentsPage {
		return nil
	}
	return next
}

// punch gives a copy of extents without [from, to).
func punch(extents []file.Extent, from, to int64) []file.Extent {
	out := make([]file.Extent, 0, len(extents)+2)
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

func mergeInline(c *file.Content, off int64, data []byte) {
	if len(c.Inline) == 0 {
		c.InlineOff, c.Inline = off, data
		return
	}
	from, to := min(off, c.InlineOff), max(off+int64(len(data)), inlineEnd(c))
	merged := make([]byte, to-from)
	copy(merged[c.InlineOff-from:], c.Inline)
	copy(merged[off-from:], data)
	c.InlineOff, c.Inline = from, merged
}

// coverInline gives up what [from, to) covers of the inline run.
func coverInline(c *file.Content, from, to int64) {
	end := inlineEnd(c)
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
