package consensus

import (
	"fmt"
	"time"
)

// watch looks for a disk that hangs: a write of the log or an apply that does not end. Raft's heartbeats come from goroutines of their own, so
// a leader with a hung disk would stay leader for ever and every write with it. After Timing.StallSilent the lane goes silent, so the others elect
// a leader; after Timing.StallFatal the process ends.
func (g *Group) watch() {
	t := g.host.cfg.Timing
	tick := time.NewTicker(t.StallSilent / 4)
	defer tick.Stop()
	silent := false
	for {
		select {
		case <-tick.C:
		case <-g.ctx.Done():
			return
		}
		stall := max(g.store.Stalled(), g.fsm.stalled())
		if stall > t.StallFatal {
			g.fatal(fmt.Errorf("a write has been under way for %v: the disk hangs", stall.Round(time.Second)))
			return
		}
		if now := stall > t.StallSilent; now != silent {
			silent = now
			g.lane.Silence(now)
			if now {
				g.log.Warn("the disk stalls: this replica stops leading", "took", stall)
			} else {
				g.log.Info("the disk writes again")
			}
		}
	}
}
