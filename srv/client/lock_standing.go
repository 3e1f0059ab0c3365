package client

import (
	"time"

	"missingos/srv/dc"
)

// A LockState is how far this node may trust in its session with the lock group.
type LockState string

// The states of a session, as Chubby names them (Burrows, The Chubby lock service, OSDI 2006, 2.8).
const (
	LockNone     LockState = "none"     // nothing is held under a session, and none was lost since the last one
	LockSafe     LockState = "safe"     // keep-alives are answered
	LockJeopardy LockState = "jeopardy" // a keep-alive is overdue: what is held is still held, and is lost when the time left is over
	LockExpired  LockState = "expired"  // the last session was lost with something held: those descriptors are stale for ever
)

// LockStanding tells of this node's latest session.
type LockStanding struct {
	State   LockState
	Session uint64        // 0: none yet
	TTL     time.Duration // as the lock group gave it
	Left    time.Duration // for which this node may trust in it without another answer
	Users   int           // locks and ephemeral files held, or being asked for
	Err     error         // why it was lost; nil unless expired
}

// Standing tells of this node's latest session, from what this node knows: it sends nothing, so it answers without a leader too.
func (l *Lock) Standing() LockStanding {
	l.mu.Lock()
	s := l.session
	l.mu.Unlock()
	if s == nil {
		return LockStanding{State: LockNone}
	}
	return s.standing()
}

func (s *lockSession) standing() LockStanding {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.errLocked()
	out := LockStanding{State: LockNone, Session: s.id, TTL: s.ttl, Left: max(0, s.until-s.now()), Users: s.users}
	switch {
	case err != nil && s.lost:
		out.State, out.Left, out.Err = LockExpired, 0, err
	case err != nil:
		out.Left = 0
	case s.users == 0:
	case s.overdue:
		out.State = LockJeopardy
	default:
		out.State = LockSafe
	}
	return out
}

// endanger marks a session whose keep-alive is overdue; false if it has ended, or somebody was told already.
func (s *lockSession) endanger() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.errLocked() != nil || s.overdue {
		return false
	}
	s.overdue = true
	return true
}

// recovered takes the mark away after an answer and tells whether there was one.
func (s *lockSession) recovered() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.overdue && s.errLocked() == nil
	s.overdue = false
	return was
}

// watchRenewal runs renew and warns when it takes so long that less than half of the session's time is left, or no answer came at once
// where no more than that was left to begin with.
func (l *Lock) watchRenewal(s *lockSession, renew func() error) {
	_, left := s.idle()
	patience := time.NewTimer(max(left-s.ttl/2, s.ttl/20))
	defer patience.Stop()
	answered, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-patience.C:
			if s.endanger() {
				_, left := s.idle()
				l.c.cfg.Log.Warn("lock session in jeopardy: no keep-alive is answered", "session", s.id, "left", left.Round(time.Millisecond))
			}
		case <-answered:
		}
	}()
	err := renew()
	close(answered)
	<-watched
	if err == nil && s.recovered() {
		l.c.cfg.Log.Info("lock session safe again", "session", s.id)
	}
}

// reportEnd logs the loss of a session with something held under it; one that lapsed unused, or ended with the node, is no news.
func (l *Lock) reportEnd(s *lockSession) {
	l.mu.Lock()
	closed := l.closed
	l.mu.Unlock()
	if x := s.standing(); x.State == LockExpired && !closed {
		l.c.cfg.Log.Warn("lock session expired: its locks and ephemeral files are lost", "session", s.id, "users", x.Users, "kind", dc.KindOf(x.Err).String(), "err", x.Err)
	}
}
