package client

import (
	"context"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/dcpb"
)

// Open checks that the caller may open ino with access (bits of access(2)), notes it as open on this node until [Data.Closed], and gives
// the beginning of its content.
func (d *Data) Open(ctx context.Context, ino file.Ino, access uint32) (file.Content, error) {
	number, again := d.nextOpen(ino) // before it is known from memory: a revocation tells the leader of it
	if c, known := d.cache.read(ino); known {
		return c, nil
	}
	t := d.cache.ask(ino)
	var out *dcpb.DataContentReply
	err := d.query(ctx, ino, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (err error) {
		h.Hold = t.hold()
		out, err = s.Open(ctx, &dcpb.DataOpenRequest{Header: h, Ino: uint64(ino), Access: access, Session: d.session, Opened: number, Again: again})
		return err
	})
	if err != nil {
		d.Closed(ino)
		return file.Content{}, err
	}
	return d.keepContent(t, out)
}

// beginMake gives the number of an open whose inode is about to be made; endMake must follow, after the inode was noted.
func (d *Data) beginMake() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.number++
	d.making[d.number] = true
	return d.number
}

func (d *Data) endMake(number uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.making, number)
}

// nextOpen notes an open of ino and gives its number, and whether it was open here before.
func (d *Data) nextOpen(ino file.Ino) (number uint64, again bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.number++
	again = d.open[ino] > 0
	d.open[ino]++
	d.reported.Store(false)
	return d.number, again
}

// Closed takes back one Open (or Make with Open) of ino.
func (d *Data) Closed(ino file.Ino) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open[ino]--; d.open[ino] <= 0 {
		delete(d.open, ino)
	}
}

// Report tells the leader what is open on this node, so that it does not purge it when it is unlinked. It must be called every
// file.OpenReport, and soon after an unlinked file was closed. It does nothing while nothing is open.
func (d *Data) Report(ctx context.Context) error {
	d.mu.Lock()
	q := &dcpb.DataReportRequest{Session: d.session, Opened: d.number, Inos: make([]uint64, 0, len(d.open))}
	for ino := range d.open {
		q.Inos = append(q.Inos, uint64(ino))
	}
	for number := range d.making {
		q.Opened = min(q.Opened, number-1)
	}
	d.mu.Unlock()
	if d.reported.Load() {
		return nil
	}
	if len(q.Inos) == 0 {
		d.reported.Store(true)
	}
	err := d.query(ctx, file.Root, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) error {
		q.Header = h
		_, err := s.Report(ctx, q)
		return err
	})
	if err != nil {
		d.reported.Store(false)
	}
	return err
}

// Content gives the content of ino from an offset on, a page of extents. It always asks: the caller knows no content, or has found that it is old.
func (d *Data) Content(ctx context.Context, ino file.Ino, from int64) (file.Content, error) {
	t := d.cache.ask(ino)
	var out *dcpb.DataContentReply
	err := d.query(ctx, ino, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (err error) {
		h.Hold = t.hold()
		out, err = s.Content(ctx, &dcpb.DataContentRequest{Header: h, Ino: uint64(ino), From: from})
		return err
	})
	if err != nil {
		return file.Content{}, err
	}
	return d.keepContent(t, out)
}

func (d *Data) keepContent(t ticket, out *dcpb.DataContentReply) (file.Content, error) {
	c, err := contentOf(out)
	if err == nil {
		d.cache.heard(t, out.Grant, c.Attr, &c)
	}
	return c, err
}

func contentOf(out *dcpb.DataContentReply) (file.Content, error) {
	c := file.Content{Attr: attrOf(out.Attr), InlineOff: out.InlineOff, Inline: out.Inline, From: out.From, To: out.To}
	for _, e := range out.Extents {
		id, err := file.ParseBlockID(e.Block)
		if err != nil {
			return c, err
		}
		x := file.Extent{Off: e.Off, Len: e.Len, Block: id, BlockOff: e.BlockOff}
		for _, n := range e.Nodes {
			x.Nodes = append(x.Nodes, dc.NodeID(n))
		}
		c.Extents = append(c.Extents, x)
	}
	return c, nil
}

