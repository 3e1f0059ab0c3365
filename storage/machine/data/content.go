package data

import (
	"bytes"
	"math"
	"slices"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/storage"
	"missingos/storage/command"
)

const maxOffset = math.MaxInt64

// commit publishes written pieces, or an inline run, in one step.
func (o *operation) commit(c *command.DataCommit) (*command.DataResult, error) {
	const op = "write"
	in, err := o.writable(op, file.Ino(c.Ino))
	if err != nil {
		return nil, err
	}
	end := c.Size
	if c.HasInline {
		end = max(end, c.InlineOff+int64(len(c.Inline)))
		if !fitsInline(in, c.InlineOff, c.Inline) {
			return nil, noInline(op, in)
		}
	} else if err := checkPieces(op, in, c); err != nil {
		return nil, err
	}
	for _, p := range c.Pieces {
		end = max(end, p.Off+p.Len)
	}
	if end > file.MaxFileBytes {
		return nil, dc.Errorf(dc.TooLarge, op, inoOf(in).String(), "offset %d is beyond the limit of %d for a file", end, int64(file.MaxFileBytes))
	}
	if c.HasInline {
		o.punch(in, c.InlineOff, c.InlineOff+int64(len(c.Inline)))
		o.mergeInline(in, c.InlineOff, c.Inline)
	}
	o.blocks.learn(c.Blocks)
	for i, p := range c.Pieces {
		if i == 0 && c.Fold != 0 && c.Fold != in.Version {
			p = &command.DataPiece{Off: p.Off + c.FoldLen, Len: p.Len - c.FoldLen, Block: p.Block, BlockOff: p.BlockOff + c.FoldLen}
		}
		o.place(in, p)
	}
	o.wrote(in, end)
	return answer(in), nil
}

// append adds data at the end of the file, which is known only now.
func (o *operation) append(c *command.DataAppend) (*command.DataResult, error) {
	const op = "append"
	in, err := o.writable(op, file.Ino(c.Ino))
	if err != nil {
		return nil, err
	}
	at, n := in.Size, int64(len(c.Inline))
	if c.Block != nil {
		n = int64(c.Block.Size) - c.FoldLen
	}
	switch {
	case n <= 0 || c.Block != nil && (len(c.Block.Block) != file.BlockIDBytes || c.FoldLen < 0):
		return nil, dc.Errorf(dc.Invalid, op, inoOf(in).String(), "nothing to append")
	case at+n > file.MaxFileBytes:
		return nil, dc.Errorf(dc.TooLarge, op, inoOf(in).String(), "%d bytes exceed the limit of %d for a file", at+n, int64(file.MaxFileBytes))
	case c.Block == nil && !fitsInline(in, at, c.Inline):
		return nil, noInline(op, in)
	}
	if c.Block == nil {
		o.mergeInline(in, at, c.Inline)
	} else {
		o.blocks.learn([]*command.DataLocation{c.Block})
		p := &command.DataPiece{Off: at, Len: n, Block: c.Block.Block, BlockOff: c.FoldLen}
		if c.Fold != 0 && c.Fold == in.Version && int64(len(in.Inline)) == c.FoldLen && in.InlineOff+c.FoldLen == at {
			p.Off, p.Len, p.BlockOff = at-c.FoldLen, n+c.FoldLen, 0
		}
		o.place(in, p)
	}
	o.wrote(in, at+n)
	res := answer(in)
	res.Offset = at
	return res, nil
}

// writable loads a regular file that data is committed to. The caller holds it open for writing, so its mode does not matter.
func (o *operation) writable(op string, ino file.Ino) (*command.DataInode, error) {
	in, ok := loadInode(o.tx, ino)
	if !ok {
		return nil, stale(op, ino)
	}
	if !isRegular(in) {
		return nil, dc.Errorf(dc.Invalid, op, ino.String(), "not a regular file")
	}
	return in, nil
}

func noInline(op string, in *command.DataInode) error {
	return dc.Errorf(dc.Conflict, op, inoOf(in).String(), "the data does not fit the inode and belongs in a block")
}

