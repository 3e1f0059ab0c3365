package lock

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"missingos/srv/dc"
	"missingos/srv/replica"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/lock"
)

const (
	// grace is added to every session's TTL when a leader takes over, for the time that callers need to find it.
	grace          = 2 * time.Second
	proposeTimeout = 5 * time.Second
	retryAfter     = 250 * time.Millisecond
	// paused is how late a timer of the leader may fire before it takes itself for having been stopped: then it could not hear
	// keep-alives, and gives everybody a full TTL again.
	paused        = 2 * time.Second
	atOnce        = 16 // proposals of one round of housekeeping
	compactSlack  = 1024
	duesRemembred = 100_000
)

// A term is this node's time as leader of one lock group.
type term struct {
	replica replica.Replica
	over    <-chan struct{} // closed at its end
	watches atomic.Int64

	mu      sync.Mutex
	epoch   uint64
	leases  map[uint64]*lease
	reap    map[uint64]bool  // sessions that have ended and left something
	due     map[string]int64 // locks to look at again, by cluster clock
	crowded bool             // history is over its bounds, perhaps
	age     time.Duration    // that history may reach, as of the last trim; 0: any
	aged    time.Time        // when the oldest history will be too old; zero: never, or not known
	waiters map[waiter]chan struct{}
	woken   chan struct{} // holds one token when there is news for run
}

// A lease is how long a session may still be silent.
type lease struct {
	ttl      time.Duration
	node     uint64
	deadline time.Time
	ending   bool         // its end is proposed: never renewed again in this term
	id       dc.RequestID // of that proposal, the same for its retries
	retry    time.Time    // not before
}

// A waiter is an Await under way.
type waiter struct {
	path           string
	session, owner uint64
}

// lead runs one term.
func (s *Service) lead(ctx context.Context, r replica.Replica) {
	t := &term{
		replica: r, over: ctx.Done(), leases: map[uint64]*lease{}, reap: map[uint64]bool{}, due: map[string]int64{},
		waiters: map[waiter]chan struct{}{}, woken: make(chan struct{}, 1), crowded: true,
	}
	s.mu.Lock()
	s.terms[r.Group()] = t // from here on t hears of sessions; what it does not hear of is read by takeOver
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.terms[r.Group()] == t {
			delete(s.terms, r.Group())
		}
	}()
	for !t.takeOver(ctx) {
		if !sleep(ctx, retryAfter) {
			return
		}
	}
	s.log.Info("leads the lock group", "group", r.Group().String(), "sessions", t.sessions())
	t.run(ctx)
}

func (t *term) sessions() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.leases)
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(max(d, 0))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// takeOver begins a new epoch and gives every session its full TTL.
func (t *term) takeOver(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	res, err := t.do(ctx, t.replica.NewID(), &command.LockTakeOver{})
	if err != nil {
		return false
	}
	var sessions []*command.LockSession
	var dues []lock.Due
	err = t.replica.Local(func(rd storage.Reader) error {
		for after := uint64(0); ; {
			page := lock.Sessions(rd, after, dc.MaxScanPage)
			sessions = append(sessions, page...)
			if len(page) < dc.MaxScanPage {
				break
			}
			after = page[len(page)-1].Session
		}
		dues = lock.Dues(rd, duesRemembred)
		return nil
	})
	if err != nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.epoch = res.Epoch
	for _, se := range sessions {
		if se.Ended {
			t.reap[se.Session] = true
		} else if t.leases[se.Session] == nil {
			t.openLocked(se, grace)
		}
	}
	for _, d := range dues {
		t.due[d.Path] = d.AtMs
	}
	return true
}

func (t *term) openLocked(se *command.LockSession, extra time.Duration) {
	ttl := time.Duration(se.TtlMs) * time.Millisecond
	t.leases[se.Session] = &lease{ttl: ttl, node: se.Node, deadline: time.Now().Add(ttl + extra)}
}

