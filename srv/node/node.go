package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"missingos/consensus"
	"missingos/srv/client"
	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/meta"
	"missingos/srv/pki"
	"missingos/srv/rpc"
	"missingos/storage"
	"missingos/storage/block"
	"missingos/storage/command"
	metamachine "missingos/storage/machine/meta"
)

// Node is one running member of the cluster.
type Node struct {
	cfg     Config
	id      *pki.Identity
	address string // that others reach this node by
	log     *slog.Logger

	lock      *os.File
	space     *space
	directory *directory
	local     *rpc.Local
	conns     *conns
	server    *grpc.Server
	admin     *grpc.Server
	replicas  *replicas
	blocks    *block.Store
	files     *client.Data
	client    *client.Client
	meta      *client.Meta
	rooms     *rooms
	metrics   *metrics

	stop    context.CancelFunc
	loops   sync.WaitGroup
	ended   chan error // why the node cannot go on; holds one
	closing sync.Once
	closers []closer // in the order of opening
}

type closer struct {
	what  string
	close func(ctx context.Context) error
}

// Start runs the node of cfg.Dir and returns when it serves; the cluster need not be reachable for that. The caller must Close it.
func Start(cfg Config) (_ *Node, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	n := &Node{ended: make(chan error, 1)}
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.Background(), dc.OpTimeout)
			defer cancel()
			err = errors.Join(err, n.Close(ctx))
		}
	}()
	if n.lock, err = lockDir(cfg.Dir); err != nil {
		return nil, err
	}
	n.closes("directory lock", func(context.Context) error { return n.lock.Close() })
	if err := cfg.fill(); err != nil {
		return nil, err
	}
	n.cfg, n.log = cfg, cfg.Log
	if n.id, err = pki.LoadIdentity(cfg.Dir); err != nil {
		return nil, err
	}
	n.log = n.log.With("node", n.id.Node.String())
	lis, err := n.open()
	if err != nil {
		return nil, err
	}
	return n, n.serve(ctx, lis)
}

// open makes the parts, bottom up, without starting anything but the listener.
func (n *Node) open() (net.Listener, error) {
	var err error
	if n.space, err = newSpace(n.cfg.Dir, n.cfg.ReserveBytes, n.log); err != nil {
		return nil, err
	}
	known, err := loadMap(n.cfg.Dir)
	if err != nil {
		return nil, err
	}
	n.directory = newDirectory(n.id.Node, n.cfg.Dir, known, n.log)
	lis := n.cfg.Listener
	if lis == nil {
		if lis, err = net.Listen("tcp", n.cfg.Listen); err != nil {
			return nil, dc.Errorf(dc.Busy, "listen", n.cfg.Listen, "%w", err)
		}
	}
	n.closes("listener", func(context.Context) error { _ = lis.Close(); return nil })
	n.address = advertised(lis.Addr().String())
	n.metrics = newMetrics()
	n.local = rpc.NewLocal()
	n.conns = &conns{id: n.id, local: n.local, self: n.address, find: n.directory.address, dial: n.cfg.Dial, open: map[dc.NodeID]*conn{}}
	n.closes("connections", func(context.Context) error { n.conns.Close(); return nil })
	g := &gate{id: n.id, directory: n.directory}
	admit := &rpc.Admit{Peer: g.peer, Open: openMethods(), Observe: n.metrics.observe, Log: n.log}
	n.server = newServer(n.id, g, admit)
	carried := rpc.NewLocal() // what shared streams carry: the same as the server, Raft included, which n.local does without
	dcpb.RegisterMuxServer(n.server, rpc.NewMuxServer(carried, admitted(g, admit)))
	n.client = client.New(client.Config{Node: n.id.Node, Nodes: n.conns, Directory: n.directory, Log: n.log, Fences: func() error { return n.directory.allows(fencedWrites) }})
	n.meta = client.NewMeta(n.client)
	host := consensus.NewHost(consensus.HostConfig{
		Node: n.id.Node, LogDir: filepath.Join(n.cfg.Dir, logDir),
		Dial: func(to dc.NodeID) (grpc.ClientConnInterface, error) { return n.conns.remote(to) },
		Peer: g.peer, Fatal: n.cfg.Fatal, Space: n.space.check, SnapshotRate: n.cfg.SnapshotRate, Log: n.log,
	})
	care := &membership{self: n.id.Node, directory: n.directory, meta: n.meta, log: n.log}
	n.replicas = &replicas{
		self: n.id.Node, dir: filepath.Join(n.cfg.Dir, groupsDir), host: host, lead: care.lead, grow: n.mayGrow, allows: n.directory.allows, fatal: n.cfg.Fatal, log: n.log, open: map[dc.GroupID]*member{},
	}
	n.metrics.watch(n)
	if n.rooms, err = n.openRooms(); err != nil {
		return nil, err
	}
	n.replicas.kinds = n.rooms.kinds
	both := registrars{n.server, carried, n.local}
	host.Register(registrars{n.server, carried})
	dcpb.RegisterJoinServer(n.server, &joiner{meta: n.meta})
	for _, kind := range n.rooms.kinds {
		kind.Register(both)
	}
	for _, register := range n.rooms.register {
		register(both)
	}
	return lis, nil
}

