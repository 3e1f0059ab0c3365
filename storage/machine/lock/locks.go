package lock

import (
	"missingos/srv/dc"
	"missingos/storage/command"
)

// acquire takes or queues for a lock. It can be repeated: whoever holds it already is told the same fencing token, whoever waits goes on waiting.
func (s *stage) acquire(c *command.LockAcquire) (*command.LockResult, error) {
	const op = "lock.acquire"
	if err := CheckPath(op, c.Path); err != nil {
		return nil, err
	}
	if s.session(c.Session) == nil {
		return nil, sessionEnded(op, c.Path, c.Session)
	}
	if h := Holder(s, c.Path, c.Session, c.Owner); h != nil {
		if h.Exclusive == c.Exclusive {
			return &command.LockResult{Fence: h.Fence}, nil
		}
		if res, err := s.convert(op, h, c); res != nil || err != nil {
			return res, err
		}
	}
	if w := Waiter(s, c.Path, c.Session, c.Owner); w != nil {
		if c.Wait && w.Exclusive == c.Exclusive {
			return &command.LockResult{Queued: true}, nil
		}
		s.dequeue(w)
		s.promote(c.Path)
	}
	h := &command.LockHold{
		Path: c.Path, Session: c.Session, Owner: c.Owner, Exclusive: c.Exclusive, SinceMs: s.tx.Clock(),
		Node: c.Node, Pid: c.Pid, Command: c.Command,
	}
	q := s.queue(c.Path)
	switch {
	case q.Waiters == 0 && s.admits(q, c.Exclusive):
		s.grant(q, h)
		s.storeQueue(c.Path, q)
		return &command.LockResult{Fence: h.Fence}, nil
	case !c.Wait:
		return nil, s.heldBy(op, c.Path, q)
	case q.Waiters >= dc.MaxLockWaiters:
		return nil, dc.Errorf(dc.Again, op, c.Path, "%d callers already wait for this lock (MaxLockWaiters)", q.Waiters)
	}
	s.state.Ticket++
	h.Ticket = s.state.Ticket
	s.put(waiterKey(c.Path, h.Ticket), h)
	s.set(ownedKey(h.Session, rowWait, h.Owner, h.Path), bytesOf(h.Ticket))
	q.Waiters++
	s.storeQueue(c.Path, q)
	return &command.LockResult{Queued: true}, nil
}

// convert changes the mode of a lock that the caller holds. It returns nothing if the caller must queue again, its hold then being given up
// (flock(2): a conversion is not atomic).
func (s *stage) convert(op string, h *command.LockHold, c *command.LockAcquire) (*command.LockResult, error) {
	q := s.queue(h.Path)
	if !c.Exclusive || q.Holders == 1 && q.Waiters == 0 {
		q.Holders--
		h.Exclusive, h.SinceMs = c.Exclusive, s.tx.Clock()
		s.grant(q, h)
		s.storeQueue(h.Path, q)
		s.promote(h.Path)
		return &command.LockResult{Fence: h.Fence}, nil
	}
	if !c.Wait {
		return nil, s.heldBy(op, h.Path, q)
	}
	s.unhold(h, false)
	s.promote(h.Path)
	return nil, nil
}

func (s *stage) heldBy(op, path string, q *command.LockQueue) error {
	for _, h := range HoldersOf(s, path, 1) {
		return dc.Errorf(dc.Again, op, path, "held by %s, process %d (%s) of node %s", mode(h.Exclusive), h.Pid, h.Command, dc.NodeID(h.Node))
	}
	if q.Waiters > 0 {
		return dc.Errorf(dc.Again, op, path, "%d callers wait for it", q.Waiters)
	}
	return dc.Errorf(dc.Again, op, path, "its last holder's session was lost: it is free again after the lock-delay")
}

func mode(exclusive bool) string {
	if exclusive {
		return "an exclusive lock"
	}
	return "a shared lock"
}

func sessionEnded(op, path string, id uint64) error {
	return dc.Errorf(dc.Stale, op, path, "session %d has ended: its node was silent for too long or was restarted", id)
}

// admits tells whether the lock could be taken now, waiters aside.
func (s *stage) admits(q *command.LockQueue, exclusive bool) bool {
	switch {
	case s.tx.Clock() < q.FreeAtMs:
		return false
	case q.Holders == 0:
		return true
	}
	return !q.Exclusive && !exclusive && q.Holders < dc.MaxLockHolders
}

func (s *stage) queue(path string) *command.LockQueue {
	if q := Queue(s, path); q != nil {
		return q
	}
	return &command.LockQueue{}
}

// storeQueue writes the record of a lock, or removes it when there is nothing to remember. A lock-delay is remembered until its LockAdvance.
func (s *stage) storeQueue(path string, q *command.LockQueue) {
	key := pathKey(rowQueue, path)
	if q.Holders == 0 && q.Waiters == 0 && q.FreeAtMs == 0 {
		s.delete(key)
		return
	}
	s.put(key, q)
}

// grant makes h a holder under a revision of its own, which is its fencing token. The caller stores q.
func (s *stage) grant(q *command.LockQueue, h *command.LockHold) {
	s.settle()
	h.Fence, h.Ticket = s.begin(), 0
	q.Holders++
	q.Exclusive, q.Fence = h.Exclusive, h.Fence
	s.put(holderKey(rowHold, h.Path, h.Session, h.Owner), h)
	s.set(ownedKey(h.Session, rowHold, h.Owner, h.Path), nil)
	s.revise(&command.LockEvent{Kind: command.LockEvent_KIND_LOCK, Path: h.Path, Hold: h})
	s.settle()
}

