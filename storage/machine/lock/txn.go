package lock

import (
	"bytes"
	"slices"
	"strings"

	"missingos/srv/dc"
	"missingos/storage/command"
)

// txn runs if/then/else; all that it changes has one revision. An operation that cannot be done fails the whole.
func (s *stage) txn(c *command.LockTxn) (*command.LockResult, error) {
	const op = "lock.txn"
	if len(c.Conditions) > dc.MaxLockTxnOps || len(c.Then) > dc.MaxLockTxnOps || len(c.Otherwise) > dc.MaxLockTxnOps {
		return nil, dc.Errorf(dc.TooLarge, op, "", "more than %d conditions or operations (MaxLockTxnOps)", dc.MaxLockTxnOps)
	}
	res := &command.LockResult{Then: true}
	for _, cond := range c.Conditions {
		if err := CheckPath(op, cond.Path); err != nil {
			return nil, err
		}
		if !s.holds(cond) {
			res.Then = false
			break
		}
	}
	ops := c.Then
	if !res.Then {
		ops = c.Otherwise
	}
	total := 0
	for _, o := range ops {
		total += len(o.Value)
	}
	if total > dc.MaxLockTxnBytes {
		return nil, dc.Errorf(dc.TooLarge, op, "", "%d bytes of values exceed the limit of %d KiB (MaxLockTxnBytes)", total, dc.MaxLockTxnBytes/dc.KiB)
	}
	read, seen := 0, 0
	for _, o := range ops {
		if err := s.txnOp(op, c, o, res); err != nil {
			return nil, err
		}
		for ; seen < len(res.Reads); seen++ {
			if read += len(res.Reads[seen].Value); read > dc.MaxLockTxnBytes || seen >= dc.MaxLockTxnReads {
				return nil, dc.Errorf(dc.TooLarge, op, o.Path, "the transaction reads more than %d KiB (MaxLockTxnBytes) or %d files (MaxLockTxnReads); give lists a limit",
					dc.MaxLockTxnBytes/dc.KiB, dc.MaxLockTxnReads)
			}
		}
	}
	return res, nil
}

func (s *stage) holds(c *command.LockCondition) bool {
	f := s.file(c.Path)
	switch {
	case c.Absent && f != nil,
		c.Present && f == nil,
		c.Created != nil && (f == nil || f.Created != *c.Created),
		c.Version != nil && (f == nil || f.Version != *c.Version),
		c.Value != nil && (f == nil || f.Dir || !bytes.Equal(Value(s, c.Path), c.Value)):
		return false
	}
	if c.Fence == nil {
		return true
	}
	q := Queue(s, c.Path)
	if q == nil || q.Holders == 0 {
		return false
	}
	for _, h := range HoldersOf(s, c.Path, dc.MaxLockHolders) {
		if h.Fence == *c.Fence {
			return s.session(h.Session) != nil
		}
	}
	return false
}

func (s *stage) txnOp(op string, c *command.LockTxn, o *command.LockTxnOp, res *command.LockResult) error {
	if err := CheckPath(op, o.Path); err != nil {
		return err
	}
	f := s.file(o.Path)
	switch o.Kind {
	case command.LockTxnOp_KIND_PUT, command.LockTxnOp_KIND_APPEND:
		if f != nil && f.Dir {
			return dc.Errorf(dc.IsDir, op, o.Path, "")
		}
		if err := s.fits(op, o.Path, len(o.Value)); err != nil {
			return err
		}
		f, err := s.write(op, o.Path, f, o.Value, o.Kind == command.LockTxnOp_KIND_APPEND, &command.LockFile{Mode: 0o644, Uid: c.Uid, Gid: c.Gid})
		if err == nil {
			res.Version = f.Version
		}
		return err
	case command.LockTxnOp_KIND_DELETE:
		if f == nil {
			return nil
		}
		if o.Path == "" || f.Dir && s.hasChildren(o.Path) {
			return dc.Errorf(dc.NotEmpty, op, o.Path, "")
		}
		s.drop(o.Path, f)
		return nil
	case command.LockTxnOp_KIND_MKDIR:
		_, err := s.createFile(&command.LockCreate{Path: o.Path, Dir: true, Mode: 0o755, Uid: c.Uid, Gid: c.Gid})
		return err
	case command.LockTxnOp_KIND_READ:
		if f == nil {
			f = &command.LockFile{Absent: true}
		} else if !f.Dir {
			f.Value = Value(s, o.Path)
		}
		f.Path = o.Path
		res.Reads = append(res.Reads, f)
		return nil
	case command.LockTxnOp_KIND_LIST:
		return s.txnList(op, o, f, res)
	}
	return dc.Errorf(dc.Invalid, op, o.Path, "unknown operation %d", o.Kind)
}

// txnList reads a directory: its own record and then its files, with what the transaction has changed so far.
func (s *stage) txnList(op string, o *command.LockTxnOp, f *command.LockFile, res *command.LockResult) error {
	switch {
	case f == nil:
		res.Reads = append(res.Reads, &command.LockFile{Path: o.Path, Absent: true})
		return nil
	case !f.Dir:
		return dc.Errorf(dc.NotDir, op, o.Path, "")
	}
	limit := dc.MaxLockTxnReads + 1 // one more than there may be is found out by the caller
	if o.Limit > 0 {
		limit = min(limit, int(o.Limit))
	}
	files := s.children(o.Path, o.After, limit)
	f.Path, f.Entries = o.Path, uint32(len(files))
	res.Reads = append(res.Reads, f)
	for _, child := range files {
		child.Path = join(o.Path, child.Path)
		if !child.Dir {
			child.Value = Value(s, child.Path)
		}
		res.Reads = append(res.Reads, child)
	}
	return nil
}

// children is List with the rows that this very command added, which a scan does not see.
func (s *stage) children(dir, after string, limit int) []*command.LockFile {
	out := List(s, dir, after, limit)
	have := map[string]bool{}
	for _, f := range out {
		have[f.Path] = true
	}
	prefix := string(childPrefix(dir))
	for _, k := range s.order {
		name, ok := strings.CutPrefix(k, prefix)
		if !ok || name <= after || have[name] || s.rows[k] == nil {
			continue
		}
		f := &command.LockFile{}
		decode(s.rows[k], f)
		f.Path = name
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b *command.LockFile) int { return strings.Compare(a.Path, b.Path) })
	return out[:min(len(out), limit)]
}
