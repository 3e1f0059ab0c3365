package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"

	"missingos/srv/dc"
)

// An open Badger instance costs 11 MiB of address space, a third of a MiB of memory, eleven goroutines and 10 ms to open, used or not. So a
// shard that nobody has read or written for a while is shelved: checkpointed, and its files closed. It knows its applied and durable marks and
// its clock, which is all that consensus asks of an idle replica, and is opened again by the first who reads or writes it, who waits that
// long. A shard that was closed or killed while shelved, and a new one, begin shelved.
//
// What makes that safe: a shelved shard's applied mark is its durable mark, written to CHECKPOINT before the files are closed; and one is only
// taken for shelved at the start if Badger has left no memtable log, which it makes when it opens and removes when it closes. Otherwise
// the files are opened at once, as there may be more in them.
const (
	defaultShelveAfter = time.Minute
	shelfSlots         = 2 // shards of this process that are opened or put away at a time
)

// shelfTurns keeps many shards that are used at once from opening all at the same time: each would take as long as all together. Somebody waits for
// a reader, while those that only apply are followers, mostly: a storm of first writes leaves many of them, and they come last.
var shelfTurns = turns{free: shelfSlots}

type turns struct {
	mu              sync.Mutex
	free            int
	urgent, patient []chan struct{}
}

// take waits for a turn. The last free one is for those in a hurry.
func (t *turns) take(urgent bool) {
	t.mu.Lock()
	if t.free > 1 || t.free == 1 && urgent {
		t.free--
		t.mu.Unlock()
		return
	}
	mine := make(chan struct{})
	if urgent {
		t.urgent = append(t.urgent, mine)
	} else {
		t.patient = append(t.patient, mine)
	}
	t.mu.Unlock()
	<-mine
}

// give ends a turn.
func (t *turns) give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.free++
	switch {
	case len(t.urgent) > 0:
		close(t.urgent[0])
		t.urgent = t.urgent[1:]
		t.free--
	case len(t.patient) > 0 && t.free > 1:
		close(t.patient[0])
		t.patient = t.patient[1:]
		t.free--
	}
}

// Ready returns when the files are open. Who is about to have a command applied for somebody who waits calls it first: it comes before
// shards that only follow.
func (s *Shard) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.filesLocked(true)
}

// filesLocked returns when the files are open. It gives mu up while they are being opened.
func (s *Shard) filesLocked(urgent bool) error {
	for {
		switch {
		case s.failed != nil:
			return s.failed
		case s.paused:
			s.free.Wait()
		case s.gen.db != nil:
			s.used = true
			return nil
		default:
			s.takeDownLocked(urgent)
		}
	}
}

// takeDownLocked opens the files of a shelved shard. What it changes is the apply path's, which waits for paused to end before it looks.
func (s *Shard) takeDownLocked(urgent bool) {
	s.paused = true
	g := s.gen
	s.mu.Unlock()
	l, err := s.takeDown(g, urgent)
	if err != nil {
		err = dc.Wrap(err, "open", g.path)
		s.cfg.Damaged(err)
		s.fail(err)
	}
	s.mu.Lock()
	if err == nil {
		s.ledger = l
		s.applied, s.clock = Mark{l.applied, l.term}, l.clock
		s.wakeLocked()
		g.discardLocked(s.durable.Index)
		if g.awake {
			s.sleeper.schedule()
		}
		s.shelf.set(s.cfg.ShelveAfter, s.shelve)
	}
	s.paused = false
	s.free.Broadcast()
}

// Queued tells whether Apply waits for other shards of this process to be opened before this one. It does not block.
func (s *Shard) Queued() bool { return s.queued.Load() }

// takeDown opens g's files and loads the ledger.
func (s *Shard) takeDown(g *generation, urgent bool) (*ledger, error) {
	s.queued.Store(true)
	shelfTurns.take(urgent)
	defer shelfTurns.give()
	s.queued.Store(false)
	if err := s.cfg.hooks.at("take down"); err != nil {
		return nil, err
	}
	if _, err := g.openFiles(&s.cfg); err != nil {
		return nil, err
	}
	l, err := g.load(s.machine)
	if err == nil && l.applied < s.Mark().Index {
		err = dc.Errorf(dc.Corrupt, "", g.path, "the state goes to entry %d, it went to entry %d when it was put away", l.applied, s.Mark().Index)
	}
	if err != nil {
		err = errors.Join(err, g.db.Close())
		g.db = nil
	}
	return l, err
}

