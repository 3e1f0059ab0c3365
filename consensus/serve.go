package consensus

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"time"

	"missingos/srv/dc"
)

// What a replica that pulls is sent is one state, held while later entries are applied. A hold has a bounded life, and lingers after the
// stream: until then the leader takes no snapshot of its own (see tune), so its log reaches back to what the receiver
// has, and the receiver does not need another snapshot when it is done with this one.
const (
	maxHolds = 8 // of one group; more than it has members
	// While a state is held, a snapshot is taken only after this many times Timing.SnapshotEntries.
	heldSnapshotFactor = 64
)

var errHoldOver = errors.New("the state has been held for too long")

// A hold is a state that is sent, or was just now.
type hold struct {
	state HeldState
	end   time.Time // of its life
	users int
	left  time.Time // when the last user left
}

// holds are those of one group.
type holds struct {
	life, linger time.Duration

	mu     sync.Mutex
	all    []*hold
	closed bool
}

// take holds the state of m; the caller must give it back. With too many the longest unused one goes.
func (s *holds) take(m StateMachine) (*hold, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, dc.Errorf(dc.Unavailable, "hold", "", "the replica is closed")
	}
	if len(s.all) >= maxHolds {
		var oldest *hold
		for _, h := range s.all {
			if h.users == 0 && (oldest == nil || h.left.Before(oldest.left)) {
				oldest = h
			}
		}
		if oldest == nil {
			return nil, dc.Errorf(dc.Busy, "hold", "", "%d snapshots of the group are being sent", len(s.all))
		}
		s.dropLocked(oldest)
	}
	state, err := m.Hold()
	if err != nil {
		return nil, err
	}
	h := &hold{state: state, end: time.Now().Add(s.life), users: 1}
	s.all = append(s.all, h)
	return h, nil
}

func (s *holds) give(h *hold) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h.users--; h.users == 0 {
		h.left = time.Now()
	}
}

func (s *holds) dropLocked(h *hold) {
	h.state.Release()
	s.all = slices.DeleteFunc(s.all, func(o *hold) bool { return o == h })
}

// sweep releases what is over and tells whether something is still held.
func (s *holds) sweep(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range slices.Clone(s.all) {
		if now.After(h.end) || h.users == 0 && now.Sub(h.left) > s.linger {
			s.dropLocked(h)
		}
	}
	return len(s.all) > 0
}

// close releases everything. Streams that still run find their state gone.
func (s *holds) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for _, h := range slices.Clone(s.all) {
		s.dropLocked(h)
	}
}

// serve streams this replica's state to a receiver that reads formats up to the given one.
func (g *Group) serve(ctx context.Context, format uint32, w io.Writer) error {
	h, err := g.holds.take(g.cfg.Machine)
	if err != nil {
		return err
	}
	defer g.holds.give(h)
	ctx, cancel := context.WithDeadlineCause(ctx, h.end, errHoldOver)
	defer cancel()
	defer context.AfterFunc(g.ctx, cancel)()
	err = h.state.WriteSnapshot(ctx, format, slowWriter{ctx, &g.host.sending, w})
	if err != nil && context.Cause(ctx) != nil {
		err = dc.Errorf(dc.Unavailable, "serve snapshot", g.cfg.ID.String(), "%w", context.Cause(ctx))
	}
	return err
}
