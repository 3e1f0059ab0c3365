package client

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

// bootTime is a clock that also runs while the machine sleeps: a node that was suspended must not believe in its old session.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("clock_gettime: " + err.Error()) // cannot fail with this clock on Linux
	}
	return time.Duration(ts.Nano())
}

// A lockSession is one session of this node, as far as this node may trust in it: until the time its last acknowledged keep-alive was *sent*
// plus the TTL, less a margin. It ends once and for ever; a keep-alive that is acknowledged later changes nothing.
type lockSession struct {
	id  uint64
	ttl time.Duration
	now func() time.Duration

	ctx  context.Context // the session's lifetime: what goes on under it in the background stops with it
	stop context.CancelFunc
	busy chan struct{} // holds a token when somebody has begun to need the session

	mu    sync.Mutex
	until time.Duration
	dead  error // why it has ended
	users int   // leases held or waited for

	overdue bool // a keep-alive is: the session is in jeopardy
	lost    bool // it ended with users
}

// err tells whether the session can still be trusted, and ends it if its time is up.
func (s *lockSession) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.errLocked()
}

func (s *lockSession) errLocked() error {
	if s.dead == nil && s.now() >= s.until {
		s.endLocked(dc.Errorf(dc.Stale, "lock.session", "", "this node lost its session: no keep-alive was answered for %s, so another may hold its locks; open the file again",
			s.ttl-dc.LockSessionMargin))
	}
	return s.dead
}

func (s *lockSession) endLocked(why error) {
	if s.dead == nil {
		s.dead, s.lost = why, s.users > 0
		s.stop()
	}
}

func (s *lockSession) end(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endLocked(why)
}

// renewed moves the end of trust after a keep-alive sent at sent was acknowledged.
func (s *lockSession) renewed(sent time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.errLocked() == nil {
		s.until = max(s.until, sent+s.ttl-dc.LockSessionMargin)
	}
}

// use counts a user; it fails if the session has ended.
func (s *lockSession) use() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.errLocked(); err != nil {
		return err
	}
	s.users++
	if s.users == 1 {
		select {
		case s.busy <- struct{}{}:
		default:
		}
	}
	return nil
}

func (s *lockSession) unuse() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users--
}

// idle tells whether nobody needs the session, and how long it can still be trusted.
func (s *lockSession) idle() (idle bool, left time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.users == 0, s.until - s.now()
}

// use gives a session that lives, counted as used, and opens one if there is none.
func (l *Lock) use(ctx context.Context) (*lockSession, error) {
	for {
		l.mu.Lock()
		s := l.session
		l.mu.Unlock()
		if s != nil && s.use() == nil {
			return s, nil
		}
		select {
		case <-l.opening:
		case <-ctx.Done():
			return nil, dc.Errorf(dc.KindOf(ctx.Err()), "lock.session", "", "waiting for a session: %w", ctx.Err())
		}
		err := l.open(ctx, s)
		l.opening <- struct{}{}
		if err != nil {
			return nil, err
		}
	}
}

// open begins a session, unless somebody else has done it since the caller looked. The caller holds the token of opening.
func (l *Lock) open(ctx context.Context, seen *lockSession) error {
	l.mu.Lock()
	current, closed := l.session, l.closed
	l.mu.Unlock()
	if closed {
		return dc.Errorf(dc.Stale, "lock.session", "", "this node is shutting down")
	}
	if current != seen {
		return nil
	}
	// The node's sessions are numbered, so that a late copy of this request from before a restart cannot end a later session.
	node := uint64(l.c.Node())
	ctx = dc.WithPrincipal(ctx, dc.System(l.c.Node()))
	const tries = 3 // a number can be taken by an attempt of ours whose answer was lost
	for try := 1; ; try++ {
		gen, err := lockCall(ctx, l, false, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockGenerationReply, error) {
			return c.Generation(ctx, &dcpb.LockGenerationRequest{Header: h, Node: node})
		})
		if err != nil {
			return err
		}
		sent := l.now()
		r, err := lockCall(ctx, l, true, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockOpenSessionReply, error) {
			return c.OpenSession(ctx, &dcpb.LockOpenSessionRequest{Header: h, Node: node, Generation: gen.Generation + 1, TtlMs: uint32(l.ttl.Milliseconds())})
		})
		if err == nil {
			return l.begin(r, sent)
		}
		if dc.KindOf(err) != dc.Conflict || try == tries {
			return err
		}
	}
}

// begin starts to keep a new session alive.
func (l *Lock) begin(r *dcpb.LockOpenSessionReply, sent time.Duration) error {
	ttl := time.Duration(r.TtlMs) * time.Millisecond
	s := &lockSession{id: r.Session, ttl: ttl, now: l.now, until: sent + ttl - dc.LockSessionMargin, busy: make(chan struct{}, 1)}
	s.ctx, s.stop = context.WithCancel(l.base)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		s.stop()
		return dc.Errorf(dc.Stale, "lock.session", "", "this node is shutting down")
	}
	l.session = s
	l.wg.Go(func() { l.keepAlive(s) })
	return nil
}

// keepAlive renews a session while it is used and lets it lapse while it is not.
func (l *Lock) keepAlive(s *lockSession) {
	defer s.stop()
	defer l.reportEnd(s)
	timer := time.NewTimer(s.ttl / 3)
	defer timer.Stop()
	for s.err() == nil {
		idle, left := s.idle()
		wait := left
		if !idle {
			wait = min(s.ttl/3, left)
		}
		timer.Reset(max(wait, 0))
		select {
		case <-timer.C:
		case <-s.busy: // it may be used again with little time left
			if _, left := s.idle(); left > 2*s.ttl/3 {
				continue
			}
		case <-s.ctx.Done():
			return
		}
		if idle, _ := s.idle(); !idle && s.err() == nil {
			l.watchRenewal(s, func() error { return l.renew(s) })
		}
	}
}

// renew sends keep-alives until one is answered or the session's time is up.
func (l *Lock) renew(s *lockSession) error {
	_, left := s.idle()
	ctx, cancel := context.WithTimeout(s.ctx, max(left, 0))
	defer cancel()
	var sent time.Duration
	_, err := lockCall(ctx, l, false, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockKeepAliveReply, error) {
		sent = l.now() // of the attempt that is answered
		return c.KeepAlive(ctx, &dcpb.LockKeepAliveRequest{Header: h, Session: s.id})
	})
	switch {
	case err == nil:
		s.renewed(sent)
	case dc.KindOf(err) == dc.Stale:
		s.end(err)
	}
	return err
}

// spawn runs fn in the background; Close waits for it. After Close it runs nothing and says false.
func (l *Lock) spawn(fn func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.wg.Go(fn)
	return true
}

// Close ends the session, as lost if anything is still held under it, and waits for everything in the background. ctx bounds the telling of
// the leader; if it cannot be told, the session expires there. Leases are Stale afterwards.
func (l *Lock) Close(ctx context.Context) error {
	l.mu.Lock()
	s := l.session
	l.closed = true
	l.mu.Unlock()
	var err error
	if s != nil && s.err() == nil {
		idle, left := s.idle()
		s.end(dc.Errorf(dc.Stale, "lock.session", "", "this node has shut down"))
		ctx, cancel := context.WithTimeout(dc.WithPrincipal(ctx, dc.System(l.c.Node())), left)
		defer cancel()
		_, err = lockCall(ctx, l, true, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockChangeReply, error) {
			return c.EndSession(ctx, &dcpb.LockEndSessionRequest{Header: h, Session: s.id, Lost: !idle})
		})
	}
	l.stop()
	l.wg.Wait()
	return err
}
