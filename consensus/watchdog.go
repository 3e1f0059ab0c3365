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
	for last := time.Now(); ; {
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
		for _, g := range h.Groups() {
			g.lookForStall()
			g.tune()
		}
	}
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
