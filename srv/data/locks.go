package data

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"missingos/srv/data/filelock"
	"missingos/srv/dc"
	"missingos/srv/replica"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/data"
)

const (
	lockLook     = 500 * time.Millisecond // how often silent sessions are looked for
	lockPropose  = 3 * time.Second
	lockAwait    = 2 * time.Second // bounds one AwaitLock, and how long a request waits for mounts to claim; below a client's time for an attempt
	leaderPaused = 2 * time.Second // how late a look may be before the leader takes itself for having been stopped: it could not hear anybody
)

// locks are the locks of a group's files, in one term of this node as its leader. See docs/design/0028.
type locks struct {
	replica replica.Replica
	expiry  time.Duration   // how long a session may be silent
	over    <-chan struct{} // closed at the term's end
	table   filelock.Table
	ready   chan struct{} // closed when every registered session has claimed its locks or has been dropped
	turn    chan struct{} // holds a token while somebody begins the epoch

	mu       sync.Mutex
	epoch    uint64 // 0: not begun
	sessions map[uint64]*lockSession
	missing  int // sessions that have not claimed
}

// lockSession is a mount that takes part. Its mu is held while the table is changed for it, so that what comes late finds it changed; it is taken before locks.mu.
type lockSession struct {
	id   uint64
	node dc.NodeID

	mu      sync.Mutex
	heard   time.Time
	claimed bool
	claim   uint64 // the number of its claim
	settled uint64
	ending  bool // its end is proposed: nothing is done for it any more
}

func newLocks(ctx context.Context, r replica.Replica, expiry time.Duration) *locks {
	return &locks{replica: r, expiry: expiry, over: ctx.Done(), ready: make(chan struct{}), turn: make(chan struct{}, 1), sessions: map[uint64]*lockSession{}}
}

// begin begins the term's epoch unless that has been done, and gives its number.
func (l *locks) begin(ctx context.Context) (uint64, error) {
	if e := l.begun(); e != 0 {
		return e, nil
	}
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return 0, dc.Errorf(dc.KindOf(ctx.Err()), "lock", "", "waited for an epoch of locks to begin: %w", ctx.Err())
	}
	defer func() { <-l.turn }()
	if e := l.begun(); e != 0 {
		return e, nil
	}
	res, err := l.propose(ctx, &command.DataCommand{Op: &command.DataCommand_LockEpoch{LockEpoch: &command.DataLockEpoch{}}})
	if err != nil {
		return 0, err
	}
	registered, err := l.registered()
	if err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.epoch = res.Epoch
	for _, r := range registered {
		l.sessions[r.Session] = &lockSession{id: r.Session, node: dc.NodeID(r.Node), heard: time.Now()}
	}
	if l.missing = len(registered); l.missing == 0 {
		close(l.ready)
	}
	return l.epoch, nil
}

func (l *locks) begun() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.epoch
}

func (l *locks) registered() (all []*command.DataLockSession, err error) {
	err = l.replica.Local(func(rd storage.Reader) error {
		all = data.LockSessions(rd)
		return nil
	})
	return all, err
}

func (l *locks) propose(ctx context.Context, c *command.DataCommand) (*command.DataResult, error) {
	ctx, cancel := context.WithTimeout(ctx, lockPropose)
	defer cancel()
	c.Version = data.LockVersion
	return propose(ctx, l.replica, l.replica.NewID(), c)
}

func (l *locks) record(ctx context.Context, s *lockSession, drop bool) error {
	_, err := l.propose(ctx, &command.DataCommand{Op: &command.DataCommand_LockSession{LockSession: &command.DataLockSession{Session: s.id, Node: uint64(s.node), Drop: drop}}})
	return err
}

// confirm tells whether this node still leads.
func (l *locks) confirm(ctx context.Context) error {
	return l.replica.View(ctx, func(storage.Reader) error { return nil })
}

// session finds a session of a node; nil if this leader does not know it.
func (l *locks) session(id uint64, node dc.NodeID) (*lockSession, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sessions[id]
	if s != nil && s.node != node {
		return nil, dc.Errorf(dc.Denied, "lock", "", "session %d is node %s's, not %s's", id, s.node, node)
	}
	return s, nil
}

// settle notes that a session has claimed or is gone, if it had not before.
func (l *locks) settle(before bool) {
	if before {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.missing--; l.missing == 0 {
		close(l.ready)
	}
}

// register makes a session that holds nothing yet.
func (l *locks) register(ctx context.Context, id uint64, node dc.NodeID) error {
	s := &lockSession{id: id, node: node, heard: time.Now(), claimed: true}
	if err := l.record(ctx, s, false); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sessions[id] == nil {
		l.sessions[id] = s
	}
	return nil
}

// drop ends a session: first its row, so that only who leads can do it, then its locks. It is repeated until it succeeds.
func (l *locks) drop(ctx context.Context, s *lockSession) error {
	s.mu.Lock()
	s.ending = true
	s.mu.Unlock()
	if err := l.record(ctx, s, true); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l.mu.Lock()
	known := l.sessions[s.id] == s
	if known {
		delete(l.sessions, s.id)
	}
	l.mu.Unlock()
	if known {
		l.table.Claim(s.id, nil)
		l.settle(s.claimed)
	}
	return nil
}

// run drops sessions that have been silent for too long, until the term is over.
func (l *locks) run(ctx context.Context, log *slog.Logger) {
	tick := time.NewTicker(lockLook)
	defer tick.Stop()
	looked, sure := time.Now(), false // sure that no session of an earlier term is left to be waited for: an idle group's shard is left alone
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !sure {
			known, err := l.registered()
			if err == nil && len(known) > 0 {
				_, err = l.begin(ctx)
			}
			sure = err == nil // otherwise it is tried again at the next tick
		}
		late := time.Since(looked) > leaderPaused
		looked = time.Now()
		for _, s := range l.all() {
			if l.silent(s, late) {
				if err := l.drop(ctx, s); err == nil {
					log.Info("a mount was silent: the locks of its files are free", "node", s.node.String())
				}
			}
		}
	}
}

func (l *locks) all() []*lockSession {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make([]*lockSession, 0, len(l.sessions))
	for _, s := range l.sessions {
		all = append(all, s)
	}
	return all
}

// silent tells whether a session is to be dropped. After a pause of the leader itself everybody gets their time anew.
func (l *locks) silent(s *lockSession, paused bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if paused && !s.ending {
		s.heard = time.Now()
	}
	return s.ending || time.Since(s.heard) > l.expiry
}

// await waits until new locks may be given.
func (l *locks) await(ctx context.Context) error {
	select {
	case <-l.ready:
		return nil
	default:
	}
	timer := time.NewTimer(lockAwait)
	defer timer.Stop()
	select {
	case <-l.ready:
		return nil
	case <-timer.C:
	case <-ctx.Done():
	case <-l.over:
	}
	return dc.Errorf(dc.Unavailable, "lock", "", "a new leader waits until every node has said which locks it holds, at most %s", l.expiry)
}
