package data

import (
	"context"
	"time"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/dcpb"
	"missingos/srv/rpc"
	"missingos/storage"
	"missingos/storage/machine/data"
)

// locksOf admits a request about locks.
func (s *Service) locksOf(h *dcpb.Header) (*locks, dc.NodeID, error) {
	r, _, err := s.admit("lock", h)
	if err != nil {
		return nil, 0, err
	}
	if s.cfg.Locks != nil {
		if err := s.cfg.Locks(); err != nil {
			return nil, 0, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.terms[r.Group()]
	if t == nil {
		return nil, 0, dc.Errorf(dc.NotLeader, "lock", "", "this node has only just begun to lead, or no longer does")
	}
	return t.locks, rpc.Principal(h).Node, nil
}

// KeepLocks hears that a mount is alive. What it answers holds when the question was asked: it confirms that it leads before.
func (s *Service) KeepLocks(ctx context.Context, q *dcpb.DataKeepLocksRequest) (*dcpb.DataKeepLocksReply, error) {
	l, node, err := s.locksOf(q.Header)
	if err != nil {
		return nil, err
	}
	epoch, err := l.begin(ctx)
	if err != nil {
		return nil, err
	}
	se, err := l.session(q.Session, node)
	if err != nil {
		return nil, err
	}
	switch {
	case q.End && se != nil:
		return &dcpb.DataKeepLocksReply{Epoch: epoch, Lost: true}, l.drop(ctx, se)
	case se == nil && q.Register:
		if err := l.register(ctx, q.Session, node); err != nil {
			return nil, err
		}
		if se, err = l.session(q.Session, node); err != nil {
			return nil, err
		}
	}
	if se == nil {
		return l.unknown(ctx, epoch, q.Session)
	}
	out, err := l.keep(se, epoch, q)
	if err != nil {
		return nil, err
	}
	if err := l.confirm(ctx); err != nil {
		return nil, err
	}
	se.mu.Lock()
	defer se.mu.Unlock()
	if se.ending {
		return nil, dc.Errorf(dc.Unavailable, "lock", "", "the session is being ended")
	}
	se.heard = time.Now()
	return out, nil
}

// unknown answers about a session that is not in memory.
func (l *locks) unknown(ctx context.Context, epoch, session uint64) (*dcpb.DataKeepLocksReply, error) {
	registered := false
	err := l.replica.View(ctx, func(rd storage.Reader) error {
		_, registered = data.LockSession(rd, session)
		return nil
	})
	switch {
	case err != nil:
		return nil, err
	case registered: // by a command whose outcome was not known
		return nil, dc.Errorf(dc.Unavailable, "lock", "", "the session is being registered")
	}
	return &dcpb.DataKeepLocksReply{Epoch: epoch, Lost: true}, nil
}

// keep takes in what a session says.
func (l *locks) keep(se *lockSession, epoch uint64, q *dcpb.DataKeepLocksRequest) (*dcpb.DataKeepLocksReply, error) {
	se.mu.Lock()
	defer se.mu.Unlock()
	if se.ending {
		return nil, dc.Errorf(dc.Unavailable, "lock", "", "the session is being ended")
	}
	se.settled = max(se.settled, q.Settled)
	if q.Claim && q.Epoch == epoch && q.Number > se.claim {
		held := make([]file.Lock, 0, len(q.Held))
		for _, h := range q.Held {
			held = append(held, lockFrom(h, se.id))
		}
		if !l.table.Claim(se.id, held) {
			return nil, dc.Errorf(dc.Internal, "lock", "", "node %s claims locks that others hold", se.node)
		}
		was := se.claimed
		se.claimed, se.claim = true, q.Number
		l.settle(was)
	}
	return &dcpb.DataKeepLocksReply{Epoch: epoch, Known: se.claimed && (q.Epoch == epoch || q.Register)}, nil
}

func lockFrom(m *dcpb.DataFileLock, session uint64) file.Lock {
	return file.Lock{
		Ino: file.Ino(m.GetIno()), Session: session, Owner: m.GetOwner(), Start: m.GetStart(), End: m.GetEnd(), Exclusive: m.GetExclusive(),
		Flock: m.GetFlock(), PID: m.GetPid(),
	}
}

// message is the answer's form of a lock, with the node that its session is of.
func (l *locks) message(x file.Lock) *dcpb.DataFileLock {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := &dcpb.DataFileLock{
		Ino: uint64(x.Ino), Session: x.Session, Owner: x.Owner, Start: x.Start, End: x.End, Exclusive: x.Exclusive, Flock: x.Flock, Pid: x.PID,
	}
	if s := l.sessions[x.Session]; s != nil {
		m.Node = uint64(s.node)
	}
	return m
}

// Lock does one thing with a lock of a file. A grant needs no confirmation that this node still leads: a new leader waits for every mount that might believe it.
// That a lock is not to be had does.
func (s *Service) Lock(ctx context.Context, q *dcpb.DataLockRequest) (*dcpb.DataLockReply, error) {
	l, node, err := s.locksOf(q.Header)
	if err != nil {
		return nil, err
	}
	if q.Op == dcpb.DataLockOp_DATA_LOCK_OP_ASK {
		return l.ask(ctx, q)
	}
	epoch, err := l.begin(ctx)
	if err != nil {
		return nil, err
	}
	se, err := l.session(q.Session, node)
	if err != nil {
		return nil, err
	}
	unknown := &dcpb.DataLockReply{Unknown: true, Epoch: epoch}
	if se == nil || q.Epoch != epoch {
		return unknown, nil
	}
	if q.Op == dcpb.DataLockOp_DATA_LOCK_OP_TRY || q.Op == dcpb.DataLockOp_DATA_LOCK_OP_WAIT {
		if err := l.await(ctx); err != nil {
			return nil, err
		}
	}
	out, err := l.change(se, q)
	switch {
	case err != nil && dc.KindOf(err) == dc.Again:
		if cerr := l.confirm(ctx); cerr != nil {
			return nil, cerr
		}
		return nil, err
	case err != nil:
		return nil, err
	case out == nil:
		return unknown, nil
	}
	out.Epoch = epoch
	return out, nil
}

// change changes the table for a session that takes part; nil: it does not.
func (l *locks) change(se *lockSession, q *dcpb.DataLockRequest) (*dcpb.DataLockReply, error) {
	se.mu.Lock()
	defer se.mu.Unlock()
	if se.ending || !se.claimed {
		return nil, nil
	}
	if q.Number < se.settled {
		return nil, dc.Errorf(dc.Stale, "lock", "", "the request was late: its mount has settled it otherwise")
	}
	se.settled = max(se.settled, q.Settled)
	x := lockFrom(q.Lock, se.id)
	if x.Start > x.End {
		return nil, dc.Errorf(dc.Invalid, "lock", x.Ino.String(), "the range ends before it starts")
	}
	switch q.Op {
	case dcpb.DataLockOp_DATA_LOCK_OP_TRY:
		_, err := l.table.Lock(x, 0, false)
		return &dcpb.DataLockReply{Granted: true}, err
	case dcpb.DataLockOp_DATA_LOCK_OP_WAIT:
		w, err := l.table.Lock(x, q.Place, true)
		return &dcpb.DataLockReply{Granted: w == nil, Queued: w != nil}, err
	case dcpb.DataLockOp_DATA_LOCK_OP_UNLOCK:
		l.table.Unlock(x)
		return &dcpb.DataLockReply{}, nil
	case dcpb.DataLockOp_DATA_LOCK_OP_CANCEL:
		return &dcpb.DataLockReply{Granted: l.table.Cancel(x, q.Place)}, nil
	case dcpb.DataLockOp_DATA_LOCK_OP_STATE:
		held := make([]file.Lock, 0, len(q.Held))
		for _, h := range q.Held {
			held = append(held, lockFrom(h, se.id))
		}
		if !l.table.Replace(x.Ino, se.id, held, q.Waiting) {
			return nil, dc.Errorf(dc.Internal, "lock", x.Ino.String(), "node %s claims locks that others hold", se.node)
		}
		return &dcpb.DataLockReply{}, nil
	}
	return nil, dc.Errorf(dc.Unsupported, "lock", "", "this node's version knows no operation %d on locks", q.Op)
}

// ask tells what is in the way of a lock.
func (l *locks) ask(ctx context.Context, q *dcpb.DataLockRequest) (*dcpb.DataLockReply, error) {
	epoch, err := l.begin(ctx)
	if err == nil {
		err = l.await(ctx)
	}
	if err != nil {
		return nil, err
	}
	out := &dcpb.DataLockReply{Epoch: epoch}
	if c, conflict := l.table.Conflict(lockFrom(q.Lock, q.Session)); conflict {
		out.Conflict = l.message(c)
	}
	return out, l.confirm(ctx)
}

// AwaitLock waits a moment for a place in a queue to be served. Its answer that it is no longer queued says nothing about the lock: the request for it is to be repeated.
func (s *Service) AwaitLock(ctx context.Context, q *dcpb.DataLockRequest) (*dcpb.DataLockReply, error) {
	l, node, err := s.locksOf(q.Header)
	if err != nil {
		return nil, err
	}
	epoch := l.begun()
	se, err := l.session(q.Session, node)
	if err != nil {
		return nil, err
	}
	if se == nil || epoch != q.Epoch {
		return &dcpb.DataLockReply{Unknown: true, Epoch: epoch}, nil
	}
	w := l.table.Waiting(file.Ino(q.Lock.GetIno()), q.Session, q.Place)
	if w == nil {
		return &dcpb.DataLockReply{Epoch: epoch}, nil
	}
	timer := time.NewTimer(lockAwait)
	defer timer.Stop()
	select {
	case <-w.Done():
		return &dcpb.DataLockReply{Epoch: epoch}, nil
	case <-timer.C:
	case <-ctx.Done():
	case <-l.over:
		return nil, dc.Errorf(dc.NotLeader, "lock", "", "this node no longer leads")
	}
	return &dcpb.DataLockReply{Epoch: epoch, Queued: true}, nil
}

// Locks lists who holds and waits for what.
func (s *Service) Locks(ctx context.Context, q *dcpb.DataLocksRequest) (*dcpb.DataLocksReply, error) {
	l, _, err := s.locksOf(q.Header)
	if err != nil {
		return nil, err
	}
	limit := min(int(q.Limit), dc.MaxScanPage)
	if limit == 0 {
		limit = dc.MaxScanPage
	}
	held, waiting := l.table.List(limit)
	out := &dcpb.DataLocksReply{Epoch: l.begun()}
	for _, x := range held {
		out.Held = append(out.Held, l.message(x))
	}
	for _, x := range waiting {
		out.Waiting = append(out.Waiting, l.message(x))
	}
	l.mu.Lock()
	out.Missing = uint64(l.missing)
	l.mu.Unlock()
	return out, l.confirm(ctx)
}
