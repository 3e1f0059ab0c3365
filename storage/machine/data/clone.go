package data

import (
	"math"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/storage/command"
)

// clone lets a part of one file lie in the blocks of a part of another. A block stays until the last extent in it is gone, whosever it is. What lies in
// from's inline run is not cloned: it ends before that.
func (o *operation) clone(c *command.DataClone) (*command.DataResult, error) {
	const op = "clone"
	to, err := o.writable(op, file.Ino(c.To))
	if err != nil {
		return nil, err
	}
	from, err := o.writable(op, file.Ino(c.From))
	if err != nil {
		return nil, err
	}
	if c.From == c.To {
		from = to
	}
	n := min(c.Len, from.Size-c.FromOff)
	switch {
	case c.FromOff < 0 || c.ToOff < 0 || c.Len < 0 || c.From == c.To && c.FromOff < c.ToOff+c.Len && c.ToOff < c.FromOff+c.Len:
		return nil, dc.Errorf(dc.Invalid, op, inoOf(to).String(), "%d bytes from %d to %d", c.Len, c.FromOff, c.ToOff)
	case c.ToOff > file.MaxFileBytes-max(n, 0):
		return nil, dc.Errorf(dc.TooLarge, op, inoOf(to).String(), "offset %d is beyond the limit of %d for a file", c.ToOff, int64(file.MaxFileBytes))
	case inoOf(from).Slot() != inoOf(to).Slot():
		return nil, dc.Errorf(dc.Unsupported, op, inoOf(to).String(), "the files are kept apart")
	}
	var extents []extent
	if n > 0 && from.Extents > 0 {
		extents = o.overlapping(inoOf(from), c.FromOff, c.FromOff+n, rowsPerStep, false)
	}
	if len(extents) > rowsPerStep {
		n = min(n, extents[rowsPerStep].off-c.FromOff)
		extents = extents[:rowsPerStep]
	} else if len(extents) == rowsPerStep {
		n = min(n, extents[rowsPerStep-1].end()-c.FromOff)
	}
	n = min(n, inlineFrom(from, extents, c.FromOff)-c.FromOff)
	if n <= 0 {
		return answer(to), nil
	}
	end := c.FromOff + n
	o.punch(to, c.ToOff, c.ToOff+n)
	o.coverInline(to, c.ToOff, c.ToOff+n)
	for _, e := range extents {
		lo, hi := max(e.off, c.FromOff), min(e.end(), end)
		if lo < hi {
			o.setExtent(to, extent{off: lo - c.FromOff + c.ToOff, len: hi - lo, block: e.block, blockOff: e.blockOff + lo - e.off})
		}
	}
	o.wrote(to, c.ToOff+n)
	res := answer(to)
	res.Offset = n
	return res, nil
}

// inlineFrom gives the first offset from off on that shows the inline run, given the extents from there on.
func inlineFrom(in *command.DataInode, extents []extent, off int64) int64 {
	at, end := max(off, in.InlineOff), in.InlineOff+int64(len(in.Inline))
	for _, e := range extents {
		if e.off > at {
			break
		}
		at = max(at, e.end())
	}
	if at >= end {
		return math.MaxInt64
	}
	return at
}
