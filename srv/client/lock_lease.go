package client

import (
	"context"
	"sync"
	"time"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

// A LockLease is a lock (or an ephemeral file) held by this node under its session.
type LockLease struct {
	lock    *Lock
	session *lockSession
	path    string
	owner   uint64 // unique in the session, so that a late release cannot touch a later lease
	keep    bool   // an ephemeral file

	mu    sync.Mutex
	fence dc.Revision

	once     sync.Once
	released chan struct{} // closed when the release is done, or the session is over
}

// Fence is the fencing token: the revision of the acquisition, larger than every earlier holder's.
func (x *LockLease) Fence() dc.Revision {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.fence
}

// Err is nil while the lease can be trusted, and dc.Stale for ever once its session has ended.
func (x *LockLease) Err() error {
	if err := x.session.err(); err != nil {
		return dc.Wrap(err, "lock", x.path)
	}
	return nil
}

// Is tells whether h, as the lock group shows it, is this lease.
func (x *LockLease) Is(h LockHold) bool {
	return h.Path == x.path && h.Session == x.session.id && h.Owner == x.owner
}

// forEver is a deadline beyond every session's life: a request under a session's context is retried, under one request id, until it is
// answered or the session has ended.
const forEver = 24 * time.Hour

// under gives a context for requests that must be settled whatever their caller does: the session's, with the caller's principal.
func (x *LockLease) under(ctx context.Context) (context.Context, context.CancelFunc) {
	p, ok := dc.PrincipalOf(ctx)
	if !ok {
		p = dc.System(x.lock.c.Node())
	}
	return context.WithTimeout(dc.WithPrincipal(x.session.ctx, p), forEver)
}

func (l *Lock) lease(s *lockSession, path string, keep bool) *LockLease {
	return &LockLease{lock: l, session: s, path: path, owner: l.owner.Add(1), keep: keep, released: make(chan struct{})}
}

// Acquire takes the lock named path. Without wait a lock held elsewhere is dc.Again, naming the holder. With wait it queues, fairly, until
// the lock is granted or ctx ends; a change of leader loses no place in the queue, a loss of this node's session does, and it queues again.
// A leader that does not answer in dc.OpTimeout is dc.Unavailable. Whatever the caller does meanwhile, an attempt given up is undone.
func (l *Lock) Acquire(ctx context.Context, path string, exclusive, wait bool) (*LockLease, error) {
	patience := time.Now().Add(dc.OpTimeout)
	for try := 1; ; try++ {
		queued := false
		x, err := l.tryLease(ctx, patience, path, false, func(x *LockLease) (err error) {
			queued, err = x.acquire(ctx, patience, exclusive, wait)
			return err
		})
		if err == nil || !l.again(ctx, err, try, wait) {
			return x, err
		}
		if queued { // the service was there
			patience = time.Now().Add(dc.OpTimeout)
		}
	}
}

// again tells whether to try anew, under another session, what failed because the session had ended.
func (l *Lock) again(ctx context.Context, err error, try int, wait bool) bool {
	const tries = 3
	return dc.KindOf(err) == dc.Stale && ctx.Err() == nil && l.base.Err() == nil && (wait || try < tries)
}

// Keep opens a file of an ephemeral directory, making it if there is none: it lives until the last lease on it is released or
// its session ends.
func (l *Lock) Keep(ctx context.Context, path string, exclusive bool, mode uint32) (LockFile, *LockLease, error) {
	patience := time.Now().Add(dc.OpTimeout)
	for try := 1; ; try++ {
		var f LockFile
		x, err := l.tryLease(ctx, patience, path, true, func(x *LockLease) error {
			return x.settle(ctx, patience, func(ctx context.Context) (err error) {
				f, err = l.create(ctx, &dcpb.LockCreateRequest{Path: path, Exclusive: exclusive, Mode: mode, Session: x.session.id, Owner: x.owner})
				return err
			})
		})
		if err == nil {
			return f, x, nil
		}
		if !l.again(ctx, err, try, false) {
			return LockFile{}, nil, err
		}
	}
}

// tryLease runs take for a new lease under a living session.
func (l *Lock) tryLease(ctx context.Context, patience time.Time, path string, keep bool, take func(*LockLease) error) (*LockLease, error) {
	open, cancel := context.WithDeadline(ctx, patience)
	defer cancel()
	s, err := l.use(open)
	if err != nil {
		return nil, err
	}
	x := l.lease(s, path, keep)
	if err := take(x); err != nil {
		return nil, err
	}
	return x, nil
}

// settle runs one mutation until its outcome is known or the session is over. A caller that gives up before (its ctx ends, or its
// patience) gets an error at once, and the lease is released as soon as the outcome is known. An error ends the lease.
func (x *LockLease) settle(ctx context.Context, until time.Time, run func(context.Context) error) error {
	done := make(chan error) // unbuffered: whoever is served first decides
	left := make(chan struct{})
	background := x.lock.spawn(func() {
		under, cancel := x.under(ctx)
		err := run(under)
		cancel()
		if err != nil && dc.KindOf(err) == dc.Stale {
			x.session.end(err)
		}
		select {
		case done <- err:
		case <-left:
			if err == nil {
				x.release(ctx)
			} else {
				x.drop()
			}
		}
	})
	if !background {
		x.drop()
		return x.Err()
	}
	patience := time.NewTimer(max(0, time.Until(until)))
	defer patience.Stop()
	select {
	case err := <-done:
		if err != nil {
			x.drop()
			if sessionErr := x.Err(); sessionErr != nil {
				return sessionErr
			}
		}
		return err
	case <-ctx.Done():
		close(left)
		return dc.Errorf(dc.KindOf(ctx.Err()), "lock.acquire", x.path, "%w", ctx.Err())
	case <-patience.C:
		close(left)
		return dc.Errorf(dc.Unavailable, "lock.acquire", x.path, "no answer in %s from the leader of the lock group (is a majority of its nodes up? see dcctl status)", dc.OpTimeout)
	}
}

// drop forgets a lease that never was, or is no more.
func (x *LockLease) drop() {
	x.once.Do(func() {
		x.session.unuse()
		close(x.released)
	})
}

// acquire takes the lock, or queues and waits; queued says that it had a place in the queue.
func (x *LockLease) acquire(ctx context.Context, patience time.Time, exclusive, wait bool) (queued bool, err error) {
	var fence dc.Revision
	err = x.settle(ctx, patience, func(ctx context.Context) error {
		r, err := lockCall(ctx, x.lock, true, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockAcquireReply, error) {
			return c.Acquire(ctx, &dcpb.LockAcquireRequest{
				Header: h, Path: x.path, Session: x.session.id, Owner: x.owner, Exclusive: exclusive, Wait: wait,
			})
		})
		fence = dc.Revision(r.GetFence())
		return err
	})
	if err != nil {
		return false, err
	}
	if queued = fence == 0; queued {
		if fence, err = x.await(ctx); err != nil {
			x.release(ctx) // leaves the queue, or gives up what was granted a moment ago
			return true, err
		}
	}
	x.mu.Lock()
	x.fence = fence
	x.mu.Unlock()
	return queued, x.Err()
}

