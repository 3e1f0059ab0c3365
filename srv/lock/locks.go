package lock

import (
	"context"
	"time"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/rpc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/lock"
)

// awaitFor bounds one Await, below the client's time for one attempt; the client asks again.
const awaitFor = 2 * time.Second

// own refuses a request about a session of another node than the caller's.
func (t *term) own(op string, p dc.Principal, session uint64) error {
	return t.replica.Local(func(rd storage.Reader) error {
		if se := lock.Session(rd, session); se != nil && dc.NodeID(se.Node) != p.Node {
			return dc.Errorf(dc.Denied, op, "", "session %d is node %s's, not %s's", session, dc.NodeID(se.Node), p.Node)
		}
		return nil
	})
}

// admitOwn is admit for requests about a session.
func (s *Service) admitOwn(op string, h *dcpb.Header, session uint64) (*term, dc.Principal, error) {
	t, p, err := s.admit(op, h)
	if err == nil {
		err = t.own(op, p, session)
	}
	return t, p, err
}

// Acquire takes a lock or, if asked to wait, a place in its queue (fence 0: go on with Await). A lock that is held elsewhere is dc.Again
// for a caller that does not wait.
func (s *Service) Acquire(ctx context.Context, r *dcpb.LockAcquireRequest) (*dcpb.LockAcquireReply, error) {
	t, p, err := s.admitOwn("lock.acquire", r.Header, r.Session)
	if err != nil {
		return nil, err
	}
	res, err := t.do(ctx, rpc.RequestID(r.Header), &command.LockAcquire{
		Path: r.Path, Session: r.Session, Owner: r.Owner, Exclusive: r.Exclusive, Wait: r.Wait, Node: uint64(p.Node), Pid: p.PID, Command: p.Command,
	})
	if err != nil {
		return nil, err
	}
	return &dcpb.LockAcquireReply{Fence: res.Fence}, nil
}

