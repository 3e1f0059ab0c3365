package node

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"missingos/consensus"
	"missingos/consensus/logstore"
	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/replica"
)

const (
	groupsDir = "groups"
	logDir    = "log"
	goneMark  = ".gone" // ends the name of a replica's directory that is being destroyed
)

// replicas holds the replicas that are open on this node.
type replicas struct {
	self   dc.NodeID
	dir    string // of all groups
	host   *consensus.Host
	kinds  map[string]replica.Kind
	lead   func(ctx context.Context, m *member)        // run beside a kind's own Lead
	grow   func(g dc.GroupID) error                    // says dc.NoSpace when a group's state may not grow any more
	allows func(feature) error                         // says dc.Unsupported while a node runs a version that does not know it
	holds  func(ctx context.Context, f dc.Fence) error // says dc.Stale when a lock is not held under a fencing token
	fatal  func(error)
	log    *slog.Logger

	change sync.Mutex // one open, close or destroy at a time; taken before mu

	mu     sync.Mutex
	open   map[dc.GroupID]*member
	closed bool
	abrupt bool // close without handing over
}

var _ replica.Replicas = (*replicas)(nil)

// small are the kinds of groups whose state is bounded and without which nothing can be put in order: they may use the reserve.
var small = map[string]bool{dc.KindMeta: true, dc.KindLock: true, dc.KindJobs: true}

// Leading finds the replica of a group that this node leads.
func (r *replicas) Leading(g dc.GroupID) (replica.Replica, error) {
	m, ok := r.member(g)
	if !ok {
		return nil, dc.Errorf(dc.NotLeader, "route", g.String(), "node %s has no replica of the group", r.self)
	}
	if !m.group.IsLeader() {
		leader, _ := m.group.Leader()
		if leader == r.self {
			leader = 0 // elected, not ready yet
		}
		return nil, &dc.Error{Op: "route", Path: g.String(), Kind: dc.NotLeader, Leader: leader}
	}
	return m, nil
}

func (r *replicas) member(g dc.GroupID) (*member, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, ok := r.open[g]
	return m, ok
}

// local gives a group's replica on this node, leading or not.
func (r *replicas) local(g dc.GroupID) (replica.Replica, bool) {
	m, ok := r.member(g)
	return m, ok
}

// all lists the open replicas by group.
func (r *replicas) all() []*member {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]*member, 0, len(r.open))
	for _, m := range r.open {
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b *member) int { return int(int64(a.id) - int64(b.id)) })
	return list
}

func (r *replicas) path(g dc.GroupID) string { return filepath.Join(r.dir, g.String()) }

// stored lists the groups that have a directory here, and finishes the destruction of those that were being destroyed.
func (r *replicas) stored() ([]dc.GroupID, error) {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return nil, dc.Wrap(err, "open replicas", r.dir)
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, dc.Wrap(err, "open replicas", r.dir)
	}
	var groups []dc.GroupID
	for _, e := range entries {
		name, gone := strings.CutSuffix(e.Name(), goneMark)
		n, err := dc.ParseNodeID("n" + strings.TrimPrefix(name, "g"))
		switch {
		case err != nil:
		case gone:
			if err := r.remove(dc.GroupID(n), filepath.Join(r.dir, e.Name())); err != nil {
				return nil, err
			}
		default:
			groups = append(groups, dc.GroupID(n))
		}
	}
	return groups, nil
}

