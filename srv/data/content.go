package data

import (
	"context"
	"slices"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/dcpb"
	"missingos/srv/replica"
	"missingos/srv/rpc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/data"
)

// Open checks that the caller may open an inode so, notes that its session has it open, and gives the beginning of its content.
func (s *Service) Open(ctx context.Context, q *dcpb.DataOpenRequest) (out *dcpb.DataContentReply, err error) {
	ino := file.Ino(q.Ino)
	// Noted before the inode is read: no purge misses the note, and what is being purged already cannot be opened.
	if !s.openFiles(dc.GroupID(q.Header.GetGroup())).opened(q.Session, q.Opened, ino) {
		return nil, dc.Errorf(dc.Stale, "open", ino.String(), "the file has been removed")
	}
	grant, err := s.view(ctx, "open", q.Header, func(rd storage.Reader, who *command.DataCaller, l *look) error {
		l.about(q.Ino)
		in, err := data.Open(rd, who, ino, q.Access)
		if err == nil {
			out = content(rd, in, 0)
		}
		return err
	})
	if out != nil {
		out.Grant = grant
	}
	return out, err
}

// Content gives the content of an inode from an offset on: the inline run and a page of extents.
func (s *Service) Content(ctx context.Context, q *dcpb.DataContentRequest) (out *dcpb.DataContentReply, err error) {
	grant, err := s.view(ctx, "read", q.Header, func(rd storage.Reader, _ *command.DataCaller, l *look) error {
		l.about(q.Ino)
		in, err := data.Inode(rd, file.Ino(q.Ino))
		if err == nil {
			out = content(rd, in, q.From)
		}
		return err
	})
	if out != nil {
		out.Grant = grant
	}
	return out, err
}

func content(rd storage.Reader, in *command.DataInode, from int64) *dcpb.DataContentReply {
	out := &dcpb.DataContentReply{Attr: attr(in), InlineOff: in.InlineOff, Inline: in.Inline, From: from}
	extents, to := data.Extents(rd, file.Ino(in.Ino), from, file.MaxExtentsPage)
	out.To = to
	for _, e := range extents {
		w := &dcpb.DataExtent{Off: e.Off, Len: e.Len, Block: e.Block.Bytes(), BlockOff: e.BlockOff}
		for _, n := range e.Nodes {
			w.Nodes = append(w.Nodes, uint64(n))
		}
		out.Extents = append(out.Extents, w)
	}
	return out
}

// SetAttr changes attributes. A truncate of a file with many extents takes several commands; the last carries the request's id.
func (s *Service) SetAttr(ctx context.Context, q *dcpb.DataSetAttrRequest) (*dcpb.DataAttrReply, error) {
	const op = "setattr"
	r, who, err := s.admit(op, q.Header)
	if err != nil {
		return nil, err
	}
	set := &command.DataSetAttr{
		Ino: q.Ino, Mode: q.Mode, Uid: q.Uid, Gid: q.Gid, Size: q.Size, Atime: q.Atime, Mtime: q.Mtime, TimesNow: q.TimesNow, Open: q.Open,
	}
	if q.Size != nil {
		if err := shrink(ctx, r, who, q.Now, set); err != nil {
			return nil, err
		}
	}
	return s.change(ctx, op, q.Header, q.Now, &command.DataCommand{Op: &command.DataCommand_SetAttr{SetAttr: set}})
}

// shrink cuts a file down in steps until one command can do the rest.
func shrink(ctx context.Context, r replica.Replica, who *command.DataCaller, now int64, set *command.DataSetAttr) error {
	step := &command.DataCommand{
		Version: data.FirstVersion, Caller: who, Now: now,
		Op: &command.DataCommand_SetAttr{SetAttr: &command.DataSetAttr{Ino: set.Ino, Size: set.Size, Open: set.Open}},
	}
	for {
		many := false
		err := r.View(ctx, func(rd storage.Reader) error {
			many = data.ManyBeyond(rd, file.Ino(set.Ino), set.GetSize())
			return nil
		})
		if err != nil || !many {
			return err
		}
		if _, err := propose(ctx, r, r.NewID(), step); err != nil {
			return err
		}
	}
}

