package client

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

// KVRow describes a row or directory of a table.
type KVRow struct {
	Key      string // in a listing: the name
	Dir      bool
	Size     int64
	Revision dc.Revision // of the last change of the value: the row's version
	Created  dc.Revision // at which it was made
	ModTime  time.Time   // zero for a directory that exists only by the rows below it
	Mode     uint32
	UID, GID uint32
	Expires  time.Time // when it goes by itself; zero: it stays
}

// KVHow says how a put changes a value.
type KVHow uint32

// The ways to put.
const (
	KVReplace KVHow = iota // the value becomes Data
	KVAppend               // Data goes at the end
	KVPatch                // Data goes at Offset; a gap is zeros
	KVResize               // the value is cut, or extended with zeros, to Offset bytes
	KVTouch                // an empty row is made if there is none
)

// KVPut is one change of a row's value.
type KVPut struct {
	How       KVHow
	Data      []byte
	Offset    int64
	Exclusive bool        // dc.Exists if there is a row
	MustExist bool        // dc.NotFound if there is none
	IfCreated dc.Revision // not zero: dc.Stale unless the row is the one made at that revision
	Mode      uint32      // of a row that is made
}

// KVPair is a key and its value.
type KVPair struct {
	Key      string
	Value    []byte
	Revision dc.Revision // in a scan
}

// KVCondition is one condition of a transaction; all that is set must hold.
type KVCondition struct {
	Key             string
	Version         *dc.Revision // 0: there is no row
	Absent, Present bool
	Value           []byte // not nil: equal to this
}

// KVAction is one action of a transaction: exactly one of Put, Append, Add and Delete is set.
type KVAction struct {
	Key         string
	Put, Append []byte // not nil
	Add         *int64
	Delete      bool
}

// KVTxn does Then if all conditions hold, else Else, at once.
type KVTxn struct {
	If         []KVCondition
	Then, Else []KVAction
}

// KVTxnResult is what a transaction came to. Values are the sums of its adds.
type KVTxnResult struct {
	Succeeded bool
	Revision  dc.Revision
	Values    []KVPair
}

// KVScan says which rows to scan; empty bounds are none.
type KVScan struct {
	From, To, Prefix  string
	Limit             uint64
	KeysOnly, Reverse bool
}

// KVStat is how large a table is.
type KVStat struct {
	Rows, Bytes uint64
	Revision    dc.Revision
	ModTime     time.Time
	TTL         time.Duration // of rows that are made or replaced; 0: for ever
	Leader      dc.NodeID     // that answered for the table's group
	Ranges      []KVRange     // in key order; at least one
}

// KV is the client of the tables. It is safe for concurrent use. A table is named by its descriptor, from [KV.Table]; a method on a
// table that was dropped meanwhile answers dc.NotFound and forgets the descriptor.
type KV struct {
	c    *Client
	meta *Meta
}

// NewKV makes it.
func NewKV(c *Client, m *Meta) *KV { return &KV{c: c, meta: m} }

const kindTable = "table"

// CreateTable makes a table; dc.Exists if there is one.
func (k *KV) CreateTable(ctx context.Context, name string, mode uint32) (Descriptor, error) {
	return k.meta.CreateDescriptor(ctx, kindTable, name, mode)
}

// Table finds a table; dc.NotFound if there is none.
func (k *KV) Table(ctx context.Context, name string) (Descriptor, error) {
	return k.meta.Descriptor(ctx, kindTable, name)
}

// Tables lists up to limit tables after a name.
func (k *KV) Tables(ctx context.Context, after string, limit int) ([]Descriptor, error) {
	return k.meta.ListDescriptors(ctx, kindTable, after, limit)
}

// DropTable ends a table and frees its name; with onlyIfEmpty it answers dc.NotEmpty if there are rows. It may be repeated.
func (k *KV) DropTable(ctx context.Context, t Descriptor, onlyIfEmpty bool) error {
	err := k.c.Mutate(ctx, t.Group, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
		_, err := dcpb.NewKVClient(cc).Drop(ctx, &dcpb.KVDropRequest{Header: h, Table: t.ID, OnlyIfEmpty: onlyIfEmpty})
		return err
	})
	if err != nil {
		return err
	}
	return k.meta.MarkDropping(ctx, kindTable, t.ID)
}

