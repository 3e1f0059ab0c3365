package lock

import (
	"slices"
	"sync"

	"missingos/storage/command"
)

// Bounds of a hub's memory; watches that are further behind read stored history.
const (
	hubRevisions = 8192
	hubBytes     = 16 << 20
)

// A hub holds the latest revisions of one group, without gaps.
type hub struct {
	mu    sync.Mutex
	ring  []*command.LockHistory // consecutive revisions
	bytes int
	grown chan struct{} // closed and replaced when ring grows
}

func newHub() *hub { return &hub{grown: make(chan struct{})} }

// append adds the next revision. After a gap (the replica was brought up to date by a snapshot) it starts afresh.
func (h *hub) append(rev *command.LockHistory) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := len(h.ring); n > 0 && rev.Revision != h.ring[n-1].Revision+1 {
		if rev.Revision <= h.ring[n-1].Revision {
			return // told before: entries replayed after a restart
		}
		h.ring, h.bytes = nil, 0
	}
	h.ring = append(h.ring, rev)
	h.bytes += size(rev)
	for len(h.ring) > hubRevisions || h.bytes > hubBytes && len(h.ring) > 1 {
		h.bytes -= size(h.ring[0])
		h.ring[0] = nil
		h.ring = h.ring[1:]
	}
	close(h.grown)
	h.grown = make(chan struct{})
}

// size estimates what a revision takes.
func size(rev *command.LockHistory) int {
	n := 64
	for _, ev := range rev.Events {
		n += 128 + 2*len(ev.Path) + len(ev.File.GetValue()) + len(ev.Before.GetValue())
	}
	return n
}

// since gives up to limit revisions from next on. behind says that the hub no longer has (or does not know) next: read stored history.
// With neither, there is nothing new: wait for grown, which was taken at the same moment.
func (h *hub) since(next uint64, limit int) (revs []*command.LockHistory, behind bool, grown <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.ring) == 0 || next < h.ring[0].Revision {
		return nil, true, h.grown
	}
	i := next - h.ring[0].Revision
	if i >= uint64(len(h.ring)) {
		return nil, false, h.grown
	}
	revs = h.ring[i:]
	return slices.Clone(revs[:min(len(revs), limit)]), false, h.grown
}
