package consensus

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"missingos/consensus/logstore"
)

// A leader that writes an entry to its own disk and only then sends it makes every write wait for two disks in turn, and Raft's main loop with it.
// aheadLog lets it do both at once (Ongaro's thesis, 10.2.1): an append of the leader is taken into memory, readable at once for those who
// send it, and goes to the log in the background; what comes meanwhile goes in one write after it.
//
// Raft counts the leader's own copy as soon as StoreLogs has returned. What keeps that true to the disk:
//
//   - An entry is committed only with the copy of another voter, and no other voter's acknowledgement is handed to Raft before everything it
//     covers is on this disk too (Lane.AppendEntries waits for durable). So whenever a majority counts, this replica's part of it is durable.
//   - A leader that is the only voter, and one that changes who votes, writes at once: they may need nobody else's copy.
//   - A follower writes at once. A former leader may have something left in memory, so a replica answers no AppendEntries before that is on
//     disk (service.Append waits for durable): a match of what it has in memory would be an acknowledgement otherwise.
//   - Votes compare logs with what is in memory, which only refuses more. A new term's own log goes the same way, in order.
//   - Anything but appending (truncation, closing) waits first until memory is empty.
//
// A crash loses what was in memory, as if the leader had crashed before it wrote: none of it was acknowledged, and as no replica leads a term
// twice, none of its indexes is used again in that term.
type aheadLog struct {
	logstore.Store
	mayRun func() bool // tells whether Raft appends as a leader that needs another voter's copy

	mu      sync.Mutex
	tail    []*raft.Log   // taken, not yet on disk
	writing bool          // a goroutine writes
	moved   chan struct{} // closed and replaced when the tail is cut or fails; nil if nobody waits
	err     error         // of the disk; for ever
	wg      sync.WaitGroup
}

func newAheadLog(beneath logstore.Store) *aheadLog {
	return &aheadLog{Store: beneath, mayRun: func() bool { return false }}
}

var (
	_ logstore.Store         = (*aheadLog)(nil)
	_ raft.MonotonicLogStore = (*aheadLog)(nil)
)

// IsMonotonic tells what the log beneath says.
func (a *aheadLog) IsMonotonic() bool {
	m, ok := a.Store.(raft.MonotonicLogStore)
	return ok && m.IsMonotonic()
}

// StoreLog appends one entry.
func (a *aheadLog) StoreLog(l *raft.Log) error { return a.StoreLogs([]*raft.Log{l}) }

// StoreLogs appends: into memory if it may, else to the disk.
func (a *aheadLog) StoreLogs(logs []*raft.Log) error {
	ahead := a.mayRun()
	for _, l := range logs {
		ahead = ahead && l.Type != raft.LogConfiguration
	}
	if !ahead {
		if err := a.drain(); err != nil {
			return err
		}
		return a.Store.StoreLogs(logs)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return a.err
	}
	a.tail = append(a.tail, logs...)
	if !a.writing {
		a.writing = true
		a.wg.Go(a.write)
	}
	return nil
}

// write writes the tail until there is none.
func (a *aheadLog) write() {
	for {
		a.mu.Lock()
		batch := a.tail[:len(a.tail):len(a.tail)]
		if len(batch) == 0 || a.err != nil {
			a.writing = false
			a.tail = nil // lets the array go
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
		err := a.Store.StoreLogs(batch)
		a.mu.Lock()
		if err != nil {
			a.err = err
		} else {
			a.tail = a.tail[len(batch):]
		}
		if a.moved != nil {
			close(a.moved)
			a.moved = nil
		}
		a.mu.Unlock()
	}
}

// durable returns when everything up to index that was taken is on disk.
func (a *aheadLog) durable(ctx context.Context, index uint64) error {
	for {
		a.mu.Lock()
		if a.err != nil {
			defer a.mu.Unlock()
			return a.err
		}
		if len(a.tail) == 0 || a.tail[0].Index > index {
			a.mu.Unlock()
			return nil
		}
		if a.moved == nil {
			a.moved = make(chan struct{})
		}
		moved := a.moved
		a.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// drain waits until memory is empty. It blocks as long as the disk does, as the write itself would.
func (a *aheadLog) drain() error { return a.durable(context.Background(), ^uint64(0)) }

// inMemory finds an entry of the tail.
func (a *aheadLog) inMemory(index uint64) *raft.Log {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.tail) == 0 || index < a.tail[0].Index || index-a.tail[0].Index >= uint64(len(a.tail)) {
		return nil
	}
	return a.tail[index-a.tail[0].Index]
}

// GetLog reads an entry, from memory or from the log.
func (a *aheadLog) GetLog(index uint64, log *raft.Log) error {
	if l := a.inMemory(index); l != nil {
		*log = *l
		return nil
	}
	return a.Store.GetLog(index, log)
}

// FirstIndex is the first entry's.
func (a *aheadLog) FirstIndex() (uint64, error) {
	a.mu.Lock()
	first := uint64(0)
	if len(a.tail) > 0 {
		first = a.tail[0].Index
	}
	a.mu.Unlock()
	i, err := a.Store.FirstIndex()
	if i == 0 && err == nil {
		i = first
	}
	return i, err
}

// LastIndex is the last entry's, in memory or in the log.
func (a *aheadLog) LastIndex() (uint64, error) {
	a.mu.Lock()
	if n := len(a.tail); n > 0 {
		defer a.mu.Unlock()
		return a.tail[n-1].Index, nil
	}
	a.mu.Unlock()
	return a.Store.LastIndex()
}

// DeleteRange drops entries of the log.
func (a *aheadLog) DeleteRange(first, last uint64) error {
	if err := a.drain(); err != nil {
		return err
	}
	return a.Store.DeleteRange(first, last)
}

// Stalled is how long the write under way has taken.
func (a *aheadLog) Stalled() time.Duration { return a.Store.Stalled() }

// Close waits for the write under way and closes the log.
func (a *aheadLog) Close() error {
	a.wg.Wait()
	return a.Store.Close()
}
