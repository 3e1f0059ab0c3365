package consensus

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"missingos/consensus/transport"
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
	over   dc.Index // the latest state whose life has ended: it is not held again
	closed bool
}

// take holds a state of m, see StateMachine.Hold; the caller must give it back. With too many the longest unused one goes.
func (s *holds) take(m StateMachine, at, atLeast dc.Index) (*hold, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, dc.Errorf(dc.Unavailable, "hold", "", "the replica is closed")
	}
	for _, h := range s.all {
		if at != 0 && h.state.Index() == at {
			h.users++
			return h, nil
		}
	}
	if at != 0 && at <= s.over {
		return nil, dc.Errorf(dc.Stale, "hold", "", "%w", errHoldOver)
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
	state, err := m.Hold(at, atLeast)
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
		over := now.After(h.end)
		if over {
			s.over = max(s.over, h.state.Index())
		}
		if over || h.users == 0 && now.Sub(h.left) > s.linger {
			s.dropLocked(h)
		}
	}
	return len(s.all) > 0
}

func (s *holds) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.all)
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

// serve streams this replica's state to a replica that pulls it.
func (g *Group) serve(ctx context.Context, p *transport.PullRequest, out transport.Sink) error {
	at, atLeast := dc.Index(p.At), dc.Index(p.AtLeast)
	reached := g.fsm.index()
	if why := g.Rebuilding(); why != "" {
		return dc.Errorf(dc.Unavailable, "serve snapshot", g.cfg.ID.String(), "the replica is wrong itself: %s", why)
	}
	if at != 0 && at < atLeast && (reached < p.AtLeast || g.cfg.Machine.Applied() != at) {
		// Were it still the state, only no-ops would be between the two.
		return dc.Errorf(dc.Stale, "serve snapshot", g.cfg.ID.String(), "the state after entry %d is older than %d", at, atLeast)
	}
	if reached < p.AtLeast {
		return dc.Errorf(dc.Unavailable, "serve snapshot", g.cfg.ID.String(), "only %d entries are applied, and %d are needed", reached, atLeast)
	}
	h, err := g.holds.take(g.cfg.Machine, at, atLeast)
	if err != nil {
		return err
	}
	defer g.holds.give(h)
	ctx, cancel := context.WithDeadlineCause(ctx, h.end, errHoldOver)
	defer cancel()
	defer context.AfterFunc(g.ctx, cancel)()
	if err := out.Begin(uint64(h.state.Index())); err != nil {
		return err
	}
	err = h.state.WriteSnapshot(ctx, Pull{Format: p.Format, At: at, After: p.After}, slowWriter{ctx, &g.host.sending, out})
	if err != nil && context.Cause(ctx) != nil {
		err = dc.Errorf(dc.Unavailable, "serve snapshot", g.cfg.ID.String(), "%w", context.Cause(ctx))
	}
	return err
}

// keep holds the state after an entry, for a replica that pulls it elsewhere and may come here for the rest.
func (g *Group) keep(ctx context.Context, at dc.Index) error {
	if err := g.fsm.wait(ctx, uint64(at)); err != nil {
		return err
	}
	h, err := g.holds.take(g.cfg.Machine, at, 0)
	if err == nil {
		g.holds.give(h)
	}
	return err
}
