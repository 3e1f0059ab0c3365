package logstore

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"
	"github.com/hashicorp/raft-wal/metadb"

	"missingos/srv/dc"
)

// segmentBytes is the size of one file of the log.
const segmentBytes = 8 << 20

// cachedEntries are kept in memory for followers that are nearly caught up.
const cachedEntries = 128

// Store is a group's log and vote.
type Store interface {
	raft.LogStore
	raft.StableStore
	// Stalled is how long the append under way has taken; zero if none is.
	Stalled() time.Duration
	Close() error
}

// Config says where and what to do when the disk fails.
type Config struct {
	Dir   string // the group's own
	Group dc.GroupID
	// Fatal is called with an error of the disk and must not return in production.
	Fatal func(err error)
	Log   *slog.Logger
}

// walStore is a raft-wal log with a cache before it.
type walStore struct {
	*Vote
	wal    *wal.WAL
	meta   *metadb.BoltMetaDB
	logs   *raft.LogCache
	fatal  func(error)
	writes atomic.Int64 // start of the append under way, Unix nanoseconds; zero if none
}

var (
	_ Store                  = (*walStore)(nil)
	_ raft.MonotonicLogStore = (*walStore)(nil)
)

// openOld opens or makes a log of the first kind, one a group, in cfg.Dir. Its entries are taken over by [Shared.Adopt].
func openOld(cfg Config) (Store, error) {
	dir := filepath.Join(cfg.Dir, "wal")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	vote, err := OpenVote(filepath.Join(cfg.Dir, "vote")) // first: it leaves nothing open if it is refused
	if err != nil {
		return nil, fmt.Errorf("raft vote: %w", err)
	}
	vote.fatal = cfg.Fatal
	meta := &metadb.BoltMetaDB{} // raft-wal does not close the one it makes itself
	w, err := wal.Open(dir, wal.WithSegmentSize(segmentBytes), wal.WithMetaStore(meta), wal.WithSegmentFiler(newFiler(dir)), wal.WithLogger(hclog.NewNullLogger()))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("raft log %s: %w", dir, err), meta.Close())
	}
	cache, err := raft.NewLogCache(cachedEntries, w)
	if err != nil {
		return nil, errors.Join(err, w.Close(), meta.Close())
	}
	return &walStore{Vote: vote, wal: w, meta: meta, logs: cache, fatal: cfg.Fatal}, nil
}

func (s *walStore) FirstIndex() (uint64, error)              { return s.logs.FirstIndex() }
func (s *walStore) LastIndex() (uint64, error)               { return s.logs.LastIndex() }
func (s *walStore) GetLog(index uint64, log *raft.Log) error { return s.logs.GetLog(index, log) }
func (s *walStore) StoreLog(log *raft.Log) error             { return s.StoreLogs([]*raft.Log{log}) }
func (s *walStore) IsMonotonic() bool                        { return s.wal.IsMonotonic() }
func (s *walStore) Close() error                             { return errors.Join(s.wal.Close(), s.meta.Close()) }

// StoreLogs appends and fsyncs.
func (s *walStore) StoreLogs(logs []*raft.Log) error {
	defer s.timed()()
	err := s.logs.StoreLogs(logs)
	if err != nil {
		s.fatal(fmt.Errorf("raft log: append of %d entries: %w", len(logs), err))
	}
	return err
}

// DeleteRange drops a prefix (compaction) or a suffix (conflict).
func (s *walStore) DeleteRange(first, last uint64) error {
	defer s.timed()()
	err := s.logs.DeleteRange(first, last)
	if err != nil {
		s.fatal(fmt.Errorf("raft log: delete of %d..%d: %w", first, last, err))
	}
	return err
}

func (s *walStore) timed() (done func()) {
	s.writes.Store(time.Now().UnixNano())
	return func() { s.writes.Store(0) }
}

// Stalled is how long the write under way has taken.
func (s *walStore) Stalled() time.Duration {
	start := s.writes.Load()
	if start == 0 {
		return 0
	}
	return time.Since(time.Unix(0, start))
}
