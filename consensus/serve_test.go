package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"missingos/srv/dc"
)

func TestStreamsShareTheRateOfTheirNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		th := throttle{rate: 1 * dc.MiB}
		start := time.Now()
		var wg sync.WaitGroup
		ends := make([]time.Duration, 4)
		for i := range ends {
			wg.Go(func() {
				w := slowWriter{t.Context(), &th, io.Discard}
				if n, err := w.Write(make([]byte, 4*dc.MiB)); n != 4*dc.MiB || err != nil {
					t.Errorf("wrote %d, %v", n, err)
				}
				ends[i] = time.Since(start)
			})
		}
		wg.Wait()
		for i, end := range ends {
			if end < 15*time.Second || end > 16*time.Second {
				t.Errorf("stream %d of 4 ended after %v, want about 16 s", i, end)
			}
		}
		time.Sleep(time.Hour) // what was not used is not saved up
		start = time.Now()
		_, _ = slowWriter{t.Context(), &th, io.Discard}.Write(make([]byte, 4*dc.MiB))
		if took := time.Since(start); took < 3900*time.Millisecond {
			t.Errorf("4 MiB after an idle hour took %v", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if n, err := (slowWriter{ctx, &th, io.Discard}).Write(make([]byte, 4*dc.MiB)); !errors.Is(err, context.DeadlineExceeded) || n > 2*dc.MiB {
			t.Errorf("wrote %d in a second, %v", n, err)
		}
		if took := time.Since(start); took > 7*time.Second {
			t.Errorf("an ended context let the writer wait for %v", took)
		}
	})
}

// counted is a state machine of which states are held, and nothing else.
type counted struct {
	StateMachine
	held int
}

func (c *counted) Hold(at, atLeast dc.Index) (HeldState, error) {
	c.held++
	return &countedHold{c: c, index: max(at, atLeast)}, nil
}

type countedHold struct {
	c     *counted
	index dc.Index
}

func (h *countedHold) Index() dc.Index                                      { return h.index }
func (h *countedHold) WriteSnapshot(context.Context, Pull, io.Writer) error { return nil }
func (h *countedHold) Release()                                             { h.c.held-- }

func TestHoldsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, s := &counted{}, &holds{life: time.Hour, linger: time.Minute}
		take := func() *hold {
			h, err := s.take(m, 0, 7)
			if err != nil {
				t.Fatal(err)
			}
			return h
		}
		expect := func(want int) {
			t.Helper()
			if some := s.sweep(time.Now()); m.held != want || some != (want > 0) {
				t.Errorf("%d states are held, want %d", m.held, want)
			}
		}
		long, short := take(), take()
		s.give(short)
		time.Sleep(59 * time.Second)
		expect(2)
		time.Sleep(2 * time.Second)
		expect(1)
		time.Sleep(time.Hour) // its stream has ended by now, see serve
		expect(0)
		s.give(long)
		if _, err := s.take(m, 7, 0); !errors.Is(err, dc.Stale) {
			t.Errorf("a state whose life is over is held again: %v", err)
		}
		if a, err := s.take(m, 8, 0); err != nil {
			t.Error(err)
		} else if b, err := s.take(m, 8, 0); err != nil || a != b {
			t.Errorf("the same state is held twice: %v", err)
		} else {
			s.give(a)
			s.give(b)
		}
		for range maxHolds {
			s.give(take())
		}
		for range maxHolds { // in place of those that nobody uses
			take()
		}
		expect(maxHolds)
		if _, err := s.take(m, 0, 7); !errors.Is(err, dc.Busy) {
			t.Errorf("one more than %d states are held: %v", maxHolds, err)
		}
		s.close()
		expect(0)
		if _, err := s.take(m, 0, 7); !errors.Is(err, dc.Unavailable) {
			t.Errorf("a closed replica: %v", err)
		}
	})
}

// A log that fills the disk waits for nobody.
func TestAFullDiskDoesNotWaitForAReplicaThatPulls(t *testing.T) {
	timing := fast
	timing.SnapshotEvery, timing.SnapshotEntries, timing.TrailingEntries = 20*time.Millisecond, 20, 1
	var full atomic.Bool
	host := NewHost(HostConfig{Node: 1, LogDir: t.TempDir(), Timing: timing, Fatal: func(err error) { t.Error(err) }, Space: func() error {
		if full.Load() {
			return dc.Errorf(dc.NoSpace, "", "", "full")
		}
		return nil
	}})
	defer host.Close(t.Context())
	m := &journal{}
	g, err := host.Open(GroupConfig{ID: 1, Dir: t.TempDir(), Machine: m, Bootstrap: []dc.NodeID{1}})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, g.IsLeader)
	h, err := g.holds.take(m, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer g.holds.give(h)
	eventually(t, func() bool { return g.raft.ReloadableConfig().SnapshotThreshold > 1000 })
	for i := range 100 {
		if _, err := g.Propose(t.Context(), fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
	}
	if all, _ := g.snaps.List(); len(all) > 0 {
		t.Errorf("a snapshot was taken at %d", all[0].Index)
	}
	full.Store(true)
	eventually(t, func() bool { all, _ := g.snaps.List(); return len(all) > 0 })
}

// While a state is pulled from a leader the log reaches back to it, however much is written.
func TestTheLogWaitsForAReplicaThatPulls(t *testing.T) {
	timing := fast
	timing.SnapshotEvery, timing.SnapshotEntries, timing.TrailingEntries, timing.HoldLinger = 20*time.Millisecond, 20, 1, 50*time.Millisecond
	c := newCluster(t, 1, timing)
	_, m := c.leader()
	h, err := m.group.holds.take(m.machine, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return m.group.raft.ReloadableConfig().SnapshotThreshold > 1000 })
	for i := range 200 {
		c.propose(fmt.Sprint(i))
	}
	if all, _ := m.group.snaps.List(); len(all) > 0 {
		t.Errorf("a snapshot was taken at %d", all[0].Index)
	}
	m.group.holds.give(h)
	eventually(t, func() bool { all, _ := m.group.snaps.List(); return len(all) > 0 && all[0].Index > 200 })
}