func checkPieces(op string, in *command.DataInode, c *command.DataCommit) error {
	if len(c.Pieces) > file.MaxCommitPieces {
		return dc.Errorf(dc.Invalid, op, inoOf(in).String(), "%d pieces exceed the limit of %d", len(c.Pieces), file.MaxCommitPieces)
	}
	size := map[string]int64{}
	for _, b := range c.Blocks {
		if len(b.Block) != file.BlockIDBytes || b.Size == 0 || b.Size > dc.MaxBlockBytes || len(b.Nodes) == 0 {
			return dc.Errorf(dc.Invalid, op, inoOf(in).String(), "a block of %d bytes on %d nodes", b.Size, len(b.Nodes))
		}
		size[string(b.Block)] = int64(b.Size)
	}
	for i, p := range c.Pieces {
		fold := int64(0)
		if i == 0 {
			fold = c.FoldLen
		}
		inside := len(p.Block) == 0 || p.BlockOff >= 0 && p.BlockOff+p.Len <= size[string(p.Block)]
		if p.Off < 0 || p.Len <= fold || fold < 0 || p.Len > maxOffset-p.Off || !inside {
			return dc.Errorf(dc.Invalid, op, inoOf(in).String(), "piece %d: %d bytes at %d do not lie in its block", i, p.Len, p.Off)
		}
	}
	return nil
}

// wrote notes that content was written up to end at most.
func (o *operation) wrote(in *command.DataInode, end int64) {
	in.Size = max(in.Size, end)
	in.Version++
	in.Mtime, in.Ctime = o.now, o.now
	if o.who.GetUid() != 0 {
		o.dropPrivileges(in)
	}
	o.put(in)
}

// place puts one piece over whatever is there.
func (o *operation) place(in *command.DataInode, p *command.DataPiece) {
	end := p.Off + p.Len
	o.punch(in, p.Off, end)
	o.coverInline(in, p.Off, end)
	if len(p.Block) == 0 {
		return
	}
	o.setExtent(in, extent{off: p.Off, len: p.Len, block: p.Block, blockOff: p.BlockOff})
}

// An extent is a loaded extent row.
type extent struct {
	off, len int64
	block    []byte
	blockOff int64
}

func (e extent) end() int64 { return e.off + e.len }

func (o *operation) setExtent(in *command.DataInode, e extent) {
	o.tx.Set(extentKey(inoOf(in), e.off), encode(&command.DataExtent{Len: e.len, Block: e.block, BlockOff: e.blockOff}))
	o.blocks.count(o.tx, inoOf(in).Slot(), e.block, 1)
	in.Extents++
	o.grow(in, e.len)
}

func (o *operation) dropExtent(in *command.DataInode, e extent) {
	o.tx.Delete(extentKey(inoOf(in), e.off))
	o.blocks.count(o.tx, inoOf(in).Slot(), e.block, -1)
	in.Extents--
	o.grow(in, -e.len)
}

// grow accounts for bytes held.
func (o *operation) grow(in *command.DataInode, by int64) {
	if by == 0 {
		return
	}
	in.Allocated += by
	o.space(inoOf(in).Slot()).Bytes += by
}

// punch removes what extents hold of [from, to).
func (o *operation) punch(in *command.DataInode, from, to int64) {
	if in.Extents == 0 {
		return
	}
	for _, e := range o.overlapping(inoOf(in), from, to, math.MaxInt, false) {
		o.punchExtent(in, e, from, to)
	}
}

// punchExtent removes [from, to) from e, leaving what lies before and after.
func (o *operation) punchExtent(in *command.DataInode, e extent, from, to int64) {
	o.dropExtent(in, e)
	if e.off < from {
		o.setExtent(in, extent{off: e.off, len: from - e.off, block: e.block, blockOff: e.blockOff})
	}
	if e.end() > to {
		o.setExtent(in, extent{off: to, len: e.end() - to, block: e.block, blockOff: e.blockOff + to - e.off})
	}
}

// overlapping loads the extents that meet [from, to), up to limit, in order or from the end.
func (o *operation) overlapping(ino file.Ino, from, to int64, limit int, reverse bool) []extent {
	var all []extent
	head := storage.Span{Start: inoKey(kindExtent, ino, 0), End: extentKey(ino, from), Reverse: true}
	for k, v := range o.tx.Scan(head) {
		if e := loadExtent(k, v); e.end() > from {
			all = append(all, e)
		}
		break
	}
	span := storage.Span{Start: extentKey(ino, from), End: extentKey(ino, to), Reverse: reverse}
	var rest []extent
	for k, v := range o.tx.Scan(span) {
		if len(rest) >= limit {
			break
		}
		rest = append(rest, loadExtent(k, v))
	}
	if reverse {
		return append(rest, all...)
	}
	return append(all, rest...)
}

