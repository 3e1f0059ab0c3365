package node

import (
	"context"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"missingos/srv/dc"
)

// The default reserve is 5% of the file system, at least 512 MiB, of a small one a quarter: Badger writes tables through memory maps, so that a disk that
// fills up under a flush or a compaction kills the process; there must be room for those of all shards.
const (
	reservePercent = 5
	reserveLeast   = 512 * dc.MiB
	reserveShare   = 4
)

const (
	spaceEvery = time.Second
	// spaceStale is how old a measurement may be that a write is admitted by: a disk takes a GiB in a second.
	spaceStale = 10 * time.Millisecond
)

// space watches how much is free where the node keeps its data. Nothing is lost when a disk is full as long as writes are refused before: the
// reserve is room for what is under way, for compaction, and for deleting. At the reserve, growth is refused; at half of it, everything.
type space struct {
	dir     string
	reserve uint64 // bytes; 0: reservePercent
	log     *slog.Logger

	free, total atomic.Uint64
	measured    atomic.Int64 // when, Unix nanoseconds
	full        atomic.Bool
	others      atomic.Pointer[[]uint64] // nodes that meta's leader says are full
}

func newSpace(dir string, reserve uint64, log *slog.Logger) (*space, error) {
	s := &space{dir: dir, reserve: reserve, log: log}
	return s, s.measure()
}

func (s *space) measure() error {
	s.measured.Store(time.Now().UnixNano())
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
	total := s.total.Load()
	return max(total/100*reservePercent, min(reserveLeast, total/reserveShare))
}

// refresh measures again if the last measurement is too old to admit by.
func (s *space) refresh() {
	last := s.measured.Load()
	now := time.Now().UnixNano()
	if now-last > int64(spaceStale) && s.measured.CompareAndSwap(last, now) {
		_ = s.measure() // watch reports what fails
	}
}

// sizes gives the free and total bytes as last measured.
func (s *space) sizes() (free, total uint64) { return s.free.Load(), s.total.Load() }

// grow refuses a command that may make the state grow when this node has reached its reserve, or another that holds a replica and would have to
// store it as well.
func (s *space) grow(members []uint64) error {
	s.refresh()
	if s.full.Load() {
		return dc.Errorf(dc.NoSpace, "write", s.dir, "%d MiB are free on this node's disk, its reserve is %d MiB: delete something, or add a node", s.free.Load()/dc.MiB, s.limit()/dc.MiB)
	}
	if others := s.others.Load(); others != nil {
		for _, n := range *others {
			if slices.Contains(members, n) {
				return dc.Errorf(dc.NoSpace, "write", dc.NodeID(n).String(), "the disk of node %s, which holds a replica, has reached its reserve: delete something, or add a node", dc.NodeID(n))
			}
		}
	}
	return nil
}

// check refuses every command when half of the reserve is used up by those that were to make room.
func (s *space) check() error {
	s.refresh()
	if s.free.Load() >= s.limit()/2 {
		return nil
	}
	return dc.Errorf(dc.NoSpace, "write", s.dir, "%d MiB are free on this node's disk, half of its reserve: nothing can be written any more", s.free.Load()/dc.MiB)
}

// hear notes which nodes are full.
func (s *space) hear(nodes []uint64) { s.others.Store(&nodes) }

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
