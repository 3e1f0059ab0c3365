package data

import (
	"context"
	"errors"
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

// lead purges orphans and has garbage deleted while this node leads the group.
func (s *Service) lead(ctx context.Context, r replica.Replica) {
	kick := make(chan struct{}, 1)
	s.setKick(r.Group(), kick)
	defer s.setKick(r.Group(), nil)
	purgeFrom := time.Now().Add(s.cfg.Grace)
	quiet := map[dc.NodeID]time.Time{}
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-kick:
			// Names go in bursts: a moment later there are more of them to purge in one command.
			if !pause(ctx, sweepEvery/20) {
				return
			}
		}
		s.openFiles(r.Group()).expire()
		if time.Now().After(purgeFrom) {
			s.report(ctx, r, "purge", s.purge(ctx, r))
		}
		s.report(ctx, r, "garbage", s.collect(ctx, r, quiet))
	}
}

func (s *Service) setKick(g dc.GroupID, kick chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if kick == nil {
		delete(s.kicks, g)
		return
	}
	s.kicks[g] = kick
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

// purge deletes the orphans that nobody has open, a page a command.
func (s *Service) purge(ctx context.Context, r replica.Replica) error {
	open := s.openFiles(r.Group())
	for from := file.Ino(0); ctx.Err() == nil; {
		var page []file.Ino
		err := r.Local(func(rd storage.Reader) error {
			page = data.Orphans(rd, 0, from, sweepPage)
			return nil
		})
		if err != nil || len(page) == 0 {
			return err
		}
		from = page[len(page)-1]
		var inos []uint64
		for _, ino := range page {
			if !open.isOpen(ino) {
				inos = append(inos, uint64(ino))
			}
		}
		for more := len(inos) > 0; more; {
			op := &command.DataCommand_Purge{Purge: &command.DataPurge{Inos: inos}}
			res, err := propose(ctx, r, r.NewID(), &command.DataCommand{Version: data.Version, Op: op})
			if err != nil {
				return err
			}
			more = res.More
		}
	}
	return nil
}

// collect has nodes delete the blocks that nothing references any more. quiet remembers nodes that did not answer.
func (s *Service) collect(ctx context.Context, r replica.Replica, quiet map[dc.NodeID]time.Time) error {
	if s.cfg.Deleter == nil {
		return nil
	}
	var nodes []dc.NodeID
	if err := r.Local(func(rd storage.Reader) error { nodes = data.GarbageNodes(rd, 0); return nil }); err != nil {
		return err
	}
	var errs []error
	for _, n := range nodes {
		if time.Now().Before(quiet[n]) {
			continue
		}
		if err := s.collectAt(ctx, r, n); err != nil {
			quiet[n] = time.Now().Add(deleteBackoff)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *Service) collectAt(ctx context.Context, r replica.Replica, n dc.NodeID) error {
	for ctx.Err() == nil {
		var ids []file.BlockID
		if err := r.Local(func(rd storage.Reader) error { ids = data.Garbage(rd, 0, n, sweepPage); return nil }); err != nil {
			return err
		}
		if len(ids) == 0 {
			return nil
		}
		attempt, cancel := context.WithTimeout(ctx, deleteTimeout)
		err := s.cfg.Deleter.DeleteBlocks(attempt, n, ids)
		cancel()
		if err != nil && !errors.Is(err, dc.NotFound) { // NotFound: the node is no longer a member, nor are its blocks
			return err
		}
		forget := &command.DataForget{}
		for _, id := range ids {
			forget.Blocks = append(forget.Blocks, &command.DataGarbage{Node: uint64(n), Block: id.Bytes()})
		}
		op := &command.DataCommand_Forget{Forget: forget}
		if _, err := propose(ctx, r, r.NewID(), &command.DataCommand{Version: data.Version, Op: op}); err != nil {
			return err
		}
	}
	return nil
}
