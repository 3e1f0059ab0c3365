package logstore

import (
	"bytes"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"missingos/srv/dc"
)

// group is one group's part of a shared log. Its fields are guarded by the log's mu.
type group struct {
	shared *Shared
	id     dc.GroupID

	first   uint64  // index of entries[0]; meaningless if there are none
	entries []place // contiguous
	queued  uint64  // the greatest index that is being written

	state    place // of the newest state record
	rec      voteRecord
	voteTerm uint64 // set by Raft first, written together with the candidate
	commit   uint64 // as known
	staged   uint64 // to be written with the next entries
}

var (
	_ Store                       = (*group)(nil)
	_ raft.MonotonicLogStore      = (*group)(nil)
	_ raft.CommitTrackingLogStore = (*group)(nil)
)

// IsMonotonic: entries have no gaps; Raft clears the log before it goes on after a snapshot.
func (*group) IsMonotonic() bool { return true }

// Close does nothing: the log is the node's.
func (*group) Close() error { return nil }

// Stalled is how long the log's write under way has taken.
func (g *group) Stalled() time.Duration { return g.shared.Stalled() }

// usableLocked tells why the group cannot be written. After Drop it cannot: what a replica that ends late still writes would be found by the next
// replica of the group as its own log.
func (g *group) usableLocked() error {
	switch {
	case g.shared.err != nil:
		return g.shared.err
	case g.shared.closed:
		return errClosed
	case g.shared.groups[g.id] != g:
		return errDropped
	}
	return nil
}

func (g *group) lastLocked() uint64 {
	if len(g.entries) == 0 {
		return 0
	}
	return g.first + uint64(len(g.entries)) - 1
}

// FirstIndex is zero if there are no entries.
func (g *group) FirstIndex() (uint64, error) {
	g.shared.mu.Lock()
	defer g.shared.mu.Unlock()
	if len(g.entries) == 0 {
		return 0, nil
	}
	return g.first, nil
}

// LastIndex is zero if there are no entries.
func (g *group) LastIndex() (uint64, error) {
	g.shared.mu.Lock()
	defer g.shared.mu.Unlock()
	return g.lastLocked(), nil
}

// find gives where an entry lies, or the entry itself.
func (g *group) find(index uint64) (*raft.Log, place) {
	g.shared.mu.Lock()
	defer g.shared.mu.Unlock()
	at := g.placeLocked(index)
	if at.seg == nil {
		return nil, at
	}
	return g.shared.cache.get(g, index), at
}

// GetLog reads an entry, from memory if it is a late one, else from its segment.
func (g *group) GetLog(index uint64, log *raft.Log) error {
	kept, at := g.find(index)
	for {
		switch {
		case kept != nil:
			*log = *kept
			return nil
		case at.seg == nil:
			return raft.ErrLogNotFound
		}
		r, err := g.shared.readPlace(at)
		if err == nil && (r.kind != kindEntry || r.group != g.id || r.index != index) {
			err = fmt.Errorf("%s: at %d there is another record than entry %d of %s: the file is damaged", at.seg.name, at.off, index, g.id)
		}
		if err == nil {
			if err = decodeEntry(r, log); err == nil {
				return nil
			}
		}
		was := at
		if kept, at = g.find(index); kept == nil && at == was { // else it was moved, or truncated, and the file used again
			return dc.Errorf(dc.Corrupt, "read", "write-ahead log", "%w", err)
		}
	}
}

// StoreLog appends one entry; see StoreLogs.
func (g *group) StoreLog(l *raft.Log) error { return g.StoreLogs([]*raft.Log{l}) }

// StoreLogs appends entries and returns when they are durable. They must follow what is there, or begin anew in an empty log.
func (g *group) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	records := make([]record, len(logs))
	for i, l := range logs {
		records[i] = encodeEntry(g.id, l)
		if int64(records[i].size()) > g.shared.cfg.SegmentBytes/4 {
			return dc.Errorf(dc.TooLarge, "append", g.id.String(), "an entry of %d bytes exceeds the limit of %d", records[i].size(), g.shared.cfg.SegmentBytes/4)
		}
	}
	var b *batch
	for len(records) > 0 {
		n, size := 0, 0
		for n < len(records) && (n == 0 || int64(size+records[n].size()) <= g.shared.cfg.SegmentBytes/4) {
			size += records[n].size()
			n++
		}
		var err error
		if b, err = g.enqueue(records[:n], logs[:n]); err != nil {
			return err
		}
		records, logs = records[n:], logs[n:]
	}
	return g.shared.wait(b)
}

// enqueue adds entries to a batch that has room for them.
func (g *group) enqueue(records []record, logs []*raft.Log) (*batch, error) {
	s := g.shared
	size := 0
	for _, r := range records {
		size += r.size()
	}
	for {
		s.mu.Lock()
		if err := g.usableLocked(); err != nil {
			s.mu.Unlock()
			return nil, err
		}
		if full := s.next; full != nil && int64(len(full.buf)+size) > s.cfg.SegmentBytes/2 {
			s.mu.Unlock()
			if err := s.wait(full); err != nil {
				return nil, err
			}
			continue
		}
		defer s.mu.Unlock()
		want := max(g.lastLocked(), g.queued) + 1
		if logs[0].Index != want && want != 1 {
			return nil, fmt.Errorf("entry %d of %s does not follow entry %d", logs[0].Index, g.id, want-1)
		}
		var b *batch
		for i, r := range records {
			if i > 0 && logs[i].Index != logs[i-1].Index+1 {
				return nil, fmt.Errorf("entry %d of %s does not follow entry %d", logs[i].Index, g.id, logs[i-1].Index)
			}
			b = s.addLocked(r, op{kind: kindEntry, group: g, index: r.index, log: logs[i]})
			g.queued = r.index
		}
		if g.staged > g.commit {
			g.commit = g.staged
			s.addLocked(record{kind: kindCommit, group: g.id, index: g.commit}, op{kind: kindCommit, group: g})
		}
		return b, nil
	}
}