// gone heals what a crash in the middle of a drop left: the table's group says it was dropped, so its name must go.
func (k *KV) gone(ctx context.Context, t Descriptor, err error) error {
	e, ok := errors.AsType[*dc.Error](err)
	if !ok || e.Kind != dc.NotFound || e.Err == nil || e.Path != "" {
		return err
	}
	k.meta.Forget(kindTable, t.Name)
	if dropErr := k.meta.MarkDropping(ctx, kindTable, t.ID); dropErr != nil && dc.KindOf(dropErr) != dc.NotFound {
		return errors.Join(err, dropErr)
	}
	return err
}

func (k *KV) query(ctx context.Context, t Descriptor, call Call) error {
	return inTable(t, k.gone(ctx, t, k.c.Query(ctx, t.Group, call)))
}

func (k *KV) mutate(ctx context.Context, t Descriptor, call Call) error {
	return inTable(t, k.gone(ctx, t, k.c.Mutate(ctx, t.Group, call)))
}

// inTable has an error of a table's service, which knows its number and keys, name the table.
func inTable(t Descriptor, err error) error {
	e, ok := err.(*dc.Error)
	if !ok || !strings.HasPrefix(e.Op, "kv.") {
		return err
	}
	named := *e
	if named.Path = t.Name; e.Path != "" {
		named.Path += "/" + e.Path
	}
	return &named
}

// Stat describes a row or directory.
func (k *KV) Stat(ctx context.Context, t Descriptor, key string) (KVRow, error) {
	row, _, err := k.get(ctx, t, key, false)
	return row, err
}

// Get reads a row and its value, linearizably.
func (k *KV) Get(ctx context.Context, t Descriptor, key string) (KVRow, []byte, error) {
	return k.get(ctx, t, key, true)
}

func (k *KV) get(ctx context.Context, t Descriptor, key string, value bool) (KVRow, []byte, error) {
	var reply *dcpb.KVGetReply
	err := k.query(ctx, t, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) (err error) {
		reply, err = dcpb.NewKVClient(cc).Get(ctx, &dcpb.KVGetRequest{Header: h, Table: t.ID, Key: []byte(key), Value: value})
		return err
	})
	if err != nil {
		return KVRow{}, nil, err
	}
	return kvRow(reply.Row), reply.Value, nil
}

func kvRow(r *dcpb.KVRowInfo) KVRow {
	row := KVRow{
		Key: string(r.Key), Dir: r.Dir, Size: int64(r.Size), Revision: dc.Revision(r.Revision), Created: dc.Revision(r.Created), Mode: r.Mode, UID: r.Uid, GID: r.Gid,
	}
	if r.MtimeMs != 0 {
		row.ModTime = time.UnixMilli(r.MtimeMs)
	}
	if r.ExpiresMs != 0 {
		row.Expires = time.UnixMilli(r.ExpiresMs)
	}
	return row
}

// List gives up to limit (at most dc.MaxScanPage) children of a directory, "" for the table, in name order after a name.
func (k *KV) List(ctx context.Context, t Descriptor, dir, after string, limit int) ([]KVRow, error) {
	var reply *dcpb.KVListReply
	err := k.query(ctx, t, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) (err error) {
		reply, err = dcpb.NewKVClient(cc).List(ctx, &dcpb.KVListRequest{Header: h, Table: t.ID, Dir: []byte(dir), After: []byte(after), Limit: uint32(limit)})
		return err
	})
	if err != nil {
		return nil, err
	}
	rows := make([]KVRow, len(reply.Rows))
	for i, r := range reply.Rows {
		rows[i] = kvRow(r)
	}
	return rows, nil
}

// change sends one mutation that answers with a row.
func (k *KV) change(ctx context.Context, t Descriptor, send func(context.Context, dcpb.KVClient, *dcpb.Header) (*dcpb.KVChangeReply, error)) (KVRow, error) {
	var reply *dcpb.KVChangeReply
	err := k.mutate(ctx, t, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) (err error) {
		reply, err = send(ctx, dcpb.NewKVClient(cc), h)
		return err
	})
	if err != nil || reply.Row == nil {
		return KVRow{}, err
	}
	return kvRow(reply.Row), nil
}

