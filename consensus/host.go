package consensus

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"missingos/consensus/logstore"
	"missingos/consensus/transport"
	"missingos/srv/dc"
)

// HostConfig says how the groups of a node live. Node, Dial and Fatal are required.
type HostConfig struct {
	Node dc.NodeID
	// Dial gives a connection to another node; see transport.Config.
	Dial transport.Dialer
	// Peer tells which node a request came from.
	Peer func(ctx context.Context) (dc.NodeID, bool)
	// Fatal is told of failures after which the process must not go on (disk errors, undecodable entries). It must end the process;
	// in tests it may return.
	Fatal func(err error)
	// Space, if set, returns dc.NoSpace when the disk has reached its reserve; proposals are then refused. It is asked for every batch, so it
	// must be cheap.
	Space func() error
	// Now is the wall clock that entries are stamped by (see [Group.Clock]); default time.Now. Simulations have wrong ones.
	Now    func() time.Time
	Log    *slog.Logger
	Timing Timing
	// LogDir is the directory of the write-ahead log that all groups share. It is opened with the first group.
	LogDir string
	// OpenLog, if set, opens a group's log instead. Simulations bring their own.
	OpenLog func(cfg logstore.Config) (logstore.Store, error)
	// SnapshotRate is how many bytes a second the rows of snapshots may take that this node sends, of all groups together, and as many those that it
	// receives. Zero is 32 MiB; less than zero is no limit. Less than 1 MiB makes receivers give up.
	SnapshotRate int64
	// VerifyLeaderReads replaces the confirmation of reads by hashicorp/raft's VerifyLeader, which is wrong (see ReadBarrier). Simulations set it to
	// show that they would notice.
	VerifyLeaderReads bool
}

// Timing holds the clocks of Raft; zero fields take the defaults.
type Timing struct {
	// A leader sends heartbeats every Heartbeat/10 to Heartbeat/5 (and a little later, see Pulse of transport.Config); default 3 s. A follower
	// that has heard nothing for Election (default half of Heartbeat) stands for election; see urgency.go.
	Heartbeat, Election time.Duration
	Lease               time.Duration // a leader without a majority for so long steps down; default Election, which it must not exceed
	Commit              time.Duration // an idle leader tells the commit index so often; default 3 s
	// Snapshots are looked at every SnapshotEvery (default 30 s) and taken after SnapshotEntries (default 8192); TrailingEntries
	// (default 8192) stay in the log for followers that lag.
	SnapshotEvery   time.Duration
	SnapshotEntries uint64
	TrailingEntries uint64
	// A state that a replica pulls is held at most for HoldLife (default 30 min), and HoldLinger (default 1 min) after the pull.
	HoldLife, HoldLinger time.Duration
	StallSilent          time.Duration // a write that takes so long costs leadership; default 2 s
	StallFatal           time.Duration // and so long ends the process; default 20 s
}

func (t Timing) withDefaults() Timing {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&t.Heartbeat, 3*time.Second)
	set(&t.Election, t.Heartbeat/2)
	set(&t.Lease, t.Election)
	set(&t.Commit, 3*time.Second)
	set(&t.SnapshotEvery, 30*time.Second)
	set(&t.HoldLife, 30*time.Minute)
	set(&t.HoldLinger, time.Minute)
	set(&t.StallSilent, 2*time.Second)
	set(&t.StallFatal, 20*time.Second)
	if t.SnapshotEntries == 0 {
		t.SnapshotEntries = 8192
	}
	if t.TrailingEntries == 0 {
		t.TrailingEntries = 8192
	}
	return t
}

// Host is all groups of a node over one transport.
type Host struct {
	cfg       HostConfig
	transport *transport.Transport
	began     time.Time
	closing   chan struct{} // closed by Close
	watching  sync.WaitGroup

	sending, receiving throttle // of snapshots

	logMu sync.Mutex       // before mu
	wal   *logstore.Shared // nil until the first group is opened

	mu      sync.Mutex
	groups  map[dc.GroupID]*Group
	closed  bool
	watched bool // the watchdog runs: from the first group on
}

