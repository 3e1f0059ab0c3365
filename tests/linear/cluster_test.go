package linear

import (
	"context"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"missingos/srv/client"
	"missingos/tests/cluster"
)

// long tells whether the run has time.
func long() bool { return os.Getenv("DC_LONG") != "" }

// A seat is what the clients of one node work with.
type seat struct {
	kv   *client.KV
	lock *client.Lock
}

// seats follow the nodes of a cluster through crashes.
type seats struct {
	t     *testing.T
	c     *cluster.Cluster
	table client.Descriptor
	of    []atomic.Pointer[seat]
}

func (s *seats) sit(i int) {
	s.of[i-1].Store(&seat{kv: client.NewKV(s.c.Client(i), s.c.Meta(i)), lock: client.NewLock(s.c.Client(i))})
}

// leave takes the node's clients away. Told ends their lock session; otherwise it expires, as a dead node's does.
func (s *seats) leave(i int, told bool) {
	old := s.of[i-1].Swap(nil)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	if !told {
		s.c.Kill(i)
		cancel()
	}
	defer cancel()
	_ = old.lock.Close(ctx)
}

// leader tells which node leads a group; 0 if nobody knows.
func (s *seats) leader(group string) int {
	for i := 1; i <= len(s.of); i++ {
		if s.of[i-1].Load() == nil {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		st, err := s.c.Meta(i).ClusterStatus(ctx)
		cancel()
		if err != nil {
			continue
		}
		for _, g := range st.Groups {
			if g.Name == group {
				return int(g.Leader)
			}
		}
	}
	return 0
}

// trouble hurts the leaders of kv and lock, one way after the other, until ctx ends, and heals everything.
func (s *seats) trouble(ctx context.Context) {
	ways := []struct {
		name string
		hurt func(i int)
		heal func(i int)
	}{
		{"kill", func(i int) { s.leave(i, false) }, func(i int) { s.c.Restart(i); s.sit(i) }},
		{"isolate", func(i int) { s.c.Isolate(i) }, func(int) { s.c.Heal() }},
		{"stall", func(i int) { s.c.Stall(i) }, func(int) { s.c.Heal() }},
	}
	groups := []string{"kv/0", "lock"}
	for n := 0; pause(ctx, 1200*time.Millisecond); n++ {
		i := s.leader(groups[n/len(ways)%len(groups)])
		if i == 0 {
			continue
		}
		w := ways[n%len(ways)]
		s.t.Logf("%s node %d", w.name, i)
		w.hurt(i)
		pause(ctx, 2500*time.Millisecond)
		w.heal(i)
	}
}

func TestHistoriesThroughTheClient(t *testing.T) {
	if testing.Short() {
		t.Skip("runs a cluster for many seconds")
	}
	c := cluster.Start(t, 3)
	s := &seats{t: t, c: c, of: make([]atomic.Pointer[seat], 3)}
	for i := 1; i <= 3; i++ {
		s.sit(i)
	}
	t.Cleanup(func() {
		for i := range s.of {
			if s.of[i].Load() != nil {
				s.leave(i+1, true)
			}
		}
	})
	ctx := t.Context()
	var err error
	if s.table, err = s.of[0].Load().kv.CreateTable(ctx, "linear", 0o755); err != nil {
		t.Fatal(err)
	}
	load := Load{
		Clients: 6, Duration: 12 * time.Second, Pause: 10 * time.Millisecond,
		Table: func(n int) Table {
			if p := s.of[n%3].Load(); p != nil {
				return clientTable{p.kv, s.table}
			}
			return nil
		},
		Locker: func(n int) Locker {
			if p := s.of[n%3].Load(); p != nil {
				return clientLocker{p.lock}
			}
			return nil
		},
	}
	if long() {
		load.Duration = 3 * time.Minute
	}
	rows, locked := load.Run(ctx, s.trouble)
	rows.Check(t, Rows, 200)
	locked.Check(t, Locks, 20)
}
