package kv

import (
	"context"

	"google.golang.org/grpc"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/rpc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/kv"
)

// Get reads a row or directory, with its value if asked for.
func (s *Service) Get(ctx context.Context, r *dcpb.KVGetRequest) (*dcpb.KVGetReply, error) {
	const op = "kv.get"
	if err := kv.CheckKey(op, r.Key); err != nil {
		return nil, err
	}
	reply := &dcpb.KVGetReply{}
	return reply, s.view(ctx, op, r.Header, r.Table, func(rd storage.Reader) error {
		row := kv.Row(rd, r.Table, r.Key)
		if row == nil {
			return dc.Errorf(dc.NotFound, op, string(r.Key), "")
		}
		reply.Row = rowInfo(nil, row)
		if r.Value {
			reply.Value = row.Value
		}
		return nil
	})
}

// List gives a page of a directory.
func (s *Service) List(ctx context.Context, r *dcpb.KVListRequest) (*dcpb.KVListReply, error) {
	const op = "kv.list"
	limit := int(r.Limit)
	if limit <= 0 || limit > dc.MaxScanPage {
		limit = dc.MaxScanPage
	}
	reply := &dcpb.KVListReply{}
	return reply, s.view(ctx, op, r.Header, r.Table, func(rd storage.Reader) error {
		if len(r.Dir) > 0 {
			switch d := kv.Row(rd, r.Table, r.Dir); {
			case d == nil:
				return dc.Errorf(dc.NotFound, op, string(r.Dir), "")
			case !d.Dir:
				return dc.Errorf(dc.NotDir, op, string(r.Dir), "")
			}
		}
		for _, e := range kv.List(rd, r.Table, r.Dir, r.After, limit) {
			reply.Rows = append(reply.Rows, rowInfo(e.Key, e.Row))
		}
		return nil
	})
}

// Put changes a value.
func (s *Service) Put(ctx context.Context, r *dcpb.KVPutRequest) (*dcpb.KVChangeReply, error) {
	if err := kv.CheckValue("kv.put", r.Key, max(uint64(len(r.Data)), r.Offset)); err != nil {
		return nil, err
	}
	if _, ok := command.KVHow_name[int32(r.How)]; !ok {
		return nil, dc.Errorf(dc.Invalid, "kv.put", string(r.Key), "this node does not know how to put of kind %d", r.How)
	}
	return s.change(ctx, "kv.put", r.Header, &command.KVPut{
		Table: r.Table, Key: r.Key, How: command.KVHow(r.How), Data: r.Data, Offset: r.Offset, Exclusive: r.Exclusive,
		MustExist: r.MustExist, IfCreated: r.IfCreated, Owner: owner(rpc.Principal(r.Header), r.Mode),
	})
}

// Remove removes a row or an empty directory.
func (s *Service) Remove(ctx context.Context, r *dcpb.KVRemoveRequest) (*dcpb.KVChangeReply, error) {
	if err := kv.CheckKey("kv.remove", r.Key); err != nil {
		return nil, err
	}
	return s.change(ctx, "kv.remove", r.Header, &command.KVRemove{Table: r.Table, Key: r.Key, Dir: r.Dir})
}

// Mkdir makes a directory of a table.
func (s *Service) Mkdir(ctx context.Context, r *dcpb.KVMkdirRequest) (*dcpb.KVChangeReply, error) {
	return s.change(ctx, "kv.mkdir", r.Header, &command.KVMkdir{Table: r.Table, Key: r.Key, Owner: owner(rpc.Principal(r.Header), r.Mode)})
}

// Rename moves a row.
func (s *Service) Rename(ctx context.Context, r *dcpb.KVRenameRequest) (*dcpb.KVChangeReply, error) {
	return s.change(ctx, "kv.rename", r.Header, &command.KVRename{Table: r.Table, From: r.From, To: r.To, NoReplace: r.NoReplace})
}

// SetAttr changes owner, mode and time.
func (s *Service) SetAttr(ctx context.Context, r *dcpb.KVSetAttrRequest) (*dcpb.KVChangeReply, error) {
	if r.TtlMs != nil {
		if err := s.cfg.Expiry(); err != nil {
			return nil, err
		}
	}
	return s.change(ctx, "kv.setattr", r.Header, &command.KVSetAttr{
		Table: r.Table, Key: r.Key, Mode: r.Mode, Uid: r.Uid, Gid: r.Gid, MtimeMs: r.MtimeMs, TtlMs: r.TtlMs,
	})
}

// SetTable changes a table's settings.
func (s *Service) SetTable(ctx context.Context, r *dcpb.KVSetTableRequest) (*dcpb.KVChangeReply, error) {
	if err := s.cfg.Expiry(); err != nil {
		return nil, err
	}
	return s.change(ctx, "kv.ctl", r.Header, &command.KVSetTable{Table: r.Table, TtlMs: r.TtlMs})
}