func (n *Node) closes(what string, f func(ctx context.Context) error) {
	n.closers = append(n.closers, closer{what, f})
}

// serve starts everything.
func (n *Node) serve(ctx context.Context, lis net.Listener) error {
	n.loops.Go(func() { _ = n.server.Serve(lis) })
	n.closes("server", func(ctx context.Context) error { return stopServer(ctx, n.server) })
	n.closes("replicas", n.replicas.Close)
	n.closers = append(n.closers, n.rooms.closers...)
	if err := n.openReplicas(); err != nil {
		return err
	}
	n.loops.Go(func() { n.directory.follow(ctx, n.conns) })
	n.loops.Go(func() { n.found(ctx) })
	n.loops.Go(func() { n.host(ctx) })
	n.loops.Go(func() { n.register(ctx) })
	n.loops.Go(func() { n.space.watch(ctx) })
	n.loops.Go(func() { n.compare(ctx) })
	n.loops.Go(func() {
		if err := n.beats(ctx); err != nil {
			n.end(err)
		}
	})
	for _, run := range n.rooms.run {
		n.loops.Go(func() { run(ctx) })
	}
	if err := n.serveAdmin(); err != nil {
		return err
	}
	if err := n.serveMetrics(); err != nil {
		return err
	}
	n.log.Info("node runs", "name", n.id.Name, "cluster", n.id.Cluster, "address", n.address, "version", Version, "commit", Commit)
	if !n.cfg.NoMount {
		if err := n.mount(); err != nil {
			return err
		}
	}
	n.runTasks(ctx)
	return nil
}

func (n *Node) end(err error) {
	select {
	case n.ended <- err:
	default:
	}
}

// openReplicas opens the replicas that have a directory here and those that the map of the last run wants. What came of the map since is for host.
func (n *Node) openReplicas() error {
	groups, err := n.replicas.stored()
	if err != nil {
		return err
	}
	_, err = os.Stat(filepath.Join(n.cfg.Dir, bootstrapFile))
	founder := err == nil
	want := map[dc.GroupID]bool{}
	for _, g := range groups {
		want[g] = true
	}
	for _, rec := range n.directory.wanted() {
		want[dc.GroupID(rec.Id)] = true
	}
	for g := range want {
		rec, ok := n.directory.group(g)
		if !ok {
			n.log.Warn("a replica's directory is of a group that the map does not name: left alone", "group", g.String())
			continue
		}
		if rec.Bootstrap == uint64(n.id.Node) && !slices.Contains(groups, g) {
			continue // to be made of nothing: only by a map that is confirmed
		}
		if err := n.replicas.ensure(rec, founder && g == dc.MetaGroup); err != nil {
			if errors.Is(err, dc.Unsupported) {
				n.log.Warn("replica is not opened", "group", g.String(), "err", err)
				continue
			}
			return err
		}
	}
	return nil
}