// NewHost makes a host without groups.
func NewHost(cfg HostConfig) *Host {
	cfg.Timing = cfg.Timing.withDefaults()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Space == nil {
		cfg.Space = func() error { return nil }
	}
	if cfg.SnapshotRate == 0 {
		cfg.SnapshotRate = defaultSnapshotRate
	}
	return &Host{
		sending: throttle{rate: float64(cfg.SnapshotRate)}, receiving: throttle{rate: float64(cfg.SnapshotRate)}, cfg: cfg, groups: map[dc.GroupID]*Group{}, began: time.Now(), closing: make(chan struct{}),
		transport: transport.New(transport.Config{Node: cfg.Node, Dial: cfg.Dial, Peer: cfg.Peer, Gather: cfg.Timing.Heartbeat / 20, Pulse: cfg.Timing.Heartbeat / 4}),
	}
}

// Register adds the Raft service to the node's server.
func (h *Host) Register(s transport.Registrar) { h.transport.Register(s) }

// Group finds an open group.
func (h *Host) Group(id dc.GroupID) (*Group, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g, ok := h.groups[id]
	return g, ok
}

// Groups lists the open groups.
func (h *Host) Groups() []*Group {
	return h.groupsInto(nil)
}

// groupsInto appends the groups to all, in any order.
func (h *Host) groupsInto(all []*Group) []*Group {
	h.mu.Lock()
	defer h.mu.Unlock()
	all = slices.Grow(all, len(h.groups))
	for _, g := range h.groups {
		all = append(all, g)
	}
	return all
}

// Open starts this node's replica of a group. It blocks for recovery of the log, not for an election.
func (h *Host) Open(cfg GroupConfig) (*Group, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, err
	}
	g, err := openGroup(h, cfg)
	if err != nil {
		return nil, dc.Wrap(err, "open group", cfg.ID.String())
	}
	h.mu.Lock()
	_, double := h.groups[cfg.ID]
	if !double && !h.closed {
		h.groups[cfg.ID] = g
		if !h.watched {
			h.watched = true
			h.watching.Go(h.watch)
		}
		h.mu.Unlock()
		return g, nil
	}
	h.mu.Unlock()
	return nil, errors.Join(dc.Errorf(dc.Busy, "open group", cfg.ID.String(), "it is open already, or the host is closed"), g.close(context.Background(), false))
}

// log opens the shared log if it is not open yet.
func (h *Host) log() (*logstore.Shared, error) {
	h.logMu.Lock()
	defer h.logMu.Unlock()
	if h.wal != nil {
		return h.wal, nil
	}
	if h.cfg.LogDir == "" {
		return nil, dc.Errorf(dc.Invalid, "open log", "", "the host has no directory for its log")
	}
	fs, err := logstore.OpenFS(h.cfg.LogDir)
	if err != nil {
		return nil, err
	}
	h.wal, err = logstore.OpenShared(logstore.SharedConfig{FS: fs, Fatal: h.cfg.Fatal, Log: h.cfg.Log})
	return h.wal, err
}

// openLog opens a group's part of the log.
func (h *Host) openLog(cfg logstore.Config) (logstore.Store, error) {
	if h.cfg.OpenLog != nil {
		return h.cfg.OpenLog(cfg)
	}
	wal, err := h.log()
	if err != nil {
		return nil, err
	}
	return wal.Adopt(cfg)
}

// Drop takes a closed group's entries and vote out of the log, for ever. Its directory is the caller's to remove.
func (h *Host) Drop(id dc.GroupID) error {
	wal, err := h.log()
	if err != nil {
		return dc.Wrap(err, "drop group", id.String())
	}
	return dc.Wrap(wal.Drop(id), "drop group", id.String())
}

func (h *Host) closeLog() error {
	h.logMu.Lock()
	defer h.logMu.Unlock()
	if h.wal == nil {
		return nil
	}
	return h.wal.Close()
}

// forget drops a closed group.
func (h *Host) forget(id dc.GroupID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.groups, id)
}

// Close hands over leadership of all groups and stops them. It returns when their goroutines are gone, or, with ctx ended, as soon as
// hand-overs are given up.
func (h *Host) Close(ctx context.Context) error {
	h.mu.Lock()
	if !h.closed {
		h.closed = true
		close(h.closing)
	}
	h.mu.Unlock()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs error
	)
	for _, g := range h.Groups() {
		wg.Go(func() {
			err := g.Close(ctx)
			mu.Lock()
			defer mu.Unlock()
			errs = errors.Join(errs, err)
		})
	}
	wg.Wait()
	h.watching.Wait()
	h.transport.Close()
	return errors.Join(errs, h.closeLog())
}
