package lock

import (
	"context"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/rpc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/lock"
)

// Stat tells of a file or directory, with its value if asked for.
func (s *Service) Stat(ctx context.Context, r *dcpb.LockStatRequest) (*dcpb.LockStatReply, error) {
	const op = "lock.stat"
	if err := lock.CheckPath(op, r.Path); err != nil {
		return nil, err
	}
	out := &dcpb.LockStatReply{}
	return out, s.look(ctx, op, r.Header, r.At, r.Stale, func(rd storage.Reader) error {
		var f *command.LockFile
		if r.At != 0 {
			f = lock.At(rd, r.Path, dc.Revision(r.At))
		} else {
			f = lock.Stat(rd, r.Path)
		}
		switch {
		case f == nil:
			return dc.Errorf(dc.NotFound, op, r.Path, "")
		case !r.Value:
			f.Value = nil
		case r.At == 0 && !f.Dir:
			f.Value = lock.Value(rd, r.Path)
		}
		if r.At != 0 {
			out.File, out.Revision = fileInfo(f), r.At
			return nil
		}
		out.File, out.Revision = fileInfo(f), lock.Totals(rd).Revision
		if q := lock.Queue(rd, r.Path); q != nil && q.Holders > 0 {
			out.Fence, out.Shared = q.Fence, !q.Exclusive
		}
		return nil
	})
}

// List gives a page of a directory.
func (s *Service) List(ctx context.Context, r *dcpb.LockListRequest) (*dcpb.LockListReply, error) {
	const op = "lock.list"
	if err := lock.CheckPath(op, r.Path); err != nil {
		return nil, err
	}
	limit := int(r.Limit)
	if limit <= 0 || limit > dc.MaxScanPage {
		limit = dc.MaxScanPage
	}
	out := &dcpb.LockListReply{}
	return out, s.look(ctx, op, r.Header, r.At, r.Stale, func(rd storage.Reader) error {
		find, list := lock.Stat, lock.List
		if at := dc.Revision(r.At); at != 0 {
			find = func(rd storage.Reader, path string) *command.LockFile { return lock.At(rd, path, at) }
			list = func(rd storage.Reader, dir, after string, limit int) []*command.LockFile {
				return lock.ListAt(rd, dir, after, limit, at)
			}
		}
		switch f := find(rd, r.Path); {
		case f == nil:
			return dc.Errorf(dc.NotFound, op, r.Path, "")
		case !f.Dir:
			return dc.Errorf(dc.NotDir, op, r.Path, "")
		}
		for _, f := range list(rd, r.Path, r.After, limit) {
			out.Files = append(out.Files, fileInfo(f))
		}
		return nil
	})
}

// Create makes a file or directory.
func (s *Service) Create(ctx context.Context, r *dcpb.LockCreateRequest) (*dcpb.LockChangeReply, error) {
	p := rpc.Principal(r.Header)
	return s.change(ctx, "lock.create", r.Header, &command.LockCreate{
		Path: r.Path, Dir: r.Dir, Exclusive: r.Exclusive, Mode: r.Mode, Uid: p.UID, Gid: p.GID, Session: r.Session, Owner: r.Owner,
	})
}

// Put replaces or extends a value.
func (s *Service) Put(ctx context.Context, r *dcpb.LockPutRequest) (*dcpb.LockChangeReply, error) {
	if len(r.Value) > dc.MaxLockBytes {
		return nil, dc.Errorf(dc.TooLarge, "lock.put", r.Path, "%d bytes exceed the limit of %d KiB of a lock file (MaxLockBytes); keep bulk data in /dc/kv or /dc/data",
			len(r.Value), dc.MaxLockBytes/dc.KiB)
	}
	p := rpc.Principal(r.Header)
	return s.change(ctx, "lock.put", r.Header, &command.LockPut{
		Path: r.Path, Value: r.Value, Append: r.Append, MustExist: r.MustExist, IfVersion: r.IfVersion, IfCreated: r.IfCreated,
		Guard: guard(r.Guard), Mode: r.Mode, Uid: p.UID, Gid: p.GID,
	})
}

func guard(g *dcpb.LockGuard) *command.LockGuard {
	if g == nil {
		return nil
	}
	return &command.LockGuard{Path: g.Path, Session: g.Session, Owner: g.Owner}
}

// Remove removes a file or an empty directory.
func (s *Service) Remove(ctx context.Context, r *dcpb.LockRemoveRequest) (*dcpb.LockChangeReply, error) {
	return s.change(ctx, "lock.remove", r.Header, &command.LockRemove{Path: r.Path, Dir: r.Dir, IfVersion: r.IfVersion, Guard: guard(r.Guard)})
}

// Rename moves a file or directory, replacing a file unless told not to.
func (s *Service) Rename(ctx context.Context, r *dcpb.LockRenameRequest) (*dcpb.LockChangeReply, error) {
	return s.change(ctx, "lock.rename", r.Header, &command.LockRename{From: r.From, To: r.To, NoReplace: r.NoReplace})
}