// await waits in the queue. Every round asks the leader of that moment; the queue is replicated, so nothing is lost with a leader.
func (x *LockLease) await(ctx context.Context) (dc.Revision, error) {
	wait, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(x.session.ctx, cancel)()
	for {
		round, stop := context.WithTimeout(wait, dc.OpTimeout)
		r, err := lockCall(round, x.lock, false, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockAcquireReply, error) {
			return c.Await(ctx, &dcpb.LockAwaitRequest{Header: h, Path: x.path, Session: x.session.id, Owner: x.owner})
		})
		stop()
		switch {
		case err == nil && r.Fence != 0:
			return dc.Revision(r.Fence), nil
		case x.Err() != nil:
			return 0, x.Err()
		case ctx.Err() != nil:
			return 0, dc.Errorf(dc.KindOf(ctx.Err()), "lock.acquire", x.path, "gave up waiting for the lock: %w", ctx.Err())
		case err != nil && dc.KindOf(err) == dc.Stale:
			x.session.end(err)
			return 0, x.Err()
		case err != nil && !retriable(err) && dc.KindOf(err) != dc.Interrupted:
			return 0, err
		}
	}
}

// Convert changes the lock's mode, as flock(2) does on a descriptor that already holds one: not atomically if others wait. If it fails with
// dc.Again the lease keeps its mode; after any other error it is released.
func (x *LockLease) Convert(ctx context.Context, exclusive, wait bool) error {
	if err := x.Err(); err != nil {
		return err
	}
	if err := x.session.use(); err != nil {
		return err
	}
	// The attempt is a lease of its own under the same identity, so that giving it up gives up the whole.
	y := &LockLease{lock: x.lock, session: x.session, path: x.path, owner: x.owner, released: make(chan struct{})}
	_, err := y.acquire(ctx, time.Now().Add(dc.OpTimeout), exclusive, wait)
	switch {
	case err == nil:
		x.mu.Lock()
		x.fence = y.Fence()
		x.mu.Unlock()
		y.drop() // x goes on
	case dc.KindOf(err) != dc.Again:
		x.drop()
	}
	return err
}

// Release gives the lease up. It returns when that is done or ctx ends; in the background it goes on until it is done or the session is over.
// Under a session that has ended there is nothing to give up: dc.Stale.
func (x *LockLease) Release(ctx context.Context) error {
	if err := x.Err(); err != nil {
		x.drop()
		return err
	}
	x.release(ctx)
	select {
	case <-x.released:
		return nil
	case <-ctx.Done():
		return dc.Errorf(dc.KindOf(ctx.Err()), "lock.release", x.path, "the release goes on in the background: %w", ctx.Err())
	}
}

// release starts giving the lease up.
func (x *LockLease) release(ctx context.Context) {
	x.once.Do(func() {
		done := func() {
			x.session.unuse()
			close(x.released)
		}
		background := x.lock.spawn(func() {
			defer done()
			under, cancel := x.under(ctx)
			defer cancel()
			for x.session.ctx.Err() == nil {
				_, err := lockCall(under, x.lock, true, func(ctx context.Context, c dcpb.LockClient, h *dcpb.Header) (*dcpb.LockChangeReply, error) {
					return c.Release(ctx, &dcpb.LockReleaseRequest{Header: h, Path: x.path, Session: x.session.id, Owner: x.owner, Ephemeral: x.keep})
				})
				if err == nil || !retriable(err) {
					return
				}
			}
		})
		if !background { // closed: the session is over
			done()
		}
	})
}

// Abandon starts giving the lease up and does not wait for it.
func (x *LockLease) Abandon() { x.release(context.Background()) }
