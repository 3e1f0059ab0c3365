package lock

import (
	"missingos/srv/dc"
	"missingos/storage/command"
)

// session reads a session that lives; nil if it has ended or never was.
func (s *stage) session(id uint64) *command.LockSession {
	if se := Session(s, id); se != nil && !se.Ended {
		return se
	}
	return nil
}

func (s *stage) openSession(c *command.LockOpenSession) (*command.LockResult, error) {
	const op = "lock.session"
	node := &command.LockNode{}
	if b, ok := s.Get(numberKey(rowNode, c.Node)); ok {
		decode(b, node)
	}
	if c.Generation != node.Generation+1 {
		return nil, dc.Errorf(dc.Conflict, op, dc.NodeID(c.Node).String(), "generation %d does not follow the node's last, %d", c.Generation, node.Generation)
	}
	if c.TtlMs == 0 {
		return nil, dc.Errorf(dc.Invalid, op, dc.NodeID(c.Node).String(), "a session needs a time to live")
	}
	if old := s.session(node.Session); old != nil {
		s.end(old, true)
	}
	s.state.NextSession++
	se := &command.LockSession{
		Session: s.state.NextSession, Node: c.Node, Generation: c.Generation, TtlMs: c.TtlMs, OpenedMs: s.tx.Clock(),
	}
	s.put(numberKey(rowSession, se.Session), se)
	s.put(numberKey(rowNode, c.Node), &command.LockNode{Generation: c.Generation, Session: se.Session})
	s.emit(Opened{Session: se})
	return &command.LockResult{Session: se.Session}, nil
}

func (s *stage) endSession(c *command.LockEndSession) (*command.LockResult, error) {
	if c.Epoch != 0 && c.Epoch != s.state.Epoch {
		return nil, dc.Errorf(dc.Conflict, "lock.session", "", "session %d was counted out in epoch %d; another leader has taken over since (epoch %d)",
			c.Session, c.Epoch, s.state.Epoch)
	}
	if se := s.session(c.Session); se != nil {
		s.end(se, c.Lost)
	}
	return &command.LockResult{}, nil
}

func (s *stage) end(se *command.LockSession, lost bool) {
	se.Ended, se.Lost = true, lost
	s.put(numberKey(rowSession, se.Session), se)
	s.emit(Ended{Session: se.Session, More: s.reap(se)})
}

func (s *stage) reapSession(c *command.LockReap) (*command.LockResult, error) {
	se := Session(s, c.Session)
	if se == nil {
		return &command.LockResult{}, nil
	}
	if !se.Ended {
		return nil, dc.Errorf(dc.Invalid, "lock.session", "", "session %d has not ended", c.Session)
	}
	return &command.LockResult{More: s.reap(se)}, nil
}

// reapRows bounds how many of a session's locks, waits and ephemeral files one command releases.
const reapRows = 32

// reap releases a part of what an ended session left and tells whether there is more.
func (s *stage) reap(se *command.LockSession) (more bool) {
	n := 0
	for k := range s.Scan(prefixed(numberKey(rowOwned, se.Session))) {
		if n == reapRows {
			return true
		}
		n++
		switch kind, owner, path := parseOwned(k); kind {
		case rowHold:
			s.unhold(Holder(s, path, se.Session, owner), se.Lost)
			s.promote(path)
		case rowWait:
			s.dequeue(Waiter(s, path, se.Session, owner))
			s.promote(path)
		case rowKeep:
			s.unkeep(path, se.Session, owner)
		}
	}
	s.delete(numberKey(rowSession, se.Session))
	return false
}
