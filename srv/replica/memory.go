package replica

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
)

// Memory is one group with one replica and no disk: what is proposed is applied at once, what is read is always current. It is
// complete (exactly-once commands, events, Lead and its end) and is both a [Replica] and the [Replicas] of its group, for the tests of
// services. It runs in a synctest bubble.
type Memory struct {
	group dc.GroupID
	kind  Kind

	// propose keeps entries and their events in one order. Taken before mu.
	propose sync.Mutex
	index   dc.Index

	mu      sync.Mutex
	clock   int64
	skew    time.Duration
	seq     uint64
	client  uint64
	leading bool
	stop    context.CancelFunc
	lead    sync.WaitGroup

	shard *storage.Volatile
}

var (
	_ Replica  = (*Memory)(nil)
	_ Replicas = (*Memory)(nil)
)

// NewMemory makes group g of the given kind with this node as its leader, and starts kind.Lead. The caller must Close it.
func NewMemory(g dc.GroupID, kind Kind) *Memory {
	m := &Memory{group: g, kind: kind, client: rand.Uint64() | 1}
	m.shard = storage.NewVolatile(kind.Machine(), func(index dc.Index, events []any) {
		if kind.Applied != nil {
			kind.Applied(g, index, events)
		}
	})
	if kind.Applying != nil {
		m.shard.Foretell(func(events []any) { kind.Applying(g, events) })
	}
	if kind.Opened != nil {
		kind.Opened(m)
	}
	m.Lead()
	return m
}

// Lead makes this node the leader again after Resign; Kind.Lead runs anew.
func (m *Memory) Lead() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.leading {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	m.leading, m.stop = true, stop
	if m.kind.Lead != nil {
		m.lead.Go(func() { m.kind.Lead(ctx, m) })
	}
}

// Resign ends leadership: Kind.Lead's context ends and Resign waits for it; proposals and views answer dc.NotLeader.
func (m *Memory) Resign() {
	m.mu.Lock()
	if m.leading {
		m.leading = false
		m.stop()
	}
	m.mu.Unlock()
	m.lead.Wait()
}

// Close resigns. The state stays readable through Local.
func (m *Memory) Close() { m.Resign() }

// Skew moves the group's clock ahead of the machine's by d, for tests of what happens later.
func (m *Memory) Skew(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.skew = d
}

// Leading implements [Replicas].
func (m *Memory) Leading(g dc.GroupID) (Replica, error) {
	if g != m.group {
		return nil, dc.Errorf(dc.NotLeader, "", "", "no replica of group %s here", g)
	}
	return m, m.check()
}

func (m *Memory) check() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.leading {
		return dc.Errorf(dc.NotLeader, "", "", "this node does not lead group %s", m.group)
	}
	return nil
}

// Group implements [Replica].
func (m *Memory) Group() dc.GroupID { return m.group }

// Propose implements [Replica].
func (m *Memory) Propose(ctx context.Context, id dc.RequestID, body []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, dc.Errorf(dc.Unavailable, "", "", "%w", err)
	}
	m.propose.Lock()
	defer m.propose.Unlock()
	if err := m.check(); err != nil {
		return nil, err
	}
	m.index++
	e := storage.Entry{Index: m.index, Term: 1, Clock: m.Clock(), Commands: [][]byte{command.Encode(id, body)}}
	r := m.shard.Apply([]storage.Entry{e})[0][0]
	return r.Body, r.Err
}

// View implements [Replica].
func (m *Memory) View(ctx context.Context, fn func(storage.Reader) error) error {
	if err := ctx.Err(); err != nil {
		return dc.Errorf(dc.Unavailable, "", "", "%w", err)
	}
	if err := m.check(); err != nil {
		return err
	}
	return m.shard.View(fn)
}

// Local implements [Replica].
func (m *Memory) Local(fn func(storage.Reader) error) error { return m.shard.View(fn) }

// NewID implements [Replica].
func (m *Memory) NewID() dc.RequestID {
	issued := m.Clock()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seq++
	// Proposals here are answered before they return, so all but the few in flight are done.
	return dc.RequestID{Client: m.client, Seq: m.seq, Done: max(1, m.seq-min(m.seq, dc.MaxInFlightPerClient/2)), Issued: issued}
}

// Clock implements [Replica].
func (m *Memory) Clock() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock = max(m.clock, time.Now().Add(m.skew).UnixMilli())
	return m.clock
}
