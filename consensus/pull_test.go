package consensus

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"missingos/consensus/transport"
	"missingos/srv/dc"
)

// The node that a new replica pulls from dies: the replica goes on with what another has, of the same version.
func TestAPullGoesOnElsewhereWhenItsSenderDies(t *testing.T) {
	timing := fast
	timing.TrailingEntries = 1
	c := newCluster(t, 3, timing)
	for _, m := range c.nodes {
		m.machine.mu.Lock()
		m.machine.past = map[dc.Index][]byte{}
		m.machine.mu.Unlock()
	}
	c.propose("0")
	lead, m := c.leader()
	id, other := lead%3+1, (lead+1)%3+1
	c.stop(id)
	for range 20 {
		c.propose(strings.Repeat("x", 100))
	}
	if err := m.group.Snapshot(); err != nil {
		t.Fatal(err)
	}
	broken, gone := make(chan struct{}), make(chan struct{})
	goOn := sync.OnceFunc(func() { close(gone) })
	defer goOn()
	fresh := &journal{broken: func() { close(broken); <-gone }}
	late := c.start(id, fresh, nil)
	<-broken
	survivor := c.nodes[other].group
	eventually(t, func() bool { // the other was asked to keep the state
		survivor.holds.mu.Lock()
		defer survivor.holds.mu.Unlock()
		return len(survivor.holds.all) > 0
	})
	c.stop(lead)
	goOn()
	eventually(t, func() bool { return len(late.machine.commands()) == 21 })
	if n := fresh.restored(); n != 1 {
		t.Errorf("restored %d times", n)
	}
	c.propose("more")
	eventually(t, func() bool { return len(late.machine.commands()) == 22 })
}

// A process that ends between the state machine's part of a restore and the record of it does not restore again.
func TestARestoredStateIsNotRestoredAgain(t *testing.T) {
	timing := fast
	timing.TrailingEntries = 1
	c := newCluster(t, 3, timing)
	c.propose("0")
	lead, m := c.leader()
	id := lead%3 + 1
	c.stop(id)
	for range 20 {
		c.propose(strings.Repeat("x", 100))
	}
	if err := m.group.Snapshot(); err != nil {
		t.Fatal(err)
	}
	m.machine.mu.Lock()
	there := &journal{State: m.machine.State}
	m.machine.mu.Unlock()
	late := c.start(id, there, nil) // its log and its record are those of before
	c.propose("more")
	eventually(t, func() bool { return len(late.machine.commands()) == 22 })
	if n := there.restored(); n != 0 {
		t.Errorf("restored %d times", n)
	}
}

// collected is a stream that was taken.
type collected struct {
	bytes.Buffer
	version uint64
}

func (c *collected) Begin(version uint64) error { c.version = version; return nil }

func TestASenderGoesOnOnlyWithWhatIsRecentEnough(t *testing.T) {
	c := newCluster(t, 1, fast)
	_, m := c.leader()
	m.machine.mu.Lock()
	m.machine.past = map[dc.Index][]byte{}
	m.machine.mu.Unlock()
	for range 5 {
		c.propose("x")
	}
	state := uint64(m.machine.Applied())
	if err := m.group.raft.Barrier(0).Error(); err != nil {
		t.Fatal(err)
	}
	noop := m.group.raft.LastIndex()
	m.group.fsm.reached(noop)
	for _, tt := range []struct {
		at, atLeast uint64
		want        error
	}{
		{0, 0, nil},
		{0, state, nil},
		{0, noop, nil},
		{0, noop + 1, dc.Unavailable},
		{state, state, nil},
		{state, noop, nil}, // nothing but a no-op lies between
		{state - 1, state - 1, nil},
		{state - 1, state, dc.Stale},
		{state - 1, noop, dc.Stale},
		{state, noop + 1, dc.Stale},
		{state + 1, 0, dc.Stale},
	} {
		out := &collected{}
		err := m.group.serve(t.Context(), &transport.PullRequest{Format: 3, At: tt.at, AtLeast: tt.atLeast}, out)
		if !errors.Is(err, tt.want) || tt.want == nil && err != nil {
			t.Errorf("at %d, at least %d, of %d and a no-op at %d: %v, want %v", tt.at, tt.atLeast, state, noop, err, tt.want)
		}
		if err == nil && tt.at != 0 && out.version != tt.at {
			t.Errorf("at %d: got version %d", tt.at, out.version)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := m.group.keep(ctx, dc.Index(noop+9)); !errors.Is(err, context.Canceled) {
		t.Errorf("an entry that never comes: %v", err)
	}
}
