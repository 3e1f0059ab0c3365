package sim

import (
	"context"
	"math/rand/v2"
	"time"

	"missingos/consensus/transport"
	"missingos/srv/dc"
)

// A fault begins and says for how long it lasts and how it ends.
type fault struct {
	name  string
	begin func(w *world, n dc.NodeID) (end func())
}

var faults = []fault{
	{"nothing", func(*world, dc.NodeID) func() { return func() {} }},
	{"kill", func(w *world, n dc.NodeID) func() { return w.down(n, nil) }},
	{"power cut", func(w *world, n dc.NodeID) func() { return w.down(n, w.rng) }},
	{"power cut for all", func(w *world, _ dc.NodeID) func() {
		w.killAll(w.rng)
		return w.heal
	}},
	{"isolate", func(w *world, n dc.NodeID) func() { return w.cut(n, true, true) }},
	{"deaf", func(w *world, n dc.NodeID) func() { return w.cut(n, false, true) }},
	{"mute", func(w *world, n dc.NodeID) func() { return w.cut(n, true, false) }},
	{"one link", func(w *world, n dc.NodeID) func() {
		l := link{n, n%replicas + 1}
		w.net.set(func() { w.net.cut[l] = true })
		return func() { w.net.set(func() { delete(w.net.cut, l) }) }
	}},
	{"pause", func(w *world, n dc.NodeID) func() {
		w.net.set(func() {
			if w.net.paused[n] == nil {
				w.net.paused[n] = make(chan struct{})
			}
		})
		return func() {
			w.net.set(func() {
				if p := w.net.paused[n]; p != nil {
					close(p)
					delete(w.net.paused, n)
				}
			})
		}
	}},
	{"hold answers", func(w *world, n dc.NodeID) func() { return w.hold(n) }},
	deposition,
	{"loss", func(w *world, _ dc.NodeID) func() {
		w.net.set(func() { w.net.loss = 0.1 })
		return func() { w.net.set(func() { w.net.loss = 0 }) }
	}},
	{"slow", func(w *world, _ dc.NodeID) func() {
		w.net.set(func() { w.net.slow = 400 * time.Millisecond })
		return func() { w.net.set(func() { w.net.slow = usualDelay }) }
	}},
	{"hand over", func(w *world, n dc.NodeID) func() {
		for _, from := range nodes() {
			if p := w.process(from); p != nil && from != n && p.group.IsLeader() {
				ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
				_ = p.group.TransferTo(ctx, n) // the network may be against it
				cancel()
			}
		}
		return func() {}
	}},
	{"clock", func(w *world, n dc.NodeID) func() { // ahead or behind, less than commands live
		w.skews[n].Store(w.rng.Int64N(int64(8*time.Minute)) - int64(4*time.Minute))
		return func() { w.skews[n].Store(0) }
	}},
	{"stalled disk", func(w *world, n dc.NodeID) func() {
		w.disks[n].slow.Store(int64(3 * time.Second)) // a leader keeps quiet then
		return func() { w.disks[n].slow.Store(0) }
	}},
	{"bad disk", func(w *world, n dc.NodeID) func() { // what it did not sync may be there or not, and the process must not go on
		w.disks[n].bad.Store(true)
		return func() {
			w.kill(n, w.rng)
			if w.process(n) == nil {
				w.start(n)
			}
		}
	}},
	{"full disk", func(w *world, n dc.NodeID) func() {
		w.full[n].Store(true)
		return func() { w.full[n].Store(false) }
	}},
	{"snapshot", func(w *world, n dc.NodeID) func() {
		if p := w.process(n); p != nil {
			_ = p.group.Snapshot() // so may a change that is under way
		}
		return func() {}
	}},
}

// down kills a node until it ends.
func (w *world) down(n dc.NodeID, cut *rand.Rand) (up func()) {
	w.kill(n, cut)
	return func() {
		if w.process(n) == nil {
			w.start(n)
		}
	}
}

// deposition is the fault that finds reads which believe old answers.
var deposition = fault{"depose", func(w *world, _ dc.NodeID) func() { return w.depose() }}

// cut takes a node's messages away, those it sends and those it should get.
func (w *world) cut(n dc.NodeID, out, in bool) (mend func()) {
	set := func(cut bool) {
		w.net.set(func() {
			for _, other := range nodes() {
				if out {
					w.net.cut[link{n, other}] = cut
				}
				if in {
					w.net.cut[link{other, n}] = cut
				}
			}
		})
	}
	set(true)
	return func() { set(false) }
}

// hold keeps the answers to a node's heartbeats back until it ends; then they arrive one after the other.
func (w *world) hold(n dc.NodeID) (release func()) {
	mine := map[link]chan struct{}{}
	w.net.set(func() {
		for _, other := range nodes() {
			if l := (link{n, other}); other != n && w.net.held[l] == nil {
				mine[l] = make(chan struct{})
				w.net.held[l], w.net.kept[l] = mine[l], 0
			}
		}
	})
	return func() {
		for _, other := range nodes() {
			l := link{n, other}
			w.net.set(func() {
				if mine[l] != nil && w.net.held[l] == mine[l] {
					close(mine[l])
					delete(w.net.held, l)
				}
			})
			w.rest(60 * time.Millisecond)
		}
	}
}

// depose has another leader elected while the old one cannot hear of it, and answers that it got before are still on their way. It is the schedule
// in which old answers vouch for a leader that is none any more.
func (w *world) depose() (end func()) {
	for _, n := range nodes() {
		p := w.process(n)
		if p == nil || !p.group.IsLeader() {
			continue
		}
		release := w.hold(n)
		w.kept(n)
		mend := w.cut(n, false, true)
		w.stand(n%replicas+1, n)
		time.Sleep(200 * time.Millisecond) // for an election and a write; the lease is not over then
		w.rest(timing.Lease / 3)
		release()
		return mend
	}
	return func() {}
}

// stand has node n stand for election at once, as if its leader had asked it to.
func (w *world) stand(n, leader dc.NodeID) {
	if p := w.process(n); p != nil {
		w.net.mu.Lock()
		local := w.net.nodes[n]
		w.net.mu.Unlock()
		_, _ = transport.NewRaftClient(local).TimeoutNow(context.Background(), &transport.TimeoutNowRequest{From: uint64(leader), Group: uint64(group)})
	}
}

// kept waits until answers of all others to n are held, but not for long.
func (w *world) kept(n dc.NodeID) {
	for range 100 {
		all := true
		w.net.set(func() {
			for _, other := range nodes() {
				all = all && (other == n || w.net.kept[link{n, other}] > 0)
			}
		})
		if all {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// rest sleeps for up to d.
func (w *world) rest(d time.Duration) { time.Sleep(time.Duration(w.rng.Int64N(int64(d)))) }

// storm makes faults of kinds for d, sometimes two at a time, and takes all away.
func (w *world) storm(d time.Duration, kinds []fault) {
	end := time.Now().Add(d)
	for time.Now().Before(end) {
		var ends []func()
		for range 1 + w.rng.IntN(2) {
			f := kinds[w.rng.IntN(len(kinds))]
			ends = append(ends, f.begin(w, dc.NodeID(w.rng.IntN(replicas)+1)))
			w.rest(1500 * time.Millisecond)
		}
		w.rest(4 * time.Second)
		for _, end := range ends {
			end()
		}
		w.rest(2 * time.Second)
	}
	w.heal()
}
