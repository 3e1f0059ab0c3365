package consensus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"missingos/consensus/logstore"
	"missingos/consensus/transport"
	"missingos/srv/dc"
)

// GroupConfig says which group. ID, Dir and Machine are required.
type GroupConfig struct {
	ID      dc.GroupID
	Dir     string // for the log, the vote and the snapshot record
	Machine StateMachine
	// Bootstrap, if this directory has no log yet, makes a new group of these voters. Only the first replica of a new group does that; replicas
	// that join later are opened without and wait to be added.
	Bootstrap []dc.NodeID
	// Lead, if set, runs in its own goroutine while this replica leads and has applied everything before its term; ctx ends with leadership, and
	// Lead must then return. Terms do not overlap: the next call waits for the former to return.
	Lead func(ctx context.Context)
}

// Group is this node's replica of one Raft group.
type Group struct {
	cfg   GroupConfig
	host  *Host
	log   *slog.Logger
	store *aheadLog
	snaps *snapshots
	lane  *transport.Lane
	raft  *raft.Raft // set before started is closed
	fsm   *fsm
	prop  *proposer
	reads *reader

	started chan struct{}
	stopped chan struct{}   // closed when Raft has shut down
	ctx     context.Context // ends with the group
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	silent, fatalStall atomic.Bool  // what the watchdog has done
	patient            atomic.Bool  // Raft has the long timeout
	heard              atomic.Int64 // when a heartbeat last came that Raft was not told of, after the host began; a time.Duration, so that no step of the wall clock counts
	tuned              tuning       // what Raft is set to; the host's watch only
	holds              holds
	pulling            atomic.Uint64 // the node that sends a snapshot, zero if none does

	comparing sync.Mutex
	wrong     atomic.Pointer[wrong] // set while the content is wrong

	mu       sync.Mutex
	compared *Compared // what the last comparison found
	lead     leadership
	closed   bool
}

// leadership is what a leader knows of its term; the zero value means that this replica does not lead, or is not ready to.
type leadership struct {
	term  uint64
	floor uint64 // index of the term's barrier: everything up to it is applied
}

func openGroup(h *Host, cfg GroupConfig) (_ *Group, err error) {
	g := &Group{cfg: cfg, host: h, started: make(chan struct{}), stopped: make(chan struct{}), log: h.cfg.Log.With("group", cfg.ID.String())}
	g.tuned, g.holds.life, g.holds.linger = tuning{urgent: true}, h.cfg.Timing.HoldLife, h.cfg.Timing.HoldLinger
	g.ctx, g.cancel = context.WithCancel(context.Background())
	var undo []func() error
	defer func() {
		if err == nil {
			return
		}
		g.cancel()
		for _, f := range undo {
			err = errors.Join(err, f())
		}
	}()
	beneath, err := h.openLog(logstore.Config{Dir: cfg.Dir, Group: cfg.ID, Fatal: g.fatal, Log: g.log})
	if err != nil {
		return nil, err
	}
	g.store = newAheadLog(beneath)
	g.store.mayRun = g.needsOthers
	undo = append(undo, g.store.Close)
	if g.snaps, err = openSnapshots(cfg.Dir, cfg.ID, h.cfg.Node); err != nil {
		return nil, err
	}
	if err := g.reconcile(); err != nil {
		return nil, err
	}
	w, err := readWrong(cfg.Dir)
	if err != nil {
		return nil, err
	}
	g.wrong.Store(w)
	g.fsm = newFSM(g)
	g.lane = h.transport.Open(cfg.ID, replica{g})
	undo = append(undo, g.lane.Close)
	notify := make(chan bool, 64)
	conf := g.raftConfig(notify)
	if err := g.bootstrap(conf); err != nil {
		return nil, err
	}
	if g.raft, err = raft.NewRaft(conf, g.fsm, g.store, g.store, g.snaps, g.lane); err != nil {
		return nil, err
	}
	close(g.started)
	g.prop = newProposer(g)
	g.reads = newReader(g)
	g.wg.Go(func() { g.follow(notify) })
	g.wg.Go(g.prop.run)
	if w != nil {
		g.log.Error("REPLICA IS WRONG: it is not used and is fetched anew", "why", w.Why)
		g.wg.Go(g.seeRebuilt)
	}
	if v := g.voters(); len(v) == 1 && v[0] == h.cfg.Node {
		g.wg.Go(func() { g.lane.Stand(g.ctx) }) // there is nobody whose silence to wait for
	}
	return g, nil
}

func (g *Group) raftConfig(notify chan bool) *raft.Config {
	t := g.host.cfg.Timing
	c := raft.DefaultConfig()
	c.LocalID = serverID(g.host.cfg.Node)
	c.HeartbeatTimeout, c.ElectionTimeout = t.Election, t.Election // there is no leader yet
	c.LeaderLeaseTimeout, c.CommitTimeout = t.Lease, t.Commit
	c.MaxAppendEntries, c.BatchApplyCh = 512, true
	c.SnapshotInterval, c.SnapshotThreshold, c.TrailingLogs = t.SnapshotEvery, t.SnapshotEntries, t.TrailingEntries
	c.NoSnapshotRestoreOnStart, c.NoLegacyTelemetry = true, true
	c.NotifyCh = notify
	c.Logger = hclog.New(&hclog.LoggerOptions{Name: g.cfg.ID.String(), Level: hclog.Warn, Output: logWriter{g.log}, DisableTime: true})
	return c
}