// found writes the first records of a new cluster, once, from what Init has left; it ends when they are there.
func (n *Node) found(ctx context.Context) {
	path := filepath.Join(n.cfg.Dir, bootstrapFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	init := &command.MetaInit{}
	if err == nil {
		err = proto.Unmarshal(b, init)
	}
	if err != nil {
		n.end(dc.Errorf(dc.Corrupt, "make cluster", path, "%w", err))
		return
	}
	for ctx.Err() == nil {
		if m, ok := n.replicas.member(dc.MetaGroup); ok {
			if n.founded(m) {
				if err := os.Remove(path); err != nil {
					n.log.Warn("the first command of the cluster is not removed; it holds the authority's key", "path", path, "err", err)
				}
				return
			}
			if m.group.IsLeader() {
				attempt, cancel := context.WithTimeout(ctx, registerTimeout)
				if err := meta.Bootstrap(attempt, m, init); err != nil {
					n.log.Warn("the cluster is not made yet", "err", err)
				}
				cancel()
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (n *Node) founded(m *member) bool {
	there := false
	err := m.Local(func(r storage.Reader) error { _, there = metamachine.Cluster(r); return nil })
	return err == nil && there
}

// mayGrow tells whether the replicas of a group have room.
func (n *Node) mayGrow(g dc.GroupID) error {
	rec, ok := n.directory.group(g)
	if !ok {
		return n.space.grow(nil)
	}
	return n.space.grow(rec.Nodes)
}

func (n *Node) serveAdmin() error {
	lis, err := listenUnix(n.cfg.Dir)
	if err != nil {
		return err
	}
	n.admin = newAdminServer(n)
	n.loops.Go(func() { _ = n.admin.Serve(lis) })
	n.closes("admin socket", func(ctx context.Context) error {
		_ = os.Remove(filepath.Join(n.cfg.Dir, SocketName))
		return stopServer(ctx, n.admin)
	})
	return nil
}

// stopServer ends a server and its handlers; ctx bounds the wait for them.
func stopServer(ctx context.Context, s *grpc.Server) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Stop()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return dc.Errorf(dc.Unavailable, "stop server", "", "requests are still running")
	}
}

// ID is the node's id.
func (n *Node) ID() dc.NodeID { return n.id.Node }

// Address is where other nodes reach this one.
func (n *Node) Address() string { return n.address }

// Client is this node's way to the cluster.
func (n *Node) Client() *client.Client { return n.client }

// Meta is this node's client of the meta group.
func (n *Node) Meta() *client.Meta { return n.meta }

// Ended gives the error for which the node cannot go on, if that happens: it has been removed, or its mount has been taken away.
func (n *Node) Ended() <-chan error { return n.ended }

// Abort ends the node like Close but hands nothing over, as far as a crash can be had in a living process; for tests.
func (n *Node) Abort(ctx context.Context) error {
	n.replicas.abandon()
	return n.Close(ctx)
}

// Close ends the node: it unmounts, hands over leaderships, and returns when everything has ended, or ctx has.
func (n *Node) Close(ctx context.Context) error {
	var errs []error
	n.closing.Do(func() {
		stopped := false
		for i := len(n.closers) - 1; i >= 0; i-- {
			c := n.closers[i]
			if !stopped && (c.what == "replicas" || c.what == "server") {
				n.stop() // nothing may open a replica any more
				stopped = true
			}
			if err := c.close(ctx); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", c.what, err))
			}
		}
		n.stop()
		errs = append(errs, n.join(ctx))
	})
	return errors.Join(errs...)
}

// join waits for the node's own goroutines.
func (n *Node) join(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.loops.Wait()
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return dc.Errorf(dc.Unavailable, "close", "", "background work is still running")
	}
}

// Run runs the node of cfg.Dir until ctx ends or it cannot go on, and closes it.
func Run(ctx context.Context, cfg Config) error {
	n, err := Start(cfg)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		n.log.Info("stopping")
	case err = <-n.ended:
	}
	closing, cancel := context.WithTimeout(context.Background(), n.cfg.StopTimeout)
	defer cancel()
	if cerr := n.Close(closing); cerr != nil {
		n.log.Warn("not everything ended cleanly", "err", cerr)
		err = errors.Join(err, cerr)
	} else {
		n.log.Info("stopped")
	}
	return err
}
