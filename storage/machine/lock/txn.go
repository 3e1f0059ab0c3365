package lock

import (
	"bytes"

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
	read := 0
	for _, o := range ops {
		if err := s.txnOp(op, c, o, res); err != nil {
			return nil, err
		}
		if n := len(res.Reads); n > 0 && o.Kind == command.LockTxnOp_KIND_READ {
			if read += len(res.Reads[n-1].Value); read > dc.MaxLockTxnBytes {
				return nil, dc.Errorf(dc.TooLarge, op, o.Path, "the transaction reads more than %d KiB (MaxLockTxnBytes)", dc.MaxLockTxnBytes/dc.KiB)
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
	}
	return dc.Errorf(dc.Invalid, op, o.Path, "unknown operation %d", o.Kind)
}