// Load puts many rows in one command.
func (s *Service) Load(ctx context.Context, r *dcpb.KVLoadRequest) (*dcpb.KVChangeReply, error) {
	return s.change(ctx, "kv.load", r.Header, &command.KVLoad{Table: r.Table, Rows: pairs(r.Rows), Owner: owner(rpc.Principal(r.Header), 0o644)})
}

func pairs(in []*dcpb.KVPair) []*command.KVPair {
	out := make([]*command.KVPair, len(in))
	for i, p := range in {
		out[i] = &command.KVPair{Key: p.Key, Value: p.Value}
	}
	return out
}

// Txn does one list of actions or the other, by conditions.
func (s *Service) Txn(ctx context.Context, r *dcpb.KVTxnRequest) (*dcpb.KVTxnReply, error) {
	rep, p, err := s.admit("kv.txn", r.Header)
	if err != nil {
		return nil, err
	}
	c := &command.KVTxn{Table: r.Table, Then: actions(r.Then), Otherwise: actions(r.Otherwise), Owner: owner(p, 0o644)}
	for _, x := range r.Conditions {
		c.Conditions = append(c.Conditions, &command.KVCondition{Key: x.Key, Version: x.Version, Absent: x.Absent, Present: x.Present, Value: x.Value})
	}
	res, err := propose(ctx, rep, rpc.RequestID(r.Header), c)
	if err != nil {
		return nil, err
	}
	reply := &dcpb.KVTxnReply{Succeeded: res.Succeeded, Revision: res.Revision}
	for _, v := range res.Values {
		reply.Values = append(reply.Values, &dcpb.KVPair{Key: v.Key, Value: v.Value})
	}
	return reply, nil
}

func actions(in []*dcpb.KVAction) []*command.KVAction {
	out := make([]*command.KVAction, len(in))
	for i, a := range in {
		o := &command.KVAction{Key: a.Key}
		switch act := a.Act.(type) {
		case *dcpb.KVAction_Put:
			o.Act = &command.KVAction_Put{Put: act.Put}
		case *dcpb.KVAction_Append:
			o.Act = &command.KVAction_Append{Append: act.Append}
		case *dcpb.KVAction_Add:
			o.Act = &command.KVAction_Add{Add: act.Add}
		case *dcpb.KVAction_Delete:
			o.Act = &command.KVAction_Delete{Delete: act.Delete}
		}
		out[i] = o
	}
	return out
}

// scanBytes is about how much one message of a scan holds.
const scanBytes = 128 * dc.KiB

// Scan streams the rows of a table as of one moment. The moment is held as long as the stream lasts; ctx bounds that.
func (s *Service) Scan(r *dcpb.KVScanRequest, out grpc.ServerStreamingServer[dcpb.KVScanReply]) error {
	return s.view(out.Context(), "kv.scan", r.Header, r.Table, func(rd storage.Reader) error {
		page, size, n := &dcpb.KVScanReply{}, 0, uint64(0)
		for e := range kv.Scan(rd, r.Table, kv.ScanSpec{From: r.From, To: r.To, Prefix: r.Prefix, Reverse: r.Reverse}) {
			p := &dcpb.KVPair{Key: e.Key, Revision: e.Row.Revision}
			if !r.KeysOnly {
				p.Value = e.Row.Value
			}
			page.Rows = append(page.Rows, p)
			size += len(p.Key) + len(p.Value)
			if size >= scanBytes {
				if err := out.Send(page); err != nil {
					return err
				}
				page, size = &dcpb.KVScanReply{}, 0
			}
			if n++; r.Limit > 0 && n == r.Limit {
				break
			}
		}
		if len(page.Rows) == 0 {
			return nil
		}
		return out.Send(page)
	})
}

// Stat tells how large a table is.
func (s *Service) Stat(ctx context.Context, r *dcpb.KVStatRequest) (*dcpb.KVStatReply, error) {
	reply := &dcpb.KVStatReply{}
	return reply, s.view(ctx, "kv.stat", r.Header, r.Table, func(rd storage.Reader) error {
		t, rev := kv.Totals(rd, r.Table)
		reply.Rows, reply.Bytes, reply.MtimeMs, reply.Revision, reply.TtlMs, reply.Ranges = t.Rows, t.Bytes, t.MtimeMs, uint64(rev), t.TtlMs, nil
		for _, g := range kv.Ranges(rd, r.Table) {
			reply.Ranges = append(reply.Ranges, &dcpb.KVRangeInfo{Id: g.ID, Epoch: g.Epoch, Start: g.Start, End: g.End, Rows: g.Rows, Bytes: g.Bytes})
		}
		return nil
	})
}

// Drop ends a table.
func (s *Service) Drop(ctx context.Context, r *dcpb.KVDropRequest) (*dcpb.KVChangeReply, error) {
	return s.change(ctx, "kv.drop", r.Header, &command.KVDrop{Table: r.Table, OnlyIfEmpty: r.OnlyIfEmpty})
}
