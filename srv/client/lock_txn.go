package client

import (
	"context"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

// LockTxn is if/then/else over paths, done as one revision.
type LockTxn struct {
	If         []LockCondition
	Then, Else []LockOp
}

// A LockCondition holds if everything that it sets does.
type LockCondition struct {
	Path    string
	Version *dc.Revision
	Absent  bool
	Present bool
	Value   *[]byte
	Fence   *dc.Revision // the lock named Path is held under this fencing token
	Created *dc.Revision // the file is the one made at this revision
}

// A LockVerb is what an operation of a transaction does.
type LockVerb uint8

// The verbs of a transaction.
const (
	LockPutOp LockVerb = iota + 1
	LockDeleteOp
	LockReadOp
	LockMkdirOp
	LockAppendOp
	LockListOp // a directory: its own record and then those of its files, with values
)

// A LockOp is one operation of a transaction.
type LockOp struct {
	Verb  LockVerb
	Path  string
	Value []byte
	Limit int    // of a list; 0: all, or as many as a transaction may read
	After string // of a list: names after this one
}

// LockTxnResult is what became of a transaction.
type LockTxnResult struct {
	Then     bool // the conditions held
	Revision dc.Revision
	Reads    []LockFile // in the order of the reads
}

// Txn runs a transaction. Conditions that do not hold are no error: see LockTxnResult.Then.
func (l *Lock) Txn(ctx context.Context, t LockTxn) (LockTxnResult, error) {
	conditions := make([]*dcpb.LockTxnCondition, 0, len(t.If))
	for _, c := range t.If {
		x := &dcpb.LockTxnCondition{Path: c.Path, Version: (*uint64)(c.Version), Absent: c.Absent, Present: c.Present, Fence: (*uint64)(c.Fence), Created: (*uint64)(c.Created)}
		if c.Value != nil {
			x.Value = append([]byte{}, *c.Value...)
		}
		conditions = append(conditions, x)
	}
	r, err := lockCall(ctx, l, true, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockTxnReply, error) {
		return c.Txn(ctx, &dcpb.LockTxnRequest{Header: h, Conditions: conditions, Then: lockOps(t.Then), Otherwise: lockOps(t.Else)})
	})
	out := LockTxnResult{Then: r.GetThen(), Revision: dc.Revision(r.GetRevision())}
	for _, f := range r.GetReads() {
		out.Reads = append(out.Reads, lockFile(f))
	}
	return out, err
}

func lockOps(ops []LockOp) []*dcpb.LockTxnOperation {
	out := make([]*dcpb.LockTxnOperation, 0, len(ops))
	for _, o := range ops {
		out = append(out, &dcpb.LockTxnOperation{Kind: dcpb.LockTxnOperation_Kind(o.Verb), Path: o.Path, Value: o.Value, Limit: uint32(max(0, o.Limit)), After: o.After})
	}
	return out
}

// Swap is compare-and-set: it gives path the value if it is at a version (0: if there is no such file); dc.Conflict if it is not.
// It returns the new version.
func (l *Lock) Swap(ctx context.Context, path string, version dc.Revision, value []byte) (dc.Revision, error) {
	cond := LockCondition{Path: path, Version: &version}
	if version == 0 {
		cond = LockCondition{Path: path, Absent: true}
	}
	r, err := l.Txn(ctx, LockTxn{
		If: []LockCondition{cond}, Then: []LockOp{{Verb: LockPutOp, Path: path, Value: value}}, Else: []LockOp{{Verb: LockReadOp, Path: path}},
	})
	switch {
	case err != nil:
		return 0, err
	case r.Then:
		return r.Revision, nil
	case r.Reads[0].Absent:
		return 0, dc.Errorf(dc.Conflict, "lock.cas", path, "there is no such file (use version 0 to make it)")
	}
	return 0, dc.Errorf(dc.Conflict, "lock.cas", path, "the file is at version %d, not %d: read it again", r.Reads[0].Version, version)
}