// shelve puts the shard away if nobody has used it since it was last asked, and has itself called again if not.
func (s *Shard) shelve() {
	s.apply.Lock()
	defer s.apply.Unlock()
	s.mu.Lock()
	open := s.gen != nil && s.failed == nil && !s.paused && s.gen.db != nil
	idle := open && !s.used && !s.gen.awake && s.gen.refs == 1
	s.used = false
	s.mu.Unlock()
	if !open {
		return
	}
	if idle {
		s.queued.Store(true)
		shelfTurns.take(false)
		s.queued.Store(false)
		done, err := s.putAway()
		shelfTurns.give()
		if done {
			giveBack(s.cfg.MemTableBytes)
		}
		if err != nil {
			s.fail(&Fault{err})
		}
		if done || err != nil {
			return
		}
	}
	s.shelf.set(s.cfg.ShelveAfter, s.shelve)
}

// When so much of memtables was put away, or less with some time in between, the memory is given back to the system, which takes a full collection.
// Left alone, the collector would keep in step with what all shards together took when they were last in use. What is less is left
// to its run every two minutes.
const (
	freeBytes     = 256 * dc.MiB
	freeLessBytes = 32 * dc.MiB
	freeLessEvery = 5 * time.Second
)

var kept struct {
	mu    sync.Mutex
	bytes int64 // put away, not given back
	freed time.Time
}

// giveBack counts a memtable that was put away.
func giveBack(bytes int64) {
	kept.mu.Lock()
	kept.bytes += bytes
	free := kept.bytes >= freeBytes || kept.bytes >= freeLessBytes && time.Since(kept.freed) >= freeLessEvery
	if free {
		kept.bytes, kept.freed = 0, time.Now()
	}
	kept.mu.Unlock()
	if free {
		debug.FreeOSMemory()
	}
}

// putAway checkpoints and closes the files; done says whether no reader was in the way. Called under apply.
func (s *Shard) putAway() (done bool, err error) {
	g := s.gen
	if err := s.checkpointWith(true); err != nil {
		return false, err
	}
	s.checkpoint.Lock()
	defer s.checkpoint.Unlock()
	if !s.pause(g, 0) {
		return false, nil
	}
	if err = s.cfg.hooks.at("put away"); err == nil {
		err = g.db.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paused = false
	s.free.Broadcast()
	if err != nil {
		return false, fmt.Errorf("put away: %w", err)
	}
	g.db, g.large, s.ledger = nil, nil, nil
	g.cache = newCache(s.cfg.CacheBytes, 0)
	return true, nil
}

// onShelf tells whether the generation at path was put away, or never written, and with which clock.
func onShelf(path string) (rec checkpointRecord, shelved bool, err error) {
	if rec, err = readCheckpoint(path); err != nil || rec.Clock == nil {
		return rec, false, err
	}
	logs, err := filepath.Glob(filepath.Join(path, "*.mem"))
	return rec, len(logs) == 0, err
}

// checkManifest looks whether what Badger says it has of a shelved shard is there, without opening it: damage is better found at the start, when the
// replica can be fetched anew, than when somebody needs it.
func checkManifest(path string) error {
	f, err := os.Open(filepath.Join(path, badger.ManifestFilename))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was ever written
	}
	if err != nil {
		return err
	}
	defer f.Close()
	m, _, err := badger.ReplayManifestFile(f, 0, badger.DefaultOptions(path).WithLogger(nil))
	if err != nil {
		return &Fault{err}
	}
	for id := range m.Tables {
		name := fmt.Sprintf("%06d.sst", id)
		if fi, err := os.Stat(filepath.Join(path, name)); errors.Is(err, fs.ErrNotExist) || err == nil && fi.Size() == 0 {
			return &Fault{fmt.Errorf("the table %s is gone", name)}
		}
	}
	return nil
}

// tableBytes is what the tables of a shelved shard take on disk.
func tableBytes(path string) (sum int64) {
	_ = filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(d.Name(), ".sst") {
			var fi os.FileInfo
			if fi, err = d.Info(); err == nil {
				sum += fi.Size()
			}
		}
		return nil
	})
	return sum
}

// An alarm calls a function later, in a goroutine that stop waits for.
type alarm struct {
	mu      sync.Mutex
	timer   *time.Timer
	stopped bool
	running sync.WaitGroup
}

// set sets or moves the time.
func (a *alarm) set(d time.Duration, call func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopped || d < 0 {
		return
	}
	if a.timer != nil && a.timer.Stop() {
		a.running.Done()
	}
	a.running.Add(1)
	a.timer = time.AfterFunc(d, func() {
		defer a.running.Done()
		call()
	})
}

// stop ends the alarm for good and waits for a call that runs.
func (a *alarm) stop() {
	a.mu.Lock()
	a.stopped = true
	if a.timer != nil && a.timer.Stop() {
		a.running.Done()
	}
	a.mu.Unlock()
	a.running.Wait()
}
