package storage

import (
	"fmt"
	"runtime/debug"
	"slices"

	"missingos/srv/dc"
)

// Apply applies committed entries in order and returns the results by entry and command. It blocks until they are in Badger, not
// until they are on stable storage: that is what the log is for, and [Shard.Checkpoint].
//
// Outline: entries are run into one overlay over the state they started from; when it is large enough, or the entries are
// through, it is written at the index of its last entry and the applied index moves. An entry with no commands (a no-op of
// the log) moves the index only, and ends what is written together. An entry at or below the applied index is not applied; its commands get an error.
//
// A machine that panics or returns an error after writing, and a disk that fails, are the end: Config.Fatal.
func (s *Shard) Apply(entries []Entry) [][]Result {
	s.apply.Lock()
	defer s.apply.Unlock()
	s.mu.Lock()
	failed := s.failed
	if failed == nil && !s.paused && s.gen.db == nil && !s.newsLocked(entries) {
		failed = appliedAlready(s.applied.Index)
		s.mu.Unlock()
		return refuse(nil, entries, failed)
	}
	if failed == nil {
		failed = s.filesLocked(false)
	}
	s.mu.Unlock()
	results := make([][]Result, 0, len(entries))
	if failed == nil {
		failed = s.run(entries, &results)
		if failed != nil {
			s.fail(failed)
		}
	}
	return refuse(results, entries, failed) // some only if Fatal returned
}

// refuse answers the entries that have no results yet.
func refuse(results [][]Result, entries []Entry, err error) [][]Result {
	for i := len(results); i < len(entries); i++ {
		refused := make([]Result, len(entries[i].Commands))
		for j := range refused {
			refused[j].Err = dc.Wrap(err, "apply", "")
		}
		results = append(results, refused)
	}
	return results
}

// newsLocked tells whether one of the entries is not applied yet. A log that is replayed after a start takes no shard from the shelf by
// what that knows.
func (s *Shard) newsLocked(entries []Entry) bool {
	return slices.ContainsFunc(entries, func(e Entry) bool { return e.Index > s.applied.Index })
}

// run applies entries, group by group.
func (s *Shard) run(entries []Entry, results *[][]Result) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("apply: %v\n%s", p, debug.Stack())
		}
	}()
	limit := int(s.cfg.MemTableBytes / 16)
	for len(entries) > 0 {
		n, bytes, err := s.group(entries, limit, results)
		if err == nil {
			err = s.wrote(bytes)
		}
		if err != nil {
			return err
		}
		entries = entries[n:]
	}
	return nil
}

// groupStep: every multiple of it ends a group, on every replica. See [Shard.Hold].
const groupStep = 64

// group applies entries until about limit bytes are to be written, commits them and tells the observers. It returns how many, and
// the bytes they wrote.
func (s *Shard) group(entries []Entry, limit int, results *[][]Result) (n, bytes int, err error) {
	g := s.gen
	base := &cachedReader{g: g, at: s.ledger.applied}
	defer base.close()
	over := &overlay{base: base}
	before := s.ledger.applied
	var events [][]any
	for _, e := range entries {
		r, ev := s.ledger.entry(over, e)
		*results = append(*results, r)
		events = append(events, ev)
		if over.bytes >= limit || e.Index%groupStep == 0 || len(e.Commands) == 0 { // see Held, and Digest
			break
		}
	}
	for i, ev := range events {
		if entries[i].Index > before && len(ev) > 0 {
			for _, fn := range s.foretold {
				fn(ev)
			}
		}
	}
	if l := s.ledger; l.applied > before {
		m := Mark{l.applied, l.term}
		if err := g.write(over, m, l.clock, s.cfg.BootID); err != nil {
			return 0, 0, &Fault{err}
		}
		g.cache.advance(&over.rows, m.Index)
		s.mu.Lock()
		s.applied, s.clock = m, l.clock
		s.wakeLocked()
		s.mu.Unlock()
	}
	for i, ev := range events {
		if entries[i].Index <= before {
			continue
		}
		for _, fn := range s.observers {
			fn(entries[i].Index, ev)
		}
	}
	return len(events), over.bytes, nil
}
