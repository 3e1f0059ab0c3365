package node

import (
	"context"
	"io"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"missingos/consensus"
	"missingos/srv/dc"
	"missingos/srv/replica"
	"missingos/storage"
	"missingos/storage/command"
)

// A member is this node's replica of one group: agreement and disk together.
type member struct {
	id     dc.GroupID
	kind   replica.Kind
	dir    string
	shard  *storage.Shard
	group  *consensus.Group
	ready  chan struct{} // closed when group is set: it may lead before Open has returned
	grow   func() error  // says dc.NoSpace when the state may not grow any more
	allows func(feature) error
	holds  func(ctx context.Context, f dc.Fence) error

	opened time.Time

	client uint64 // of the request ids of the daemon's own commands
	seq    atomic.Uint64
}

var _ replica.Replica = (*member)(nil)

func newMember(id dc.GroupID, kind replica.Kind, dir string) *member {
	return &member{id: id, kind: kind, dir: dir, ready: make(chan struct{}), opened: time.Now(), client: rand.Uint64() | 1, grow: func() error { return nil }, allows: func(feature) error { return nil }}
}

// Group implements replica.Replica.
func (m *member) Group() dc.GroupID { return m.id }

// Propose implements replica.Replica.
func (m *member) Propose(ctx context.Context, id dc.RequestID, body []byte) ([]byte, error) {
	if !replica.IsFreeing(ctx) {
		if err := m.grow(); err != nil {
			return nil, err
		}
	}
	denied := m.admit(ctx, id.Fence)
	switch {
	case denied != nil && dc.KindOf(denied) != dc.Stale:
		return nil, denied
	case denied != nil:
		id.Fence.Token, body = 0, nil
	}
	if m.group.IsLeader() {
		if err := m.shard.Ready(); err != nil {
			return nil, err
		}
	}
	res, err := m.group.Propose(ctx, command.Encode(id, body))
	if err != nil {
		return nil, err
	}
	if denied != nil && dc.KindOf(res.Err) == dc.Stale {
		return nil, denied // which says more
	}
	return res.Body, res.Err
}

// admit asks the lock store about a fencing token that this group has not seen: see storage's fences, who rely on it. The group refuses one that
// is older than what it has seen when the command is applied.
func (m *member) admit(ctx context.Context, f dc.Fence) error {
	if f.IsZero() {
		return nil
	}
	if f.Lock == "" || f.Token == 0 || len(f.Lock) > dc.MaxFenceLockBytes {
		return dc.Errorf(dc.Invalid, "fence", f.Lock, "a fence needs a lock, of up to %d bytes, and a token", dc.MaxFenceLockBytes)
	}
	if err := m.allows(fencedWrites); err != nil {
		return err
	}
	if seen, err := m.shard.Fence(f.Lock); err != nil || f.Token <= seen {
		return err
	}
	return m.holds(ctx, f)
}

// right refuses to read the state of a replica that is being rebuilt.
func (m *member) right() error {
	select {
	case <-m.ready:
	default:
		return nil // its kind looks at it while it is opened
	}
	if why := m.group.Rebuilding(); why != "" {
		return dc.Errorf(dc.Unavailable, "read", m.id.String(), "this replica is being rebuilt: %s", why)
	}
	return nil
}

// View implements replica.Replica.
func (m *member) View(ctx context.Context, fn func(storage.Reader) error) error {
	if err := m.right(); err != nil {
		return err
	}
	if err := m.group.ReadBarrier(ctx); err != nil {
		return err
	}
	return m.shard.View(fn)
}

// Local implements replica.Replica.
func (m *member) Local(fn func(storage.Reader) error) error {
	if err := m.right(); err != nil {
		return err
	}
	return m.shard.View(fn)
}

// Clock implements replica.Replica.
func (m *member) Clock() int64 { return m.group.Clock() }

// ownInFlight is how many of the daemon's own commands to one group may be unanswered before the oldest lose their protection against
// being applied twice.
const ownInFlight = dc.MaxInFlightPerClient / 2

// NewID implements replica.Replica.
func (m *member) NewID() dc.RequestID {
	seq := m.seq.Add(1)
	return dc.RequestID{Client: m.client, Seq: seq, Done: max(1, seq-min(seq, ownInFlight)), Issued: m.Clock()}
}

// stateMachine shows a shard to consensus.
type stateMachine struct {
	shard *storage.Shard
	aside func() (path string, err error) // makes room for a state that is wrong
}

var (
	_ consensus.StateMachine = stateMachine{}
	_ consensus.Digester     = stateMachine{}
)

// Apply implements consensus.StateMachine.
func (s stateMachine) Apply(entries []consensus.Entry) [][]consensus.Result {
	in := make([]storage.Entry, len(entries))
	for i, e := range entries {
		in[i] = storage.Entry{Index: e.Index, Term: e.Term, Clock: e.Clock, Commands: e.Commands}
	}
	out := make([][]consensus.Result, len(entries))
	for i, results := range s.shard.Apply(in) {
		out[i] = make([]consensus.Result, len(results))
		for j, r := range results {
			out[i][j] = consensus.Result{Body: r.Body, Err: r.Err}
		}
	}
	return out
}

// Applied implements consensus.StateMachine.
func (s stateMachine) Applied() dc.Index { return s.shard.Applied() }

// Clock implements consensus.StateMachine.
func (s stateMachine) Clock() int64 { return s.shard.Clock() }

// Digest implements consensus.Digester.
func (s stateMachine) Digest(ctx context.Context, at dc.Index) (consensus.Digest, error) {
	d, err := s.shard.Digest(ctx, at)
	return consensus.Digest{Index: at, Rows: d.Rows, Bytes: d.Bytes, Sum: d.Sum[:]}, err
}

// SetAside keeps the state that the next Restore replaces.
func (s stateMachine) SetAside() (path string, err error) {
	if path, err = s.aside(); err == nil {
		s.shard.SetAside(path)
	}
	return path, err
}

// Checkpoint implements consensus.StateMachine.
func (s stateMachine) Checkpoint() error { return s.shard.Checkpoint() }

// Hold implements consensus.StateMachine.
func (s stateMachine) Hold(at, atLeast dc.Index) (consensus.HeldState, error) {
	h, err := s.shard.Hold(at, atLeast)
	if err != nil {
		return nil, err
	}
	return heldState{h}, nil
}

// heldState shows a held state of a shard to consensus.
type heldState struct{ *storage.Held }

// Index implements consensus.HeldState.
func (h heldState) Index() dc.Index { return h.Held.Index }

// WriteSnapshot implements consensus.HeldState.
func (h heldState) WriteSnapshot(ctx context.Context, p consensus.Pull, w io.Writer) error {
	return h.Held.WriteSnapshot(ctx, storage.Pull{Format: int(p.Format), At: p.At, After: p.After}, w)
}

// Queued implements consensus.StateMachine.
func (s stateMachine) Queued() bool { return s.shard.Queued() }

// Restore implements consensus.StateMachine.
func (s stateMachine) Restore(ctx context.Context, atLeast dc.Index, fetch consensus.Fetch) error {
	return s.shard.Restore(ctx, atLeast, func(ctx context.Context, p storage.Pull) (io.ReadCloser, error) {
		return fetch(ctx, consensus.Pull{Format: uint32(p.Format), At: p.At, After: p.After})
	})
}