// Commit publishes written data.
func (s *Service) Commit(ctx context.Context, q *dcpb.DataCommitRequest) (*dcpb.DataAttrReply, error) {
	c := &command.DataCommit{
		Ino: q.Ino, HasInline: q.HasInline, InlineOff: q.InlineOff, Inline: q.Inline, Fold: q.Fold, FoldLen: q.FoldLen, Size: q.Size,
	}
	for _, b := range q.Blocks {
		c.Blocks = append(c.Blocks, &command.DataLocation{Block: b.Block, Size: b.Size, Nodes: b.Nodes})
	}
	for _, p := range q.Pieces {
		c.Pieces = append(c.Pieces, &command.DataPiece{Off: p.Off, Len: p.Len, Block: p.Block, BlockOff: p.BlockOff})
	}
	out, err := s.change(ctx, "write", q.Header, q.Mtime, &command.DataCommand{Op: &command.DataCommand_Commit{Commit: c}})
	if err == nil {
		s.thin(dc.GroupID(q.Header.GetGroup()), q.Blocks...)
	}
	return out, err
}

// Append adds data at the end of a file.
func (s *Service) Append(ctx context.Context, q *dcpb.DataAppendRequest) (*dcpb.DataAttrReply, error) {
	c := &command.DataAppend{Ino: q.Ino, Inline: q.Inline, Fold: q.Fold, FoldLen: q.FoldLen}
	if b := q.Block; b != nil {
		c.Block = &command.DataLocation{Block: b.Block, Size: b.Size, Nodes: b.Nodes}
	}
	out, err := s.change(ctx, "append", q.Header, q.Mtime, &command.DataCommand{Op: &command.DataCommand_Append{Append: c}})
	if err == nil && q.Block != nil {
		s.thin(dc.GroupID(q.Header.GetGroup()), q.Block)
	}
	return out, err
}

// Clone makes a part of one file share the blocks of a part of another.
func (s *Service) Clone(ctx context.Context, q *dcpb.DataCloneRequest) (*dcpb.DataAttrReply, error) {
	return s.change(ctx, "clone", q.Header, q.Mtime, &command.DataCommand{Op: &command.DataCommand_Clone{Clone: &command.DataClone{
		From: q.From, FromOff: q.FromOff, To: q.To, ToOff: q.ToOff, Len: q.Len,
	}}})
}

// Report notes what a session has open.
func (s *Service) Report(_ context.Context, q *dcpb.DataReportRequest) (*dcpb.DataReportReply, error) {
	if _, _, err := s.admit("report", q.Header); err != nil {
		return nil, err
	}
	s.openFiles(dc.GroupID(q.Header.GetGroup())).report(q.Session, q.Opened, q.Inos)
	return &dcpb.DataReportReply{}, nil
}

// Held tells which blocks of the caller's node are referenced and should be there.
func (s *Service) Held(ctx context.Context, q *dcpb.DataHeldRequest) (*dcpb.DataHeldReply, error) {
	out := &dcpb.DataHeldReply{}
	if len(q.Blocks) > dc.MaxScanPage {
		return nil, dc.Errorf(dc.Invalid, "held", "", "%d blocks exceed the limit of %d a request", len(q.Blocks), dc.MaxScanPage)
	}
	node := rpc.Principal(q.Header).Node
	_, err := s.view(ctx, "held", q.Header, func(rd storage.Reader, _ *command.DataCaller, _ *look) error {
		for _, b := range q.Blocks {
			id, err := file.ParseBlockID(b)
			if err != nil {
				return err
			}
			h, ok := data.Held(rd, 0, id)
			here := ok && slices.Contains(h.Nodes, node)
			out.Ordered = append(out.Ordered, !here && data.AwaitsDeletion(rd, 0, b, node))
			out.Held, out.Elsewhere = append(out.Held, here), append(out.Elsewhere, ok && !here)
		}
		return nil
	})
	return out, err
}