// Commit publishes written data. dc.Conflict if inline data does not fit the inode and must go into a block. After dc.Unavailable the
// outcome is unknown: the same change may be made again, with new blocks.
func (d *Data) Commit(ctx context.Context, c file.Commit) (file.Attr, error) {
	q := &dcpb.DataCommitRequest{
		Ino: uint64(c.Ino), HasInline: c.Inline != nil, InlineOff: c.InlineOff, Inline: c.Inline, Fold: c.Fold, FoldLen: c.FoldLen,
		Size: c.Size, Mtime: c.Mtime,
	}
	for _, l := range c.Blocks {
		q.Blocks = append(q.Blocks, locationMessage(l))
	}
	for _, p := range c.Pieces {
		m := &dcpb.DataPiece{Off: p.Off, Len: p.Len, BlockOff: p.BlockOff}
		if !p.Block.IsZero() {
			m.Block = p.Block.Bytes()
		}
		q.Pieces = append(q.Pieces, m)
	}
	own := d.cache.begin(c.Ino)
	out, err := d.change(ctx, own, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (*dcpb.DataAttrReply, error) {
		q.Header = h
		return s.Commit(ctx, q)
	})
	a := attrOf(out.GetAttr())
	own.end(out, err, func(before *file.Content) *file.Content { return before.After(&c, a) })
	return a, err
}

// Append adds data at the end of a file and tells where that was. dc.Conflict as for Commit. After dc.Unavailable the outcome is unknown, and
// to append again might do it twice.
func (d *Data) Append(ctx context.Context, a file.Append) (at file.Attr, off int64, err error) {
	q := &dcpb.DataAppendRequest{Ino: uint64(a.Ino), Inline: a.Inline, Fold: a.Fold, FoldLen: a.FoldLen, Mtime: a.Mtime}
	if !a.Block.Block.IsZero() {
		q.Block = locationMessage(a.Block)
	}
	own := d.cache.begin(a.Ino)
	out, err := d.change(ctx, own, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (*dcpb.DataAttrReply, error) {
		q.Header = h
		return s.Append(ctx, q)
	})
	own.end(out, err, nil)
	return attrOf(out.GetAttr()), out.GetOffset(), err
}

func locationMessage(l file.Location) *dcpb.DataLocation {
	m := &dcpb.DataLocation{Block: l.Block.Bytes(), Size: uint32(l.Bytes)}
	for _, n := range l.Nodes {
		m.Nodes = append(m.Nodes, uint64(n))
	}
	return m
}

// HeldBlocks tells what the metadata know of blocks on this node.
func (d *Data) HeldBlocks(ctx context.Context, ids []file.BlockID) ([]file.Hold, error) {
	q := &dcpb.DataHeldRequest{Blocks: blockBytes(ids)}
	ctx = dc.WithPrincipal(ctx, dc.System(d.c.Node())) // whoever's order made this node ask
	var out *dcpb.DataHeldReply
	err := d.query(ctx, file.Root, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (err error) {
		q.Header = h
		out, err = s.Held(ctx, q)
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(out.Held) != len(ids) {
		return nil, dc.Errorf(dc.Internal, "held", "", "%d answers for %d blocks", len(out.Held), len(ids))
	}
	holds := make([]file.Hold, len(ids))
	for i, here := range out.Held {
		switch {
		case here:
			holds[i] = file.Here
		case len(out.Ordered) == len(ids) && out.Ordered[i]:
			holds[i] = file.Ordered
		case len(out.Elsewhere) == len(ids) && out.Elsewhere[i]: // an earlier version does not tell
			holds[i] = file.Elsewhere
		}
	}
	return holds, nil
}

// Clone makes a part of one file share the blocks of a part of another and tells how many bytes it did that with, and the attributes of c.To then. It stops early
// at the end of c.From, before bytes that lie in no block (0 if those come first: copy them), or after a bounded number of extents.
func (d *Data) Clone(ctx context.Context, c file.Clone) (n int64, to file.Attr, err error) {
	q := &dcpb.DataCloneRequest{From: uint64(c.From), FromOff: c.FromOff, To: uint64(c.To), ToOff: c.ToOff, Len: c.Len, Mtime: c.Mtime}
	own := d.cache.begin(c.To, c.From)
	out, err := d.change(ctx, own, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (*dcpb.DataAttrReply, error) {
		q.Header = h
		return s.Clone(ctx, q)
	})
	own.end(out, err, nil)
	return out.GetOffset(), attrOf(out.GetAttr()), err
}
