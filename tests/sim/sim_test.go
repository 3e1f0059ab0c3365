package sim

import (
	"context"
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

const (
	schedules     = 120
	longSchedules = 1500
	stormFor      = 20 * time.Second // virtual
	callers       = 8
)

// simulate runs one schedule and gives what was wrong with it.
func simulate(t *testing.T, seed uint64, mut mutation, kinds []fault) error {
	t.Helper()
	var bad error
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, seed, mut)
		h := &history{acked: map[string]int{}, tried: map[string]bool{}}
		ctx, cancel := context.WithCancel(context.Background())
		done := w.clients(ctx, callers, h)
		w.storm(stormFor, kinds)
		cancel()
		done.Wait()
		list, err := w.converge()
		w.killAll(nil)
		if bad = err; bad == nil {
			bad = h.checkAppends(list)
		}
		if bad == nil {
			bad = h.checkRegisters()
		}
		if len(h.acked) == 0 {
			t.Errorf("nothing was acknowledged")
		}
	})
	return bad
}

func TestSchedules(t *testing.T) {
	first, n := uint64(1), schedules
	if os.Getenv("DC_LONG") != "" {
		first, n = uint64(time.Now().UnixNano()), longSchedules
	}
	if s := os.Getenv("DC_SIM_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("DC_SIM_SEED: %v", err)
		}
		first, n = seed, 1
	}
	for seed := first; seed < first+uint64(n); seed++ {
		if err := simulate(t, seed, mutation{}, faults); err != nil {
			t.Errorf("DC_SIM_SEED=%d: %v", seed, err)
		}
	}
}

// The simulation must notice what it is for: each of these faults in the code under test is found within a few schedules.
func TestTheSimulationBites(t *testing.T) {
	for _, c := range []struct {
		name  string
		mut   mutation
		kinds []fault
	}{
		{"reads confirmed by raft's VerifyLeader", mutation{verifyLeader: true}, []fault{deposition}},
		{"commands without request ids", mutation{noDedupe: true}, faults},
	} {
		t.Run(c.name, func(t *testing.T) {
			for seed := uint64(1); seed <= schedules; seed++ {
				if err := simulate(t, seed, c.mut, c.kinds); err != nil {
					t.Logf("seed %d: %v", seed, err)
					return
				}
			}
			t.Errorf("not found in %d schedules", schedules)
		})
	}
}

// The counter-example's own schedule finds nothing in the code as it is.
func TestDepositions(t *testing.T) {
	for seed := uint64(1); seed <= schedules/4; seed++ {
		if err := simulate(t, seed, mutation{}, []fault{deposition}); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
}
