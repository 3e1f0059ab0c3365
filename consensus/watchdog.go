package consensus

import (
	"fmt"
	"time"
)

// watch looks after all groups of a host, until the host closes: for disks that hang, for leaders that have fallen
// silent (urgency.go), and for held states whose time is over (serve.go).
//
// A disk hangs if a write of a log or an apply does not end. Raft's heartbeats come from goroutines of their own, so
// a leader with a hung disk would stay leader for ever and every write with it. After Timing.StallSilent the group's lane goes silent, so the others
// elect a leader; after Timing.StallFatal the process ends.
func (h *Host) watch() {
	t := h.cfg.Timing
	tick := time.NewTicker(min(t.StallSilent/4, t.Election/6))
	defer tick.Stop()
	var groups []*Group
	for last, n := time.Now(), uint64(0); ; n++ {
		select {
		case <-tick.C:
		case <-h.closing:
			return
		}
		// A tick that comes late says that this process was stopped, and its writes with it: they get until the next one, and so do
		// leaders whose heartbeats nobody was there to hear.
		late := time.Since(last) > min(t.StallSilent, t.Election/2)
		if last = time.Now(); late {
			continue
		}
		groups = h.groupsInto(groups[:0])
		since := int64(last.Sub(h.began))
		for _, g := range groups {
			// All are looked at in every fourth tick, some in each. A host of a thousand idle groups spends a tenth of its time here otherwise.
			turn := (uint64(g.cfg.ID)+n)%thoroughEvery == 0
			if turn || g.busy() {
				g.lookForStall()
			}
			if turn || !g.steady(since) {
				g.tune()
			}
		}
	}
}

// thoroughEvery is in how many ticks of the watch a group is looked at that does nothing, and whose leader speaks.
const thoroughEvery = 4

// busy tells whether something may stall, or has.
func (g *Group) busy() bool {
	return g.fsm.began.Load() != 0 || g.silent.Load() || g.store.Stalled() != 0
}

func (g *Group) lookForStall() {
	t := g.host.cfg.Timing
	stall := max(g.store.Stalled(), g.fsm.stalled())
	if stall > t.StallFatal && g.ctx.Err() == nil {
		if !g.fatalStall.Swap(true) {
			g.fatal(fmt.Errorf("a write has been under way for %v: the disk hangs", stall.Round(time.Second)))
		}
		return
	}
	if now := stall > t.StallSilent; g.silent.Swap(now) != now {
		g.lane.Silence(now)
		if now {
			g.log.Warn("the disk stalls: this replica stops leading", "took", stall)
		} else {
			g.log.Info("the disk writes again")
		}
	}
}
