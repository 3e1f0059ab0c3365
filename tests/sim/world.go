package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"missingos/consensus"
	"missingos/consensus/logstore"
	"missingos/srv/dc"
	"missingos/srv/rpc"
)

const (
	group    = dc.GroupID(7)
	replicas = 3
	// segmentBytes is small, so that segments end, go and are used again.
	segmentBytes = 64 * dc.KiB
)

// mutation is a fault of the code under test, to show that the simulation bites.
type mutation struct {
	verifyLeader bool // reads are confirmed by raft's VerifyLeader
	noDedupe     bool // commands carry no request id, so a retry is a new command
}

// world is one cluster of one group in one bubble.
type world struct {
	t   *testing.T
	dir string
	rng *rand.Rand
	net *network
	mut mutation

	disks map[dc.NodeID]*disk
	skews map[dc.NodeID]*atomic.Int64 // how wrong the nodes' wall clocks are, nanoseconds
	full  map[dc.NodeID]*atomic.Bool  // whose disks have reached the reserve

	mu    sync.Mutex
	procs map[dc.NodeID]*process // those that live
	ended map[dc.NodeID]*process // those that a bad disk ended, until they are buried
}

// process is one life of one node.
type process struct {
	node    dc.NodeID
	dead    atomic.Bool
	host    *consensus.Host
	group   *consensus.Group
	machine *state
	log     *logstore.Shared
}

// timing is what nodes really use, but for snapshots, which come more often here.
var timing = consensus.Timing{Lease: 1500 * time.Millisecond, SnapshotEvery: 2 * time.Second, SnapshotEntries: 40, TrailingEntries: 20, HoldLinger: time.Second}

func nodes() []dc.NodeID {
	var all []dc.NodeID
	for i := range replicas {
		all = append(all, dc.NodeID(i+1))
	}
	return all
}

func newWorld(t *testing.T, seed uint64, mut mutation) *world {
	w := &world{
		t: t, dir: t.TempDir(), rng: rand.New(rand.NewPCG(seed, 1)), net: newNetwork(rand.New(rand.NewPCG(seed, 2))), mut: mut,
		disks: map[dc.NodeID]*disk{}, skews: map[dc.NodeID]*atomic.Int64{}, full: map[dc.NodeID]*atomic.Bool{}, procs: map[dc.NodeID]*process{}, ended: map[dc.NodeID]*process{},
	}
	for _, n := range nodes() {
		w.disks[n] = newDisk(filepath.Join(w.dir, n.String()))
		w.skews[n], w.full[n] = &atomic.Int64{}, &atomic.Bool{}
	}
	for _, n := range nodes() {
		w.start(n)
	}
	return w
}

// start begins a node's next life.
func (w *world) start(n dc.NodeID) {
	w.t.Helper()
	w.bury(n, w.rng)
	disk := w.disks[n]
	disk.bad.Store(false) // whoever starts it has seen to that
	p := &process{node: n, machine: openState(disk)}
	fatal := func(err error) {
		switch {
		case disk.bad.Load():
			w.end(p)
		case !p.dead.Load():
			w.t.Errorf("node %s: %v", n, err)
		}
	}
	var err error
	if p.log, err = logstore.OpenShared(logstore.SharedConfig{FS: disk.log, SegmentBytes: segmentBytes, Fatal: fatal}); err != nil {
		w.t.Fatalf("node %s: %v", n, err)
	}
	p.host = consensus.NewHost(consensus.HostConfig{
		Node: n, Timing: timing, VerifyLeaderReads: w.mut.verifyLeader,
		OpenLog: func(cfg logstore.Config) (logstore.Store, error) { return unheard{p.log.Open(cfg.Group), &p.dead}, nil },
		Dial: func(to dc.NodeID) (grpc.ClientConnInterface, error) {
			return conn{w.net, &p.dead, link{n, to}}, nil
		},
		Fatal: fatal,
		Now:   func() time.Time { return time.Now().Add(time.Duration(w.skews[n].Load())) },
		Space: func() error {
			if w.full[n].Load() {
				return dc.Errorf(dc.NoSpace, "propose", n.String(), "the disk is full")
			}
			return nil
		},
	})
	local := rpc.NewLocal()
	p.host.Register(local)
	w.net.set(func() { w.net.nodes[n] = local })
	p.group, err = p.host.Open(consensus.GroupConfig{ID: group, Dir: disk.dir, Machine: p.machine, Bootstrap: nodes()})
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.procs[n] = p
	w.mu.Unlock()
}