func loadExtent(k, v []byte) extent {
	var e command.DataExtent
	decode("extent", v, &e)
	return extent{off: extentOffset(k), len: e.Len, block: e.Block, blockOff: e.BlockOff}
}

// fitsInline tells whether data at off can join the inline run, which stays one run of bounded length.
func fitsInline(in *command.DataInode, off int64, data []byte) bool {
	if off < 0 || len(data) == 0 {
		return false
	}
	from, to := off, off+int64(len(data))
	if len(in.Inline) > 0 {
		runEnd := in.InlineOff + int64(len(in.Inline))
		if from > runEnd || to < in.InlineOff {
			return false
		}
		from, to = min(from, in.InlineOff), max(to, runEnd)
	}
	return to-from <= dc.InlineFileBytes
}

// mergeInline joins data, which fits, with the run.
func (o *operation) mergeInline(in *command.DataInode, off int64, data []byte) {
	if len(in.Inline) == 0 {
		in.InlineOff = off
	}
	from := min(off, in.InlineOff)
	to := max(off+int64(len(data)), in.InlineOff+int64(len(in.Inline)))
	run := make([]byte, to-from)
	copy(run[in.InlineOff-from:], in.Inline)
	copy(run[off-from:], data)
	o.setInline(in, from, run)
}

func (o *operation) setInline(in *command.DataInode, off int64, run []byte) {
	o.grow(in, int64(len(run)-len(in.Inline)))
	if len(run) == 0 {
		off, run = 0, nil
	}
	in.InlineOff, in.Inline = off, run
}

// cutInline ends the run at size.
func (o *operation) cutInline(in *command.DataInode, size int64) {
	if in.InlineOff+int64(len(in.Inline)) > size {
		o.setInline(in, in.InlineOff, in.Inline[:max(0, size-in.InlineOff)])
	}
}

// coverInline gives up the part of the run that [from, to) covers: an extent hides it, or a hole replaces it.
func (o *operation) coverInline(in *command.DataInode, from, to int64) {
	runEnd := in.InlineOff + int64(len(in.Inline))
	if len(in.Inline) == 0 || from >= runEnd || to <= in.InlineOff {
		return
	}
	switch {
	case from <= in.InlineOff && to >= runEnd:
		o.setInline(in, 0, nil)
	case from <= in.InlineOff:
		o.setInline(in, to, in.Inline[to-in.InlineOff:])
	case to >= runEnd:
		o.setInline(in, in.InlineOff, in.Inline[:from-in.InlineOff])
	default:
		in.Inline = bytes.Clone(in.Inline)
		clear(in.Inline[from-in.InlineOff : to-in.InlineOff])
	}
}

// blockRows gathers the changes of block rows of one command, so that a block that loses one extent and gains another is not garbage.
type blockRows struct {
	order []string
	rows  map[string]*blockRow
	new   map[string]*command.DataLocation
}

type blockRow struct {
	slot   uint16
	stored bool
	row    *command.DataBlock
}

// learn takes the locations of blocks that the command brings.
func (b *blockRows) learn(ls []*command.DataLocation) {
	if b.new == nil {
		b.new = map[string]*command.DataLocation{}
	}
	for _, l := range ls {
		b.new[string(l.Block)] = l
	}
}

func (b *blockRows) count(rd storage.Reader, slot uint16, id []byte, by int32) {
	r, ok := b.rows[string(id)]
	if !ok {
		r = &blockRow{slot: slot}
		if r.row, r.stored = loadBlock(rd, slot, id); !r.stored {
			r.row = &command.DataBlock{}
			if l := b.new[string(id)]; l != nil {
				r.row.Size, r.row.Nodes = l.Size, l.Nodes
			}
		}
		if b.rows == nil {
			b.rows = map[string]*blockRow{}
		}
		b.rows[string(id)] = r
		b.order = append(b.order, string(id))
	}
	r.row.Refs = uint32(int32(r.row.Refs) + by)
}

// write stores the rows; a block without extents leaves garbage rows.
func (b *blockRows) write(tx storage.Tx) {
	for _, id := range b.order {
		r := b.rows[id]
		if r.row.Refs > 0 {
			tx.Set(blockKey(r.slot, []byte(id)), encode(r.row))
			continue
		}
		if r.stored {
			tx.Delete(blockKey(r.slot, []byte(id)))
		}
		nodes := slices.Clone(r.row.Nodes)
		slices.Sort(nodes)
		for _, n := range nodes {
			tx.Set(garbageKey(r.slot, dc.NodeID(n), []byte(id)), nil)
		}
	}
}
