package consensus

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"missingos/srv/dc"
)

// fsm hands committed entries to the state machine and counts what is applied. Raft's own AppliedIndex means queued, not applied, and
// no-ops and barriers never come by here; so the count is kept here, with a term's barrier as its floor.
type fsm struct {
	g     *Group
	clock atomic.Int64 // of the last applied entry, or the last one stamped here
	began atomic.Int64 // start of the apply under way, Unix nanoseconds; zero if none

	mu      sync.Mutex
	applied uint64
	moved   chan struct{} // closed and replaced when applied grows
}

var (
	_ raft.BatchingFSM        = (*fsm)(nil)
	_ raft.ConfigurationStore = (*fsm)(nil)
)

func newFSM(g *Group) *fsm {
	f := &fsm{g: g, applied: uint64(g.cfg.Machine.Applied()), moved: make(chan struct{})}
	if s := g.snaps.current; s != nil {
		f.applied = max(f.applied, s.Index)
	}
	f.clock.Store(g.cfg.Machine.Clock())
	return f
}

// ApplyBatch applies committed entries; it runs on Raft's apply goroutine only.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	f.began.Store(time.Now().UnixNano())
	defer f.began.Store(0)
	if !f.rebuild(logs[0].Index - 1) {
		return make([]any, len(logs))
	}
	entries := make([]Entry, 0, len(logs))
	for _, l := range logs {
		if l.Type != raft.LogCommand {
			continue // a configuration: only its index counts
		}
		clock, commands, err := decodeEntry(l.Data)
		if err != nil {
			f.g.fatal(fmt.Errorf("entry %d: %w; this replica is older than the log, or its log is damaged", l.Index, err))
			return make([]any, len(logs))
		}
		entries = append(entries, Entry{Index: dc.Index(l.Index), Term: dc.Term(l.Term), Clock: clock, Commands: commands})
		f.stamp(clock)
	}
	var results [][]Result
	if len(entries) > 0 {
		results = f.g.cfg.Machine.Apply(entries)
	}
	out, next := make([]any, len(logs)), 0
	for i, l := range logs {
		if l.Type == raft.LogCommand {
			out[i] = results[next]
			next++
		}
	}
	f.reached(logs[len(logs)-1].Index)
	return out
}

// stamp raises the clock to at least ms.
func (f *fsm) stamp(ms int64) {
	for {
		old := f.clock.Load()
		if ms <= old || f.clock.CompareAndSwap(old, ms) {
			return
		}
	}
}

// Apply is not used by Raft when ApplyBatch is there.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// StoreConfiguration exists so that Raft passes configurations by, which keeps the count exact.
func (f *fsm) StoreConfiguration(index uint64, _ raft.Configuration) { f.reached(index) }

// Snapshot is instant: the state machine's checkpoint is taken in Persist.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if !f.rebuild(0) {
		return nil, raft.ErrRaftShutdown
	}
	return ownSnapshot{f.g.cfg.Machine}, nil
}

// Restore pulls the rows that the leader's manifest names.
func (f *fsm) Restore(r io.ReadCloser) error {
	if err := f.g.restore(r); err != nil {
		return err
	}
	f.stamp(f.g.cfg.Machine.Clock())
	f.reached(uint64(f.g.cfg.Machine.Applied()))
	return nil
}

// reached raises the count to at least index and wakes who waits.
func (f *fsm) reached(index uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if index > f.applied {
		f.applied = index
		close(f.moved)
		f.moved = make(chan struct{})
	}
}

func (f *fsm) index() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applied
}

// wait returns when everything up to index is applied.
func (f *fsm) wait(ctx context.Context, index uint64) error {
	for {
		f.mu.Lock()
		applied, moved := f.applied, f.moved
		f.mu.Unlock()
		if applied >= index {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// stalled is how long the apply under way has taken, without the time it was queued, as far as that was seen by asking here.
func (f *fsm) stalled() time.Duration {
	began := f.began.Load()
	if began == 0 {
		return 0
	}
	if f.g.cfg.Machine.Queued() {
		f.began.CompareAndSwap(began, time.Now().UnixNano())
		return 0
	}
	return time.Since(time.Unix(0, began))
}
