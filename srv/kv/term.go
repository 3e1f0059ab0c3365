package kv

import (
	"context"
	"sync"
	"time"

	"missingos/srv/dc"
	"missingos/srv/replica"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/kv"
)

// Times of a leader's care for dropped tables and rows with a time to live.
const (
	retryAfter  = 10 * time.Second
	sweepPause  = 5 * time.Millisecond
	sweepTables = 64
)

// A term is this node's time as leader of one group.
type term struct {
	wake chan struct{} // holds one token when there is news

	mu      sync.Mutex
	dropped bool  // there may be a table to sweep
	next    int64 // when the next row is to go, log clock; 0: none
}

// applied tells the leader's term what there is to do.
func (s *Service) applied(g dc.GroupID, _ dc.Index, events []any) {
	if len(events) == 0 {
		return
	}
	s.mu.Lock()
	t := s.terms[g]
	s.mu.Unlock()
	if t == nil {
		return // this node does not lead
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, ev := range events {
		switch ev := ev.(type) {
		case kv.Dropped:
			t.dropped = true
		case kv.Expiring:
			if t.next != 0 && t.next <= ev.AtMs {
				continue
			}
			t.next = ev.AtMs
		}
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
}

// lead sweeps dropped tables and removes rows whose time is over while this node leads the group. It reads nothing while there is nothing to do.
func (s *Service) lead(ctx context.Context, r replica.Replica) {
	t := &term{wake: make(chan struct{}, 1), dropped: true, next: 1} // whatever an earlier leader left
	s.mu.Lock()
	s.terms[r.Group()] = t
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.terms[r.Group()] == t {
			delete(s.terms, r.Group())
		}
	}()
	for {
		wait, err := s.care(ctx, r, t)
		if err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("dropped tables or rows whose time is over stay for now", "group", r.Group().String(), "err", err)
			wait = retryAfter
		}
		timer := time.NewTimer(wait)
		select {
		case <-t.wake:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// care does what is due, and tells how long there is nothing.
func (s *Service) care(ctx context.Context, r replica.Replica, t *term) (wait time.Duration, err error) {
	t.mu.Lock()
	sweep, next := t.dropped, t.next
	t.dropped = false
	t.mu.Unlock()
	if sweep {
		if err := s.sweepAll(ctx, r); err != nil {
			t.mu.Lock()
			t.dropped = true
			t.mu.Unlock()
			return 0, err
		}
	}
	if next != 0 && next <= r.Clock() {
		if err := t.expire(ctx, r); err != nil {
			return 0, err
		}
		t.mu.Lock()
		next = t.next
		t.mu.Unlock()
	}
	if next == 0 {
		return time.Hour, nil
	}
	return time.Duration(next-r.Clock()) * time.Millisecond, nil
}

// expire removes the rows that are due and finds when the next is. What comes meanwhile is heard of by applied.
func (t *term) expire(ctx context.Context, r replica.Replica) error {
	t.mu.Lock()
	t.next = 0
	t.mu.Unlock()
	next, err := expireDue(ctx, r)
	if err != nil {
		next = r.Clock() // again
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if next != 0 && (t.next == 0 || next < t.next) {
		t.next = next
	}
	return err
}

func expireDue(ctx context.Context, r replica.Replica) (next int64, err error) {
	for {
		err := r.Local(func(rd storage.Reader) error {
			next = kv.NextExpiry(rd)
			return nil
		})
		if err != nil || next == 0 || next > r.Clock() {
			return next, err
		}
		once, cancel := context.WithTimeout(ctx, dc.OpTimeout)
		_, err = propose(once, r, r.NewID(), &command.KVExpire{})
		cancel()
		if err != nil {
			return next, err
		}
	}
}

func (s *Service) sweepAll(ctx context.Context, r replica.Replica) error {
	after := uint64(0)
	for {
		var tables []uint64
		err := r.Local(func(rd storage.Reader) error {
			tables = kv.Unswept(rd, after, sweepTables)
			return nil
		})
		if err != nil || len(tables) == 0 {
			return err
		}
		for _, t := range tables {
			if err := s.sweepTable(ctx, r, t); err != nil {
				return err
			}
			after = t
		}
	}
}

func (s *Service) sweepTable(ctx context.Context, r replica.Replica, table uint64) error {
	for {
		once, cancel := context.WithTimeout(ctx, dc.OpTimeout)
		res, err := propose(once, r, r.NewID(), &command.KVSweep{Table: table})
		cancel()
		if err != nil {
			return err
		}
		if !res.More {
			break
		}
		select { // leave room for what users wait for
		case <-time.After(sweepPause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if s.cfg.Descriptors == nil {
		return nil
	}
	once, cancel := context.WithTimeout(ctx, dc.OpTimeout)
	defer cancel()
	return s.cfg.Descriptors.RemoveDescriptor(once, "table", table)
}