// logWriter passes Raft's own warnings on as debug lines: what matters of them this package says itself.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(b []byte) (int, error) {
	w.log.Debug("raft", "text", string(b[:max(len(b)-1, 0)]))
	return len(b), nil
}

func (g *Group) bootstrap(conf *raft.Config) error {
	if len(g.cfg.Bootstrap) == 0 {
		return nil
	}
	has, err := raft.HasExistingState(g.store, g.store, g.snaps)
	if err != nil || has {
		return err
	}
	var c raft.Configuration
	for _, n := range g.cfg.Bootstrap {
		c.Servers = append(c.Servers, raft.Server{ID: serverID(n), Address: serverAddress(n)})
	}
	return raft.BootstrapCluster(conf, g.store, g.store, g.snaps, g.lane, c)
}

func serverID(n dc.NodeID) raft.ServerID           { return raft.ServerID(n.String()) }
func serverAddress(n dc.NodeID) raft.ServerAddress { return raft.ServerAddress(n.String()) }

func nodeOf(id raft.ServerID) dc.NodeID {
	n, err := dc.ParseNodeID(string(id))
	if err != nil {
		return 0
	}
	return n
}

func (g *Group) fatal(err error) { g.host.cfg.Fatal(fmt.Errorf("group %s: %w", g.cfg.ID, err)) }

// ID names the group.
func (g *Group) ID() dc.GroupID { return g.cfg.ID }

// Machine is the state machine the group was opened with.
func (g *Group) Machine() StateMachine { return g.cfg.Machine }

// follow hears of leadership and runs what a leader runs. Raft blocks on its notify channel, so nothing here waits for long
// outside the term's own goroutine.
func (g *Group) follow(notify <-chan bool) {
	var end func()
	stop := func() {
		if end != nil {
			end()
			end = nil
		}
	}
	defer stop()
	for {
		select {
		case leading := <-notify:
			stop()
			if leading {
				end = g.beginTerm()
			}
		case <-g.ctx.Done():
			return
		}
	}
}

// beginTerm runs a term in goroutines of its own and returns how to end it.
func (g *Group) beginTerm() (end func()) {
	ctx, cancel := context.WithCancel(g.ctx)
	term := g.raft.CurrentTerm()
	done := make(chan struct{})
	go func() {
		defer close(done)
		if !g.ready(ctx, term) {
			return
		}
		g.log.Info("leading", "term", term)
		if g.cfg.Lead != nil {
			g.cfg.Lead(ctx)
		}
		<-ctx.Done()
	}()
	return func() {
		g.mu.Lock()
		g.lead = leadership{}
		g.mu.Unlock()
		cancel()
		<-done
		g.log.Info("no longer leading", "term", term)
	}
}

// ready waits until everything before this term is applied here.
func (g *Group) ready(ctx context.Context, term uint64) bool {
	for ctx.Err() == nil {
		f := g.raft.Barrier(0)
		err := g.answer(f)
		if err != nil {
			if errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrRaftShutdown) || errors.Is(err, raft.ErrLeadershipLost) {
				return false
			}
			pause(ctx, 20*time.Millisecond)
			continue
		}
		floor := uint64(0)
		if i, ok := f.(raft.IndexFuture); ok {
			floor = i.Index()
		}
		g.fsm.reached(floor)
		g.mu.Lock()
		defer g.mu.Unlock()
		if ctx.Err() != nil {
			return false
		}
		g.lead = leadership{term: term, floor: floor}
		return true
	}
	return false
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// leading gives the term this replica leads and is ready in.
func (g *Group) leading() (leadership, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lead, g.lead.term != 0
}

// notLeader says who leads instead, if known.
func (g *Group) notLeader(op string) error {
	leader, _ := g.Leader()
	if leader == g.host.cfg.Node {
		leader = 0 // elected but not ready yet
	}
	return &dc.Error{Op: op, Path: g.cfg.ID.String(), Kind: dc.NotLeader, Leader: leader}
}

// Leader gives the leader that this replica knows of, and its term; zero if none.
func (g *Group) Leader() (dc.NodeID, dc.Term) {
	_, id := g.raft.LeaderWithID()
	return nodeOf(id), dc.Term(g.raft.CurrentTerm())
}

// IsLeader tells whether this replica leads and is ready for proposals and reads.
func (g *Group) IsLeader() bool {
	_, ok := g.leading()
	return ok
}

// Clock is what a leader would stamp now: wall time, never behind what is applied here.
func (g *Group) Clock() int64 { return max(g.host.cfg.Now().UnixMilli(), g.fsm.clock.Load()) }

// Close hands over leadership if this replica leads others, and stops the replica. With ctx ended the hand-over is given up. The directory
// stays; the state machine is the caller's to close.
func (g *Group) Close(ctx context.Context) error {
	return g.close(ctx, true)
}