// observe hears of an applied event.
func (t *term) observe(ev any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch ev := ev.(type) {
	case lock.Opened:
		t.openLocked(ev.Session, 0)
	case lock.Ended:
		delete(t.leases, ev.Session)
		if ev.More {
			t.reap[ev.Session] = true
		}
		for w, ch := range t.waiters {
			if w.session == ev.Session {
				signal(ch)
			}
		}
	case lock.Due:
		t.due[ev.Path] = ev.AtMs
	case lock.Dequeued:
		t.signalLocked(waiter{ev.Path, ev.Session, ev.Owner})
		return
	case *command.LockHistory:
		for _, e := range ev.Events {
			if e.Kind == command.LockEvent_KIND_LOCK {
				t.signalLocked(waiter{e.Path, e.Hold.Session, e.Hold.Owner})
			}
		}
		switch {
		case ev.Revision%compactSlack == 0:
			t.crowded = true
		case t.age > 0 && t.aged.IsZero():
			t.aged = time.Now().Add(t.age)
		default:
			return
		}
	}
	signal(t.woken)
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

func (t *term) signalLocked(w waiter) {
	if ch := t.waiters[w]; ch != nil {
		signal(ch)
	}
}

// run does the housekeeping until the term is over. With no sessions it sleeps.
func (t *term) run(ctx context.Context) {
	for ctx.Err() == nil {
		work, next := t.work()
		if len(work) > 0 {
			var g errgroup.Group
			g.SetLimit(atOnce)
			for _, w := range work {
				g.Go(func() error {
					ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
					defer cancel()
					w(ctx)
					return nil
				})
			}
			_ = g.Wait() // nothing fails: what is not done comes up again
			continue
		}
		t.rest(ctx, next)
	}
}

// rest waits until next, for news, or for the end of the term.
func (t *term) rest(ctx context.Context, next time.Time) {
	var fire <-chan time.Time
	if !next.IsZero() {
		timer := time.NewTimer(max(time.Until(next), 0))
		defer timer.Stop()
		fire = timer.C
	}
	select {
	case <-fire:
		if time.Since(next) > paused {
			t.renewAll()
		}
	case <-t.woken:
	case <-ctx.Done():
	}
}

// renewAll gives every session a full TTL again, except those whose end may be on its way.
func (t *term) renewAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, l := range t.leases {
		if !l.ending {
			l.deadline = time.Now().Add(l.ttl)
		}
	}
}

// work gives what is to be done now, and when there will be more (zero: not foreseeable).
func (t *term) work() (work []func(context.Context), next time.Time) {
	now, clock := time.Now(), t.replica.Clock()
	soonest := func(at time.Time) {
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, l := range t.leases {
		switch at := maxTime(l.deadline, l.retry); {
		case at.After(now):
			soonest(at)
		default:
			if !l.ending {
				l.ending, l.id = true, t.replica.NewID()
			}
			l.retry = now.Add(retryAfter)
			work = append(work, t.expire(id, l.id))
		}
	}
	for id := range t.reap {
		work = append(work, t.reapOne(id))
	}
	for path, at := range t.due {
		if at <= clock {
			work = append(work, t.advance(path))
		} else {
			soonest(now.Add(time.Duration(at-clock) * time.Millisecond))
		}
	}
	if !t.aged.IsZero() && !t.aged.After(now) {
		t.crowded = true
	} else if !t.aged.IsZero() {
		soonest(t.aged)
	}
	if t.crowded {
		t.crowded, t.aged = false, time.Time{}
		work = append(work, t.trim)
	}
	return work, next
}

func maxTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

// expire ends a session that was silent for too long. If the outcome stays unknown it is tried again under the same id;
// the lease goes when the end is applied (observe).
func (t *term) expire(id uint64, req dc.RequestID) func(context.Context) {
	epoch := t.epoch
	return func(ctx context.Context) {
		_, _ = t.do(ctx, req, &command.LockEndSession{Session: id, Lost: true, Epoch: epoch})
	}
}

func (t *term) reapOne(id uint64) func(context.Context) {
	return func(ctx context.Context) {
		res, err := t.do(ctx, t.replica.NewID(), &command.LockReap{Session: id})
		if err != nil {
			sleep(ctx, retryAfter)
			return
		}
		if !res.More {
			t.mu.Lock()
			delete(t.reap, id)
			t.mu.Unlock()
		}
	}
}

func (t *term) advance(path string) func(context.Context) {
	at := t.due[path]
	return func(ctx context.Context) {
		res, err := t.do(ctx, t.replica.NewID(), &command.LockAdvance{Path: path})
		if err != nil || res.More {
			sleep(ctx, retryAfter/10)
			return
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.due[path] == at { // else it was asked for again
			delete(t.due, path)
		}
	}
}