// kill ends a node's life at once: nothing that it has not written or sent already comes about. If cut is set the power fails with it.
func (w *world) kill(n dc.NodeID, cut *rand.Rand) {
	if p := w.process(n); p != nil {
		w.end(p)
	}
	w.bury(n, cut)
}

// end makes a process one that nobody hears any more.
func (w *world) end(p *process) {
	w.mu.Lock()
	if w.procs[p.node] == p {
		delete(w.procs, p.node)
		w.ended[p.node] = p
		w.net.set(func() { delete(w.net.nodes, p.node) }) // first: what a ghost says counts for nothing
	}
	w.mu.Unlock()
	p.dead.Store(true)
}

// bury takes over what a process that was ended leaves behind, and waits for its goroutines.
func (w *world) bury(n dc.NodeID, cut *rand.Rand) {
	w.mu.Lock()
	p := w.ended[n]
	delete(w.ended, n)
	w.mu.Unlock()
	if p == nil {
		return
	}
	heir, err := w.disks[n].left(cut)
	if err != nil {
		w.t.Fatal(err)
	}
	w.disks[n] = heir
	now, cancel := context.WithCancel(context.Background())
	cancel()
	_ = p.host.Close(now) // the ghost's complaints are nobody's business
	_ = p.log.Close()
}

func (w *world) killAll(cut *rand.Rand) {
	for _, n := range nodes() {
		w.kill(n, cut)
	}
}

func (w *world) process(n dc.NodeID) *process {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.procs[n]
}

// heal takes all faults away and brings the dead back.
func (w *world) heal() {
	w.net.heal()
	for _, n := range nodes() {
		if w.process(n) == nil {
			w.start(n)
		}
	}
}

// converge waits until all replicas have applied the same, and gives the list.
func (w *world) converge() ([]string, error) {
	for range 600 {
		time.Sleep(100 * time.Millisecond)
		if !w.led() {
			continue // those that have all just started may be equal, and have in their logs what nobody has committed again yet
		}
		if list, ok := w.equal(); ok {
			return list, nil
		}
	}
	var told []string
	for _, n := range nodes() {
		p := w.process(n)
		told = append(told, fmt.Sprintf("%d lines up to entry %d, %+v", len(p.machine.list()), p.machine.Applied(), p.group.Status()))
	}
	return nil, fmt.Errorf("the replicas did not become equal within a minute without faults: %v", told)
}

// led tells whether there is a leader that has applied all that was ever committed.
func (w *world) led() bool {
	for _, n := range nodes() {
		p := w.process(n)
		if !p.group.IsLeader() {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		err := p.group.ReadBarrier(ctx)
		cancel()
		if err == nil {
			return true
		}
	}
	return false
}

func (w *world) equal() ([]string, bool) {
	var first *process
	var list []string
	for _, n := range nodes() {
		p := w.process(n)
		if first == nil {
			first, list = p, p.machine.list()
			continue
		}
		if p.machine.Applied() != first.machine.Applied() {
			return nil, false
		}
		other := p.machine.list()
		if len(other) != len(list) {
			return nil, false
		}
		for i := range list {
			if list[i] != other[i] {
				w.t.Fatalf("replicas of entry %d differ in line %d: %q on %s, %q on %s", first.machine.Applied(), i, list[i], first.node, other[i], p.node)
			}
		}
	}
	return list, true
}
