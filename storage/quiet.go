package storage

import (
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// Badger's compactors look for work twenty times a second each, which makes six idle shards cost 2% of a core and their
// work nothing. So a shard sleeps, without compactors, until it has written enough tables to have some: then its files are
// reopened with them (about 20 ms, views wait), and again without when nothing has been written for a while. Compactors cannot be started and
// stopped through Badger's API, only chosen when it opens.
const (
	wakeTables  = 5                // level 0 tables at which compaction pays; Badger's own default
	pressTables = 12               // from here on the wake-up waits for readers to end
	pressWait   = 2 * time.Second  // and this long at most
	sleepAfter  = 20 * time.Second // without a write
)

// A sleeper puts a shard to sleep again.
type sleeper struct {
	shard *Shard
	// bytes written since tables were last counted; guarded by the shard's apply.
	bytes int

	alarm
}

func (z *sleeper) init(s *Shard) { z.shard = s }

// wrote notes that bytes were committed and wakes the compactors if there is work for them. Called under apply.
func (s *Shard) wrote(bytes int) error {
	z := &s.sleeper
	if z.bytes += bytes; int64(z.bytes) < s.cfg.MemTableBytes/2 {
		return nil
	}
	z.bytes = 0
	if s.gen.awake {
		z.schedule()
		return nil
	}
	tables := s.gen.db.Levels()[0].NumTables
	if tables < wakeTables {
		return nil
	}
	wait := time.Duration(0)
	if tables >= pressTables {
		wait = pressWait
	}
	if err := s.reopen(true, wait); err != nil {
		return &Fault{err}
	}
	if s.gen.awake {
		z.schedule()
	}
	return nil
}

// schedule sets or moves the time of the next attempt to sleep.
func (z *sleeper) schedule() { z.set(sleepAfter, z.shard.sleep) }

// sleep reopens the files without compactors if they have no work.
func (s *Shard) sleep() {
	s.apply.Lock()
	defer s.apply.Unlock()
	s.mu.Lock()
	idle := s.gen != nil && s.failed == nil && !s.paused && s.gen.db != nil && s.gen.awake
	s.mu.Unlock()
	if !idle {
		return
	}
	err := error(nil)
	if s.gen.db.Levels()[0].NumTables < wakeTables {
		err = s.reopen(false, 0)
	}
	if err != nil {
		s.fail(&Fault{err})
	} else if s.gen.awake {
		s.sleeper.schedule()
	}
}

// reopen closes and opens the current generation's files, with compactors or without. With readers about it waits for at most wait
// and then leaves things as they are. Called under apply.
func (s *Shard) reopen(awake bool, wait time.Duration) error {
	s.checkpoint.Lock()
	defer s.checkpoint.Unlock()
	g := s.gen
	if !s.pause(g, wait) {
		return nil
	}
	defer func() {
		s.mu.Lock()
		s.paused = false
		s.free.Broadcast()
		s.mu.Unlock()
	}()
	if err := g.db.Close(); err != nil {
		return fmt.Errorf("reopen: %w", err)
	}
	db, err := badger.OpenManaged(badgerOptions(g.path, &s.cfg, awake))
	if err != nil {
		return fmt.Errorf("reopen: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g.db, g.awake = db, awake
	g.discardLocked(s.durable.Index)
	return nil
}

// pause holds new readers back and waits for those there are.
func (s *Shard) pause(g *generation, wait time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g.refs > 1 && wait == 0 {
		return false
	}
	s.paused = true
	expired := false
	if g.refs > 1 {
		t := time.AfterFunc(wait, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			expired = true
			s.free.Broadcast()
		})
		defer t.Stop()
	}
	for g.refs > 1 && !expired {
		s.free.Wait()
	}
	if g.refs > 1 {
		s.paused = false
		s.free.Broadcast()
		return false
	}
	return true
}