// SetAttr changes attributes.
func (s *Service) SetAttr(ctx context.Context, r *dcpb.LockSetAttrRequest) (*dcpb.LockChangeReply, error) {
	return s.change(ctx, "lock.setattr", r.Header, &command.LockSetAttr{
		Path: r.Path, Mode: r.Mode, Uid: r.Uid, Gid: r.Gid, Ephemeral: r.Ephemeral, MtimeMs: r.MtimeMs,
	})
}

// Txn runs if/then/else over paths.
func (s *Service) Txn(ctx context.Context, r *dcpb.LockTxnRequest) (*dcpb.LockTxnReply, error) {
	t, p, err := s.admit("lock.txn", r.Header)
	if err != nil {
		return nil, err
	}
	c := &command.LockTxn{Uid: p.UID, Gid: p.GID, Then: operations(r.Then), Otherwise: operations(r.Otherwise)}
	for _, x := range r.Conditions {
		c.Conditions = append(c.Conditions, &command.LockCondition{
			Path: x.Path, Version: x.Version, Absent: x.Absent, Present: x.Present, Value: x.Value, Fence: x.Fence, Created: x.Created,
		})
	}
	res, err := t.do(ctx, rpc.RequestID(r.Header), c)
	if err != nil {
		return nil, err
	}
	out := &dcpb.LockTxnReply{Then: res.Then, Revision: res.Revision}
	for _, f := range res.Reads {
		out.Reads = append(out.Reads, fileInfo(f))
	}
	return out, nil
}

func operations(in []*dcpb.LockTxnOperation) []*command.LockTxnOp {
	out := make([]*command.LockTxnOp, 0, len(in))
	for _, o := range in {
		out = append(out, &command.LockTxnOp{Kind: command.LockTxnOp_Kind(o.Kind), Path: o.Path, Value: o.Value, Limit: o.Limit, After: o.After})
	}
	return out
}

// Totals tells of the store as a whole.
func (s *Service) Totals(ctx context.Context, r *dcpb.LockTotalsRequest) (*dcpb.LockTotalsReply, error) {
	out := &dcpb.LockTotalsReply{}
	return out, s.view(ctx, "lock.stat", r.Header, func(rd storage.Reader) error {
		st := lock.Totals(rd)
		out.Revision, out.Compacted, out.LockDelayMs = st.Revision, st.Compacted, st.LockDelayMs
		out.Files, out.Bytes, out.HistoryBytes = st.Files, st.Bytes, st.HistoryBytes
		out.HistoryAgeMs, out.MaxHistoryBytes, out.MaxHistoryRevisions = st.HistoryAgeMs, maxBytes(st), maxRevisions(st)
		if st.PastFrom > 0 {
			out.PastFrom = max(st.Compacted, st.PastFrom-1)
		}
		return nil
	})
}

// Compact forgets history up to a revision. The reply's More asks the caller to send it again, under another request id.
func (s *Service) Compact(ctx context.Context, r *dcpb.LockCompactRequest) (*dcpb.LockChangeReply, error) {
	return s.change(ctx, "lock.compact", r.Header, &command.LockCompact{Through: r.Through})
}

// Settings changes settings of the store.
func (s *Service) Settings(ctx context.Context, r *dcpb.LockSettingsRequest) (*dcpb.LockChangeReply, error) {
	out, err := s.change(ctx, "lock.ctl", r.Header, &command.LockSettings{
		LockDelayMs: r.LockDelayMs, HistoryAgeMs: r.HistoryAgeMs, HistoryBytes: r.HistoryBytes, HistoryRevisions: r.HistoryRevisions,
	})
	if t := s.term(dc.GroupID(r.Header.GetGroup())); err == nil && t != nil {
		t.mu.Lock()
		t.crowded = true // perhaps now
		t.mu.Unlock()
		signal(t.woken)
	}
	return out, err
}

func fileInfo(f *command.LockFile) *dcpb.LockFileInfo {
	return &dcpb.LockFileInfo{
		Path: f.Path, Dir: f.Dir, Created: f.Created, Version: f.Version, Size: f.Size, Mode: f.Mode, Uid: f.Uid, Gid: f.Gid,
		MtimeMs: f.MtimeMs, Ephemeral: f.Ephemeral, Value: f.Value, Absent: f.Absent, Entries: f.Entries,
	}
}

func holdInfo(h *command.LockHold) *dcpb.LockHoldInfo {
	return &dcpb.LockHoldInfo{
		Path: h.Path, Session: h.Session, Owner: h.Owner, Exclusive: h.Exclusive, Fence: h.Fence, SinceMs: h.SinceMs,
		Node: h.Node, Pid: h.Pid, Command: h.Command,
	}
}