func (g *Group) close(ctx context.Context, handOver bool) error {
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		return nil
	}
	g.closed = true
	g.mu.Unlock()
	if handOver && g.raft.State() == raft.Leader {
		if err := g.Transfer(ctx); err != nil {
			g.log.Info("leadership not handed over", "err", err)
		}
	}
	g.cancel()
	_ = g.lane.Close()
	g.holds.close()
	err := g.raft.Shutdown().Error()
	close(g.stopped)
	g.wg.Wait()
	g.host.forget(g.cfg.ID)
	return errors.Join(err, g.store.Close())
}

// answer waits for a future. Raft v1.8.0 never answers what is still in its queue when it shuts down (BatchApplyCh), unless the future knows of the
// shutdown: its field ShutdownCh, which Raft sets for some kinds of futures, is set here for all. Then the error is raft.ErrRaftShutdown.
func (g *Group) answer(f raft.Future) error {
	if t, ok := f.(transferFuture); ok {
		f = t.Future
	}
	if v := reflect.ValueOf(f); v.Kind() == reflect.Pointer && v.Elem().Kind() == reflect.Struct {
		ch := v.Elem().FieldByName("ShutdownCh")
		if ch.IsValid() && ch.CanSet() && ch.Type() == reflect.TypeOf(g.stopped) && ch.IsNil() {
			ch.Set(reflect.ValueOf(g.stopped))
		}
	}
	return f.Error()
}

// needsOthers tells whether this replica leads, and can commit nothing without another voter. Raft's main loop asks, while it appends: then
// only a leader's own entries come here in the leader's state.
func (g *Group) needsOthers() bool {
	return g.running() && g.raft.State() == raft.Leader && len(g.voters()) > 1
}

// running tells whether Raft has been started: messages can come in before NewRaft has returned.
func (g *Group) running() bool {
	select {
	case <-g.started:
		return true
	default:
		return false
	}
}

// replica answers the transport's questions about this group.
type replica struct{ g *Group }

var _ transport.Replica = replica{}

// CurrentTerm is zero until Raft runs, which no leader's term is.
func (r replica) CurrentTerm() uint64 {
	if !r.g.running() {
		return 0
	}
	return r.g.raft.CurrentTerm()
}

// Heard takes note of a heartbeat in Raft's place. Raft stands for election when it has heard nothing for Timing.Heartbeat, so it is told
// whenever a third of that has passed.
func (r replica) Heard(from dc.NodeID, term uint64) (last uint64, ok bool) {
	g := r.g
	if !g.running() || !g.patient.Load() || g.raft.State() != raft.Follower || time.Since(g.raft.LastContact()) > g.host.cfg.Timing.Heartbeat/3 {
		return 0, false
	}
	if leader, now := g.Leader(); leader != from || uint64(now) != term {
		return 0, false
	}
	g.heard.Store(int64(time.Since(g.host.began)))
	return g.raft.LastIndex(), true
}

func (r replica) Progress() (applied, last uint64) {
	if !r.g.running() {
		return 0, 0
	}
	return r.g.fsm.index(), r.g.raft.LastIndex()
}

// Durable waits until what this replica has of the log up to index is on its disk.
func (r replica) Durable(ctx context.Context, index uint64) error {
	return r.g.store.durable(ctx, index)
}

func (r replica) Digest(ctx context.Context, index uint64) (*transport.DigestReply, error) {
	if err := r.g.awaitStart(ctx); err != nil {
		return nil, err
	}
	d, err := r.g.digest(ctx, dc.Index(index))
	if dc.KindOf(err) == dc.Again {
		return &transport.DigestReply{Gone: true}, nil
	}
	if err != nil {
		return nil, err
	}
	return &transport.DigestReply{Rows: d.Rows, Bytes: d.Bytes, Sum: d.Sum}, nil
}

func (r replica) Rebuild(ctx context.Context, req *transport.RebuildRequest) error {
	if err := r.g.awaitStart(ctx); err != nil {
		return err
	}
	if leader, _ := r.g.Leader(); uint64(leader) != req.From {
		return dc.Errorf(dc.Denied, "rebuild", r.g.cfg.ID.String(), "node n%d is not the leader", req.From)
	}
	var from []dc.NodeID
	for _, n := range req.Sources {
		from = append(from, dc.NodeID(n))
	}
	return r.g.Rebuild(req.Why, from)
}

func (r replica) Compare(ctx context.Context, markOnly bool) (*transport.CompareReply, error) {
	if err := r.g.awaitStart(ctx); err != nil {
		return nil, err
	}
	if markOnly {
		if !r.g.IsLeader() {
			return nil, r.g.notLeader("mark")
		}
		_, err := r.g.mark(ctx)
		return &transport.CompareReply{}, err
	}
	c, err := r.g.Compare(ctx)
	if err != nil {
		return nil, err
	}
	return c.encode(), nil
}

func (r replica) Pull(ctx context.Context, p *transport.PullRequest, out transport.Sink) error {
	return r.g.serve(ctx, p, out)
}

func (r replica) Hold(ctx context.Context, at uint64) error { return r.g.keep(ctx, dc.Index(at)) }