// Await waits a few seconds for the grant of a queued acquisition. It may be repeated, on any leader: the queue is replicated.
// dc.NotFound: the caller neither holds nor waits; dc.Stale: its session has ended.
func (s *Service) Await(ctx context.Context, r *dcpb.LockAwaitRequest) (*dcpb.LockAcquireReply, error) {
	const op = "lock.acquire"
	t, _, err := s.admitOwn(op, r.Header, r.Session)
	if err != nil {
		return nil, err
	}
	ch, forget := t.await(waiter{r.Path, r.Session, r.Owner})
	defer forget()
	timer := time.NewTimer(awaitFor)
	defer timer.Stop()
	for {
		var fence uint64
		err := t.replica.View(ctx, func(rd storage.Reader) error {
			if h := lock.Holder(rd, r.Path, r.Session, r.Owner); h != nil {
				fence = h.Fence
			} else if lock.Waiter(rd, r.Path, r.Session, r.Owner) == nil {
				return notWaiting(rd, op, r)
			}
			return nil
		})
		if err != nil || fence != 0 {
			return &dcpb.LockAcquireReply{Fence: fence}, err
		}
		select {
		case <-ch:
		case <-timer.C:
			return &dcpb.LockAcquireReply{}, nil
		case <-t.over:
			return nil, dc.Errorf(dc.NotLeader, op, r.Path, "this node no longer leads the lock group")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func notWaiting(rd storage.Reader, op string, r *dcpb.LockAwaitRequest) error {
	if se := lock.Session(rd, r.Session); se == nil || se.Ended {
		return dc.Errorf(dc.Stale, op, r.Path, "session %d has ended: its node was silent for too long or was restarted", r.Session)
	}
	return dc.Errorf(dc.NotFound, op, r.Path, "the caller neither holds the lock nor waits for it")
}

// await registers for signals about w. A second Await of the same waiter (a retry) takes over from the first.
func (t *term) await(w waiter) (ch chan struct{}, forget func()) {
	ch = make(chan struct{}, 1)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiters[w] = ch
	return ch, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.waiters[w] == ch {
			delete(t.waiters, w)
		}
	}
}

// Release gives up a lock, a place in a queue, or an ephemeral file; nothing to give up is fine.
func (s *Service) Release(ctx context.Context, r *dcpb.LockReleaseRequest) (*dcpb.LockChangeReply, error) {
	t, _, err := s.admitOwn("lock.release", r.Header, r.Session)
	if err != nil {
		return nil, err
	}
	res, err := t.do(ctx, rpc.RequestID(r.Header), &command.LockRelease{Path: r.Path, Session: r.Session, Owner: r.Owner, Ephemeral: r.Ephemeral})
	if err != nil {
		return nil, err
	}
	return &dcpb.LockChangeReply{Revision: res.Revision}, nil
}

// Generation tells the number of the node's latest session; the next must be one more.
func (s *Service) Generation(ctx context.Context, r *dcpb.LockGenerationRequest) (*dcpb.LockGenerationReply, error) {
	out := &dcpb.LockGenerationReply{}
	return out, s.view(ctx, "lock.session", r.Header, func(rd storage.Reader) error {
		out.Generation = lock.Generation(rd, dc.NodeID(r.Node))
		return nil
	})
}

// OpenSession begins a session of the caller's node, and ends that node's earlier one as lost.
func (s *Service) OpenSession(ctx context.Context, r *dcpb.LockOpenSessionRequest) (*dcpb.LockOpenSessionReply, error) {
	t, p, err := s.admit("lock.session", r.Header)
	if err != nil {
		return nil, err
	}
	if p.Node != dc.NodeID(r.Node) {
		return nil, dc.Errorf(dc.Denied, "lock.session", dc.NodeID(r.Node).String(), "node %s may open sessions for itself only", p.Node)
	}
	ttl, err := sessionTTL(r.TtlMs)
	if err != nil {
		return nil, err
	}
	res, err := t.do(ctx, rpc.RequestID(r.Header), &command.LockOpenSession{Node: r.Node, Generation: r.Generation, TtlMs: ttl})
	if err != nil {
		return nil, err
	}
	return &dcpb.LockOpenSessionReply{Session: res.Session, TtlMs: ttl}, nil
}

// sessionTTL is the time to live that a node gets, in milliseconds, for the one it asked for.
func sessionTTL(asked uint32) (uint32, error) {
	if asked == 0 {
		return uint32(dc.SessionTTL.Milliseconds()), nil
	}
	if d := time.Duration(asked) * time.Millisecond; d < dc.MinSessionTTL || d > dc.MaxSessionTTL {
		return 0, dc.Errorf(dc.Invalid, "lock.session", "", "a time to live of %s: want %s to %s", d, dc.MinSessionTTL, dc.MaxSessionTTL)
	}
	return asked, nil
}

// KeepAlive renews a session. The answer is worth something because the view is confirmed by a majority after the request arrived.
func (s *Service) KeepAlive(ctx context.Context, r *dcpb.LockKeepAliveRequest) (*dcpb.LockKeepAliveReply, error) {
	const op = "lock.session"
	t, _, err := s.admitOwn(op, r.Header, r.Session)
	if err != nil {
		return nil, err
	}
	err = t.replica.View(ctx, func(rd storage.Reader) error {
		if se := lock.Session(rd, r.Session); se == nil || se.Ended {
			return dc.Errorf(dc.Stale, op, "", "session %d has ended: its node was silent for too long or was restarted", r.Session)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.leases[r.Session]
	if l == nil || l.ending {
		return nil, dc.Errorf(dc.Unavailable, op, "", "session %d is being counted out", r.Session)
	}
	l.deadline = time.Now().Add(l.ttl)
	return &dcpb.LockKeepAliveReply{TtlMs: uint32(l.ttl.Milliseconds())}, nil
}

// EndSession ends a session of the caller's node and releases what it holds.
func (s *Service) EndSession(ctx context.Context, r *dcpb.LockEndSessionRequest) (*dcpb.LockChangeReply, error) {
	t, _, err := s.admitOwn("lock.session", r.Header, r.Session)
	if err != nil {
		return nil, err
	}
	res, err := t.do(ctx, rpc.RequestID(r.Header), &command.LockEndSession{Session: r.Session, Lost: r.Lost})
	if err != nil {
		return nil, err
	}
	return &dcpb.LockChangeReply{Revision: res.Revision}, nil
}

// Holds gives a page of all holders, or of all waiters, by path.
func (s *Service) Holds(ctx context.Context, r *dcpb.LockHoldsRequest) (*dcpb.LockHoldsReply, error) {
	out := &dcpb.LockHoldsReply{}
	return out, s.view(ctx, "lock.locks", r.Header, func(rd storage.Reader) error {
		var holds []*command.LockHold
		if r.Path != "" && !r.Waiting {
			for _, h := range lock.HoldersOf(rd, r.Path, dc.MaxLockHolders) {
				out.Holds = append(out.Holds, holdInfo(h))
			}
			return nil
		}
		holds, out.Cursor = lock.Holds(rd, r.Waiting, r.Cursor, dc.MaxScanPage)
		for _, h := range holds {
			out.Holds = append(out.Holds, holdInfo(h))
		}
		return nil
	})
}

// Sessions gives a page of the sessions, with how long the leader will still wait for each.
func (s *Service) Sessions(ctx context.Context, r *dcpb.LockSessionsRequest) (*dcpb.LockSessionsReply, error) {
	const op = "lock.sessions"
	t, _, err := s.admit(op, r.Header)
	if err != nil {
		return nil, err
	}
	out := &dcpb.LockSessionsReply{}
	return out, t.replica.View(ctx, func(rd storage.Reader) error {
		page := lock.Sessions(rd, r.After, dc.MaxScanPage)
		t.mu.Lock()
		defer t.mu.Unlock()
		for _, se := range page {
			info := &dcpb.LockSessionInfo{
				Session: se.Session, Node: se.Node, Generation: se.Generation, TtlMs: se.TtlMs, OpenedMs: se.OpenedMs, Ended: se.Ended,
			}
			if l := t.leases[se.Session]; l != nil {
				info.LeftMs = max(0, time.Until(l.deadline).Milliseconds())
			}
			out.Sessions = append(out.Sessions, info)
		}
		return nil
	})
}