// Put changes a row's value and returns when that is replicated and durable.
func (k *KV) Put(ctx context.Context, t Descriptor, key string, p KVPut) (KVRow, error) {
	return k.change(ctx, t, func(ctx context.Context, cc dcpb.KVClient, h *dcpb.Header) (*dcpb.KVChangeReply, error) {
		return cc.Put(ctx, &dcpb.KVPutRequest{
			Header: h, Table: t.ID, Key: []byte(key), How: uint32(p.How), Data: p.Data, Offset: uint64(p.Offset),
			Exclusive: p.Exclusive, MustExist: p.MustExist, IfCreated: uint64(p.IfCreated), Mode: p.Mode,
		})
	})
}

// Remove removes a row, or an empty directory if dir.
func (k *KV) Remove(ctx context.Context, t Descriptor, key string, dir bool) error {
	_, err := k.change(ctx, t, func(ctx context.Context, cc dcpb.KVClient, h *dcpb.Header) (*dcpb.KVChangeReply, error) {
		return cc.Remove(ctx, &dcpb.KVRemoveRequest{Header: h, Table: t.ID, Key: []byte(key), Dir: dir})
	})
	return err
}

// Mkdir makes a directory.
func (k *KV) Mkdir(ctx context.Context, t Descriptor, key string, mode uint32) (KVRow, error) {
	return k.change(ctx, t, func(ctx context.Context, cc dcpb.KVClient, h *dcpb.Header) (*dcpb.KVChangeReply, error) {
		return cc.Mkdir(ctx, &dcpb.KVMkdirRequest{Header: h, Table: t.ID, Key: []byte(key), Mode: mode})
	})
}

// Rename moves a row inside its table, replacing another unless noReplace.
func (k *KV) Rename(ctx context.Context, t Descriptor, from, to string, noReplace bool) error {
	_, err := k.change(ctx, t, func(ctx context.Context, cc dcpb.KVClient, h *dcpb.Header) (*dcpb.KVChangeReply, error) {
		return cc.Rename(ctx, &dcpb.KVRenameRequest{Header: h, Table: t.ID, From: []byte(from), To: []byte(to), NoReplace: noReplace})
	})
	return err
}

// SetAttr changes mode, owner and time; nil is left alone.
func (k *KV) SetAttr(ctx context.Context, t Descriptor, key string, mode, uid, gid *uint32, mtime *time.Time) error {
	_, err := k.change(ctx, t, func(ctx context.Context, cc dcpb.KVClient, h *dcpb.Header) (*dcpb.KVChangeReply, error) {
		r := &dcpb.KVSetAttrRequest{Header: h, Table: t.ID, Key: []byte(key), Mode: mode, Uid: uid, Gid: gid}
		if mtime != nil {
			ms := mtime.UnixMilli()
			r.MtimeMs = &ms
		}
		return cc.SetAttr(ctx, r)
	})
	return err
}

// SetTTL gives a row a time to live from now on; 0: for ever. Replacing its value gives it that of the table again.
func (k *KV) SetTTL(ctx context.Context, t Descriptor, key string, ttl time.Duration) error {
	ms := ttl.Milliseconds()
	_, err := k.change(ctx, t, func(ctx context.Context, cc dcpb.KVClient, h *dcpb.Header) (*dcpb.KVChangeReply, error) {
		return cc.SetAttr(ctx, &dcpb.KVSetAttrRequest{Header: h, Table: t.ID, Key: []byte(key), TtlMs: &ms})
	})
	return err
}

// SetTableTTL says how long rows of a table live that are made, or whose value is replaced, from now on; 0: for ever.
func (k *KV) SetTableTTL(ctx context.Context, t Descriptor, ttl time.Duration) error {
	ms := ttl.Milliseconds()
	_, err := k.change(ctx, t, func(ctx context.Context, cc dcpb.KVClient, h *dcpb.Header) (*dcpb.KVChangeReply, error) {
		return cc.SetTable(ctx, &dcpb.KVSetTableRequest{Header: h, Table: t.ID, TtlMs: &ms})
	})
	return err
}