// unhold takes h's lock away. If it was lost with its session the lock-delay begins.
func (s *stage) unhold(h *command.LockHold, lost bool) {
	s.delete(holderKey(rowHold, h.Path, h.Session, h.Owner))
	s.delete(ownedKey(h.Session, rowHold, h.Owner, h.Path))
	q := s.queue(h.Path)
	q.Holders--
	if lost && s.state.LockDelayMs > 0 {
		q.FreeAtMs = s.tx.Clock() + int64(s.state.LockDelayMs)
		s.due(h.Path, q.FreeAtMs)
	}
	s.storeQueue(h.Path, q)
	s.revise(&command.LockEvent{Kind: command.LockEvent_KIND_UNLOCK, Path: h.Path, Hold: h, Lost: lost})
	s.settle()
}

func (s *stage) dequeue(w *command.LockHold) {
	s.delete(waiterKey(w.Path, w.Ticket))
	s.delete(ownedKey(w.Session, rowWait, w.Owner, w.Path))
	q := s.queue(w.Path)
	q.Waiters--
	s.storeQueue(w.Path, q)
	s.emit(Dequeued{Path: w.Path, Session: w.Session, Owner: w.Owner})
}

// due asks the leader to look at the queue of path again at a time; an earlier one is replaced, as a lock-delay only grows.
func (s *stage) due(path string, atMs int64) {
	s.set(pathKey(rowDue, path), bytesOf(uint64(atMs)))
	s.emit(Due{Path: path, AtMs: atMs})
}

// promote lets in waiters from the head of the queue as long as the lock admits them.
func (s *stage) promote(path string) {
	q := s.queue(path)
	if q.Waiters == 0 {
		return
	}
	for _, v := range s.Scan(prefixed(ofLock(rowWait, path))) {
		w := &command.LockHold{}
		decode(v, w)
		q = s.queue(path)
		ended := s.session(w.Session) == nil // and not reaped as far as here
		if !ended && !s.admits(q, w.Exclusive) {
			return
		}
		if s.steps == 0 {
			s.due(path, s.tx.Clock())
			return
		}
		s.steps--
		if ended {
			s.dequeue(w)
			continue
		}
		s.delete(waiterKey(path, w.Ticket))
		s.delete(ownedKey(w.Session, rowWait, w.Owner, path))
		q.Waiters--
		w.SinceMs = s.tx.Clock()
		s.grant(q, w)
		s.storeQueue(path, q)
	}
}

// release gives up a lock, a place in its queue, or an ephemeral file. What is not there is no error: a release may be repeated.
func (s *stage) release(c *command.LockRelease) (*command.LockResult, error) {
	if err := CheckPath("lock.release", c.Path); err != nil {
		return nil, err
	}
	if c.Ephemeral {
		s.unkeep(c.Path, c.Session, c.Owner)
		return &command.LockResult{}, nil
	}
	if h := Holder(s, c.Path, c.Session, c.Owner); h != nil {
		ended := Session(s, c.Session)
		s.unhold(h, ended != nil && ended.Ended && ended.Lost)
		s.promote(c.Path)
	} else if w := Waiter(s, c.Path, c.Session, c.Owner); w != nil {
		s.dequeue(w)
		s.promote(c.Path)
	}
	return &command.LockResult{}, nil
}

// advance looks again at a queue whose lock-delay may be over.
func (s *stage) advance(c *command.LockAdvance) (*command.LockResult, error) {
	b, ok := s.Get(pathKey(rowDue, c.Path))
	if !ok {
		return &command.LockResult{}, nil
	}
	if int64(number(b)) > s.tx.Clock() {
		return &command.LockResult{More: true}, nil
	}
	s.delete(pathKey(rowDue, c.Path))
	q := s.queue(c.Path)
	if q.FreeAtMs <= s.tx.Clock() {
		q.FreeAtMs = 0
	}
	s.storeQueue(c.Path, q)
	s.promote(c.Path)
	return &command.LockResult{}, nil
}

// keep makes an ephemeral file live while (session, owner) holds it open. Other files need no keeping.
func (s *stage) keep(op, path string, f *command.LockFile, session, owner uint64) error {
	if !f.Ephemeral || f.Dir {
		return nil
	}
	if session == 0 {
		return dc.Errorf(dc.Invalid, op, path, "files of an ephemeral directory are made by opening them, and live while they are held open")
	}
	if s.session(session) == nil {
		return sessionEnded(op, path, session)
	}
	key := holderKey(rowKeep, path, session, owner)
	if b, ok := s.Get(key); ok && number(b) == f.Created {
		return nil
	}
	s.set(key, bytesOf(f.Created))
	s.set(ownedKey(session, rowKeep, owner, path), nil)
	f.Holds++
	if f.Version != 0 {
		s.store(path, f)
	}
	return nil
}

// unkeep lets an ephemeral file go; the last one removes it.
func (s *stage) unkeep(path string, session, owner uint64) {
	key := holderKey(rowKeep, path, session, owner)
	b, ok := s.Get(key)
	if !ok {
		return
	}
	s.delete(key)
	s.delete(ownedKey(session, rowKeep, owner, path))
	f := s.file(path)
	if f == nil || f.Created != number(b) {
		return
	}
	if f.Holds--; f.Holds > 0 {
		s.store(path, f)
		return
	}
	s.drop(path, f)
	s.settle()
}
