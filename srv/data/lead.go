package data

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/replica"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/data"
)

const (
	sweepEvery    = time.Second
	sweepPage     = 256
	deleteTimeout = 3 * time.Second
	deleteBackoff = 5 * time.Second // how long a node that did not answer is left alone
)

// term is what the sweeps of a group know while this node leads it.
type term struct {
	kick    chan struct{} // there are new orphans
	applied atomic.Uint64 // entries applied in this term
	// swept is applied as it was before a sweep that left nothing to do. Until more is applied there is nothing to look for; an empty look is not
	// cheap, as it passes over the remains of all that was purged lately.
	swept uint64
	seen  map[file.Ino]time.Time  // when orphans were first seen that wait for their purge
	quiet map[dc.NodeID]time.Time // nodes that did not answer, left alone until then
	care  *care                   // nil: nobody cares for blocks
	locks *locks
}

// lead purges orphans and has garbage deleted while this node leads the group.
func (s *Service) lead(ctx context.Context, r replica.Replica) {
	t := &term{kick: make(chan struct{}, 1), quiet: map[dc.NodeID]time.Time{}, seen: map[file.Ino]time.Time{}, locks: newLocks(ctx, r, s.cfg.LockExpiry)}
	t.applied.Store(1) // what earlier leaders left
	if s.cfg.Care.Stores != nil && s.cfg.Care.Members != nil {
		t.care = newCare(s.cfg.Care, r, s.cfg.Log)
		var caring sync.WaitGroup
		caring.Go(func() { t.care.run(ctx) })
		defer caring.Wait()
	}
	s.setTerm(r.Group(), t)
	defer s.setTerm(r.Group(), nil)
	s.leases(r.Group()).Lead()
	defer s.leases(r.Group()).Resign()
	var locking sync.WaitGroup
	locking.Go(func() { t.locks.run(ctx, s.cfg.Log) })
	defer locking.Wait()
	s.openFiles(r.Group()).endPurge()
	purgeFrom := time.Now().Add(s.cfg.Grace)
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-t.kick:
			// Names go in bursts: a moment later there are more of them to purge in one command.
			if !pause(ctx, sweepEvery/20) {
				return
			}
		}
		s.openFiles(r.Group()).expire()
		s.sweep(ctx, r, t, time.Now().After(purgeFrom))
	}
}

// sweep purges, if it may, and collects garbage.
func (s *Service) sweep(ctx context.Context, r replica.Replica, t *term, mayPurge bool) {
	at := t.applied.Load()
	if at == t.swept {
		return
	}
	purged := false
	if mayPurge {
		var err error
		purged, err = s.purge(ctx, r, t)
		s.report(ctx, r, "purge", err)
	}
	collected, err := s.collect(ctx, r, t)
	s.report(ctx, r, "garbage", err)
	if purged && collected {
		t.swept = at
	}
}

func (s *Service) setTerm(g dc.GroupID, t *term) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t == nil {
		delete(s.terms, g)
		return
	}
	s.terms[g] = t
}

// report logs what a sweep could not do; the next one tries again.
func (s *Service) report(ctx context.Context, r replica.Replica, sweep string, err error) {
	if err != nil && ctx.Err() == nil {
		s.cfg.Log.Warn("data sweep stopped early", "group", r.Group(), "sweep", sweep, "err", err)
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// An orphan is purged orphanRest after it was first seen: who found its name just before may be about to open it. Of more than maxSeen none is waited for.
const (
	orphanRest = time.Second
	maxSeen    = 65_536
)

// rested tells whether an orphan has been seen long enough ago.
func (t *term) rested(ino file.Ino) bool {
	first, known := t.seen[ino]
	if !known && len(t.seen) < maxSeen {
		t.seen[ino] = time.Now()
		return false
	}
	return !known || time.Since(first) >= orphanRest
}

// purge deletes the orphans that nobody has open, a page a command. It tells whether none is left.
func (s *Service) purge(ctx context.Context, r replica.Replica, t *term) (clean bool, err error) {
	open := s.openFiles(r.Group())
	clean = true
	for from := file.Ino(0); ctx.Err() == nil; {
		var page []file.Ino
		err := r.Local(func(rd storage.Reader) error {
			page = data.Orphans(rd, 0, from, sweepPage)
			return nil
		})
		if err != nil || len(page) == 0 {
			if clean = clean && err == nil; clean {
				clear(t.seen)
			}
			return clean, err
		}
		if open.isMaking() { // after the page was read: one that was made by then is noted as open once nothing is being made
			return false, nil
		}
		from = page[len(page)-1]
		var inos []uint64
		for _, ino := range page {
			if !t.rested(ino) || s.leases(r.Group()).Pending(ino) || !open.startPurge(ino) {
				clean = false
				continue
			}
			inos = append(inos, uint64(ino))
		}
		for more := len(inos) > 0; more; {
			op := &command.DataCommand_Purge{Purge: &command.DataPurge{Inos: inos}}
			res, err := propose(ctx, r, r.NewID(), &command.DataCommand{Version: data.FirstVersion, Op: op})
			if err != nil {
				return false, err
			}
			more = res.More
		}
		open.endPurge() // they are gone; with an unknown outcome they stay marked until it is known
		for _, ino := range inos {
			delete(t.seen, file.Ino(ino))
		}
	}
	return false, nil
}

// collect has nodes delete the blocks that nothing references any more. It tells whether none is left.
func (s *Service) collect(ctx context.Context, r replica.Replica, t *term) (clean bool, err error) {
	if s.cfg.Deleter == nil {
		return true, nil
	}
	var nodes []dc.NodeID
	if err := r.Local(func(rd storage.Reader) error { nodes = data.GarbageNodes(rd, 0); return nil }); err != nil {
		return false, err
	}
	clean = true
	var errs []error
	for _, n := range nodes {
		if time.Now().Before(t.quiet[n]) {
			clean = false
			continue
		}
		if err := s.collectAt(ctx, r, n, t.care != nil && t.care.hasRemoved(n)); err != nil {
			clean = false
			t.quiet[n] = time.Now().Add(deleteBackoff)
			if !errors.Is(err, dc.Busy) { // it keeps what it has just fetched, for a while
				errs = append(errs, err)
			}
		}
	}
	return clean, errors.Join(errs...)
}

// collectAt has one node delete its garbage. What is on a removed node is only forgotten.
func (s *Service) collectAt(ctx context.Context, r replica.Replica, n dc.NodeID, removed bool) error {
	for ctx.Err() == nil {
		var ids []file.BlockID
		if err := r.Local(func(rd storage.Reader) error { ids = data.Garbage(rd, 0, n, sweepPage); return nil }); err != nil {
			return err
		}
		if len(ids) == 0 {
			return nil
		}
		if !removed {
			attempt, cancel := context.WithTimeout(ctx, deleteTimeout)
			err := s.cfg.Deleter.DeleteBlocks(attempt, n, ids)
			cancel()
			if err != nil && !errors.Is(err, dc.NotFound) { // NotFound: the node is no longer a member, nor are its blocks
				return err
			}
		}
		forget := &command.DataForget{}
		for _, id := range ids {
			forget.Blocks = append(forget.Blocks, &command.DataGarbage{Node: uint64(n), Block: id.Bytes()})
		}
		op := &command.DataCommand_Forget{Forget: forget}
		if _, err := propose(ctx, r, r.NewID(), &command.DataCommand{Version: data.FirstVersion, Op: op}); err != nil {
			return err
		}
	}
	return nil
}