// Load puts many rows at once; together they must fit into one command (dc.MaxBatchBytes is a good size).
func (k *KV) Load(ctx context.Context, t Descriptor, rows []KVPair) error {
	out := make([]*dcpb.KVPair, len(rows))
	for i, r := range rows {
		out[i] = &dcpb.KVPair{Key: []byte(r.Key), Value: r.Value}
	}
	_, err := k.change(ctx, t, func(ctx context.Context, cc dcpb.KVClient, h *dcpb.Header) (*dcpb.KVChangeReply, error) {
		return cc.Load(ctx, &dcpb.KVLoadRequest{Header: h, Table: t.ID, Rows: out})
	})
	return err
}

// TableStat tells how large a table is.
func (k *KV) TableStat(ctx context.Context, t Descriptor) (KVStat, error) {
	var reply *dcpb.KVStatReply
	err := k.query(ctx, t, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) (err error) {
		reply, err = dcpb.NewKVClient(cc).Stat(ctx, &dcpb.KVStatRequest{Header: h, Table: t.ID})
		return err
	})
	if err != nil {
		return KVStat{}, err
	}
	st := KVStat{
		Rows: reply.Rows, Bytes: reply.Bytes, Revision: dc.Revision(reply.Revision), TTL: time.Duration(reply.TtlMs) * time.Millisecond, Ranges: kvRanges(reply),
	}
	if likely := k.c.Leader(t.Group); len(likely) > 0 { // it has just answered
		st.Leader = likely[0]
	}
	if reply.MtimeMs != 0 {
		st.ModTime = time.UnixMilli(reply.MtimeMs)
	}
	return st, nil
}

// Txn runs a transaction.
func (k *KV) Txn(ctx context.Context, t Descriptor, x KVTxn) (KVTxnResult, error) {
	var reply *dcpb.KVTxnReply
	err := k.mutate(ctx, t, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) (err error) {
		r := &dcpb.KVTxnRequest{Header: h, Table: t.ID, Then: kvActions(x.Then), Otherwise: kvActions(x.Else)}
		for _, c := range x.If {
			r.Conditions = append(r.Conditions, &dcpb.KVCondition{Key: []byte(c.Key), Version: (*uint64)(c.Version), Absent: c.Absent, Present: c.Present, Value: c.Value})
		}
		reply, err = dcpb.NewKVClient(cc).Txn(ctx, r)
		return err
	})
	if err != nil {
		return KVTxnResult{}, err
	}
	res := KVTxnResult{Succeeded: reply.Succeeded, Revision: dc.Revision(reply.Revision)}
	for _, v := range reply.Values {
		res.Values = append(res.Values, KVPair{Key: string(v.Key), Value: v.Value})
	}
	return res, nil
}

func kvActions(in []KVAction) []*dcpb.KVAction {
	out := make([]*dcpb.KVAction, len(in))
	for i, a := range in {
		o := &dcpb.KVAction{Key: []byte(a.Key)}
		switch {
		case a.Delete:
			o.Act = &dcpb.KVAction_Delete{Delete: true}
		case a.Add != nil:
			o.Act = &dcpb.KVAction_Add{Add: *a.Add}
		case a.Append != nil:
			o.Act = &dcpb.KVAction_Append{Append: a.Append}
		default:
			o.Act = &dcpb.KVAction_Put{Put: a.Put}
		}
		out[i] = o
	}
	return out
}

// Scan calls fn for each row in key order, as of one moment, until it returns an error. If the leader is lost in the middle the scan ends
// with dc.Internal; begin again after the last key.
func (k *KV) Scan(ctx context.Context, t Descriptor, s KVScan, fn func(KVPair) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	begun := false
	err := k.c.Stream(ctx, t.Group, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
		stream, err := dcpb.NewKVClient(cc).Scan(ctx, &dcpb.KVScanRequest{
			Header: h, Table: t.ID, From: []byte(s.From), To: []byte(s.To), Prefix: []byte(s.Prefix), Limit: s.Limit, KeysOnly: s.KeysOnly, Reverse: s.Reverse,
		})
		if err != nil {
			return err
		}
		for {
			page, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil && begun { // not again from the start
				return dc.Errorf(dc.Internal, "kv.scan", "", "the scan was cut off: %w", err)
			}
			if err != nil {
				return err
			}
			for _, p := range page.Rows {
				begun = true
				if err := fn(KVPair{Key: string(p.Key), Value: p.Value, Revision: dc.Revision(p.Revision)}); err != nil {
					return err
				}
			}
		}
	})
	return inTable(t, k.gone(ctx, t, err))
}