// ensure opens the replica of a group if it is not open; founder makes the group of this replica alone if there is nothing of it yet.
func (r *replicas) ensure(rec *dcpb.MetaMapGroup, founder bool) error {
	r.change.Lock()
	defer r.change.Unlock()
	g := dc.GroupID(rec.Id)
	if _, ok := r.member(g); ok {
		return nil
	}
	kind, ok := r.kinds[rec.Kind]
	if !ok {
		return dc.Errorf(dc.Unsupported, "open replica", rec.Name, "this version of dcd does not know groups of kind %q", rec.Kind)
	}
	r.mu.Lock()
	closed := r.closed
	r.mu.Unlock()
	if closed {
		return dc.Errorf(dc.Unavailable, "open replica", rec.Name, "this node is shutting down")
	}
	m := newMember(g, kind, r.path(g))
	m.holds, m.allows = r.holds, r.allows
	// A destruction that could not be finished must be before the new replica begins: the next start would finish it on that one's log.
	if _, err := os.Stat(m.dir + goneMark); err == nil {
		if err := r.remove(g, m.dir+goneMark); err != nil {
			return err
		}
	}
	if !small[rec.Kind] {
		m.grow = func() error { return r.grow(g) }
	}
	var err error
	if err = r.openShard(m, rec); err != nil {
		return err
	}
	if kind.Applied != nil {
		m.shard.Observe(func(index dc.Index, events []any) { kind.Applied(g, index, events) })
	}
	if kind.Applying != nil {
		m.shard.Foretell(func(events []any) { kind.Applying(g, events) })
	}
	cfg := consensus.GroupConfig{ID: g, Dir: filepath.Join(m.dir, "raft"), Machine: stateMachine{m.shard, func() (string, error) { return r.aside(g) }}, Lead: func(ctx context.Context) { r.leads(ctx, m) }}
	if founder {
		cfg.Bootstrap = []dc.NodeID{r.self}
	}
	if m.group, err = r.host.Open(cfg); err != nil {
		return errors.Join(err, m.shard.Close())
	}
	if kind.Opened != nil {
		kind.Opened(m)
	}
	close(m.ready)
	r.mu.Lock()
	r.open[g] = m
	r.mu.Unlock()
	r.log.Info("replica opened", "group", g.String(), "name", rec.Name, "applied", m.shard.Applied())
	return nil
}

// leads runs one term of m: what its kind does, and the care for its membership.
func (r *replicas) leads(ctx context.Context, m *member) {
	<-m.ready
	var wg sync.WaitGroup
	if m.kind.Lead != nil {
		wg.Go(func() { m.kind.Lead(ctx, m) })
	}
	wg.Go(func() { r.lead(ctx, m) })
	wg.Wait()
}

// destroy closes a replica and removes everything of it.
func (r *replicas) destroy(ctx context.Context, g dc.GroupID) error {
	r.change.Lock()
	defer r.change.Unlock()
	m, ok := r.member(g)
	if !ok {
		return nil
	}
	r.mu.Lock()
	delete(r.open, g)
	r.mu.Unlock()
	if err := m.close(ctx); err != nil {
		r.log.Warn("replica closed with an error before its destruction", "group", g.String(), "err", err)
	}
	gone := m.dir + goneMark
	if err := os.Rename(m.dir, gone); err != nil {
		return dc.Wrap(err, "destroy replica", g.String())
	}
	if err := logstore.SyncDir(r.dir); err != nil { // before the log forgets the group's vote
		return dc.Wrap(err, "destroy replica", g.String())
	}
	r.log.Info("replica destroyed", "group", g.String())
	return r.remove(g, gone)
}

// remove takes what is left of a destroyed replica away: its part of the log, then its files, which remind the next start if this one does not get
// so far.
func (r *replicas) remove(g dc.GroupID, gone string) error {
	if err := r.host.Drop(g); err != nil {
		return err
	}
	return dc.Wrap(os.RemoveAll(gone), "destroy replica", g.String())
}

func (m *member) close(ctx context.Context) error {
	return errors.Join(m.group.Close(ctx), m.shard.Close())
}

// abandon makes Close hand nothing over.
func (r *replicas) abandon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.abrupt = true
}

// Close hands over leaderships and closes all replicas.
func (r *replicas) Close(ctx context.Context) error {
	r.mu.Lock()
	r.closed = true
	abrupt := r.abrupt
	r.mu.Unlock()
	r.change.Lock()
	defer r.change.Unlock()
	if abrupt {
		ended, cancel := context.WithCancel(ctx)
		cancel()
		ctx = ended
	}
	errs := []error{r.host.Close(ctx)}
	for _, m := range r.all() {
		errs = append(errs, m.shard.Close())
	}
	r.mu.Lock()
	clear(r.open)
	r.mu.Unlock()
	return errors.Join(errs...)
}