// placeLocked gives where an entry lies; the zero place if it is not there.
func (g *group) placeLocked(index uint64) place {
	if len(g.entries) == 0 || index < g.first || index > g.lastLocked() {
		return place{}
	}
	return g.entries[index-g.first]
}

// placedLocked notes that an entry is durable.
func (g *group) placedLocked(o op, at place) {
	s := g.shared
	if s.groups[g.id] != g {
		return // dropped meanwhile
	}
	if o.moved.seg != nil {
		if g.placeLocked(o.index) == o.moved {
			s.freeLocked(o.moved)
			g.entries[o.index-g.first] = at
			s.useLocked(at)
		}
		return
	}
	if len(g.entries) == 0 {
		g.first = o.index
	}
	g.entries = append(g.entries, at)
	s.useLocked(at)
	s.cache.put(g, o.log)
	if g.queued == o.index {
		g.queued = 0
	}
}

// DeleteRange drops entries at the beginning (compaction), at the end (conflict), or all. It returns when that is durable. Those at the end must
// not be dropped while entries are appended.
func (g *group) DeleteRange(first, last uint64) error {
	s := g.shared
	s.mu.Lock()
	have, end := g.first, g.lastLocked()
	last = min(last, end)
	if err := g.usableLocked(); err != nil || len(g.entries) == 0 || first > last || last < have {
		s.mu.Unlock()
		return err
	}
	var r record
	switch {
	case first <= have && (last < end || g.queued != 0):
		// A record's place in the log is its place in time: entries that are being written come before this one, and stay.
		r = record{kind: kindFirst, group: g.id, index: last + 1}
		g.cutLocked(have, last)
		g.entries = append([]place(nil), g.entries[last+1-have:]...)
		g.first = last + 1
	case first <= have:
		r = record{kind: kindClear, group: g.id}
		g.clearLocked()
	case last == end && g.queued == 0:
		r = record{kind: kindLast, group: g.id, index: first - 1}
		g.cutLocked(first, end)
		g.entries = g.entries[:first-have]
	default:
		s.mu.Unlock()
		return fmt.Errorf("entries %d to %d are in the middle of %s's %d to %d, or some are being written", first, last, g.id, have, end)
	}
	b := s.addLocked(r, op{kind: r.kind, group: g})
	s.mu.Unlock()
	return s.wait(b)
}

// cutLocked lets go of entries.
func (g *group) cutLocked(first, last uint64) {
	for i := first; i <= last; i++ {
		g.shared.freeLocked(g.entries[i-g.first])
		g.shared.cache.remove(g, i)
	}
}

func (g *group) clearLocked() {
	if len(g.entries) > 0 {
		g.cutLocked(g.first, g.lastLocked())
	}
	g.entries, g.first = nil, 0
}

// StageCommitIndex has index written with the next entries.
func (g *group) StageCommitIndex(index uint64) error {
	g.shared.mu.Lock()
	defer g.shared.mu.Unlock()
	g.staged = max(g.staged, index)
	return nil
}

// GetCommitIndex is the last index known to be committed when entries were last written.
func (g *group) GetCommitIndex() (uint64, error) {
	g.shared.mu.Lock()
	defer g.shared.mu.Unlock()
	return g.commit, nil
}

// write makes rec the group's state.
func (g *group) write(rec voteRecord) error {
	s := g.shared
	s.mu.Lock()
	if err := g.usableLocked(); err != nil {
		s.mu.Unlock()
		return err
	}
	g.rec = rec
	b := s.addLocked(record{kind: kindState, group: g.id, payload: rec.encode()}, op{kind: kindState, group: g})
	s.mu.Unlock()
	return s.wait(b)
}

func (g *group) read() voteRecord {
	g.shared.mu.Lock()
	defer g.shared.mu.Unlock()
	return g.rec
}

// Set stores the candidate of a vote, and with it the vote's term: as one record, since a vote of which half is there could be given twice.
func (g *group) Set(key, value []byte) error {
	if string(key) != keyCandidate {
		return fmt.Errorf("unknown key %q", key)
	}
	rec := g.read()
	rec.voteTerm, rec.candidate = g.voteTerm, bytes.Clone(value)
	return g.write(rec)
}

// Get reads the candidate of the last vote.
func (g *group) Get(key []byte) ([]byte, error) {
	rec := g.read()
	if string(key) != keyCandidate || rec.candidate == nil {
		return nil, errNotFound
	}
	return bytes.Clone(rec.candidate), nil
}

// SetUint64 stores the current term at once; a vote's term waits for its candidate. Raft calls it from one goroutine.
func (g *group) SetUint64(key []byte, value uint64) error {
	switch string(key) {
	case keyTerm:
		rec := g.read()
		rec.term = value
		return g.write(rec)
	case keyVoteTerm:
		g.voteTerm = value
		return nil
	}
	return fmt.Errorf("unknown key %q", key)
}

// GetUint64 reads a term.
func (g *group) GetUint64(key []byte) (uint64, error) {
	switch string(key) {
	case keyTerm:
		return g.read().term, nil
	case keyVoteTerm:
		return g.read().voteTerm, nil
	}
	return 0, errNotFound
}
