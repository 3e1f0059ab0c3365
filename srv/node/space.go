package node

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"missingos/srv/dc"
)

// reservePercent of a file system stay free unless another reserve is set.
const reservePercent = 5

const spaceEvery = time.Second

// space watches how much is free where the node keeps its data. Nothing is lost when a disk is full as long as writes are refused before: the
// reserve is room for what is under way, for compaction, and for deleting.
type space struct {
	dir     string
	reserve uint64 // bytes; 0: reservePercent
	log     *slog.Logger

	free, total atomic.Uint64
	full        atomic.Bool
}

func newSpace(dir string, reserve uint64, log *slog.Logger) (*space, error) {
	s := &space{dir: dir, reserve: reserve, log: log}
	return s, s.measure()
}

func (s *space) measure() error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return dc.Wrap(err, "measure free space", s.dir)
	}
	free, total := st.Bavail*uint64(st.Bsize), st.Blocks*uint64(st.Bsize)
	s.free.Store(free)
	s.total.Store(total)
	full := free < s.limit()
	if s.full.Swap(full) != full {
		if full {
			s.log.Error("the disk has reached its reserve: writes are refused until something is deleted", "dir", s.dir, "free_bytes", free, "reserve_bytes", s.limit())
		} else {
			s.log.Info("the disk has room again", "dir", s.dir, "free_bytes", free)
		}
	}
	return nil
}

func (s *space) limit() uint64 {
	if s.reserve != 0 {
		return s.reserve
	}
	return s.total.Load() / 100 * reservePercent
}

// sizes gives the free and total bytes as last measured.
func (s *space) sizes() (free, total uint64) { return s.free.Load(), s.total.Load() }

// check refuses when the reserve is reached.
func (s *space) check() error {
	if !s.full.Load() {
		return nil
	}
	return dc.Errorf(dc.NoSpace, "write", s.dir, "%d MiB are free on this node's disk, its reserve is %d MiB", s.free.Load()/dc.MiB, s.limit()/dc.MiB)
}

// watch measures until ctx ends.
func (s *space) watch(ctx context.Context) {
	tick := time.NewTicker(spaceEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := s.measure(); err != nil {
				s.log.Warn("free space is not known", "err", err)
			}
		}
	}
}
