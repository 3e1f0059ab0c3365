package node

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"missingos/srv/client"
	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/pki"
	"missingos/srv/rpc"
)

const mapFile = "map"

func saveMap(dir string, m *dcpb.MetaMap) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return dc.Wrap(err, "save map", dir)
	}
	return pki.WriteFile(filepath.Join(dir, mapFile), b)
}

func loadMap(dir string) (*dcpb.MetaMap, error) {
	m := &dcpb.MetaMap{}
	b, err := os.ReadFile(filepath.Join(dir, mapFile))
	if errors.Is(err, fs.ErrNotExist) {
		return m, nil
	}
	if err == nil {
		err = proto.Unmarshal(b, m)
	}
	if err != nil {
		return nil, dc.Errorf(dc.Corrupt, "load map", filepath.Join(dir, mapFile), "%w", err)
	}
	return m, nil
}

// A directory is what this node knows of the cluster. Records in it are never changed, only replaced.
type directory struct {
	self dc.NodeID
	dir  string
	log  *slog.Logger

	mu        sync.Mutex
	version   uint64
	nodes     map[dc.NodeID]*dcpb.MetaMapNode
	heard     map[dc.NodeID]string // addresses that nodes gave themselves, since their record last changed its
	groups    map[dc.GroupID]*dcpb.MetaMapGroup
	down      []uint64      // nodes that meta's leader has not heard of lately
	changed   chan struct{} // closed and replaced at every change
	confirmed time.Time     // when meta's leader last said that version is current
	behind    time.Time     // since when its answers name a newer version; zero if not
	resync    context.CancelFunc
}

var _ client.Directory = (*directory)(nil)

func newDirectory(self dc.NodeID, dir string, m *dcpb.MetaMap, log *slog.Logger) *directory {
	d := &directory{
		self: self, dir: dir, log: log,
		nodes: map[dc.NodeID]*dcpb.MetaMapNode{}, heard: map[dc.NodeID]string{}, groups: map[dc.GroupID]*dcpb.MetaMapGroup{}, changed: make(chan struct{}),
	}
	d.mergeLocked(m, nil)
	return d
}

// mergeLocked takes the records of m; before is what was known of nodes.
func (d *directory) mergeLocked(m *dcpb.MetaMap, before map[dc.NodeID]*dcpb.MetaMapNode) {
	for _, n := range m.Nodes {
		id := dc.NodeID(n.Id)
		if before[id].GetAddress() != n.Address {
			delete(d.heard, id)
		}
		d.nodes[id] = n
	}
	for _, g := range m.Groups {
		d.groups[dc.GroupID(g.Id)] = g
	}
	d.version = max(d.version, m.Version)
}

// Group finds a group by name.
func (d *directory) Group(name string) (dc.GroupID, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, g := range d.groups {
		if g.Name == name {
			return id, nil
		}
	}
	if len(d.groups) <= 1 {
		return 0, dc.Errorf(dc.Unavailable, "find group", name, "this node does not know the cluster's groups yet")
	}
	return 0, dc.Errorf(dc.NotFound, "find group", name, "there is no such group")
}

// Replicas gives the nodes that should hold g.
func (d *directory) Replicas(g dc.GroupID) []dc.NodeID {
	rec, ok := d.group(g)
	if !ok {
		return nil
	}
	return desiredNodes(rec)
}

func desiredNodes(g *dcpb.MetaMapGroup) []dc.NodeID {
	nodes := make([]dc.NodeID, len(g.Nodes))
	for i, n := range g.Nodes {
		nodes[i] = dc.NodeID(n)
	}
	return nodes
}

func (d *directory) group(g dc.GroupID) (*dcpb.MetaMapGroup, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	rec, ok := d.groups[g]
	return rec, ok
}

// wanted lists the groups that this node should hold a replica of.
func (d *directory) wanted() []*dcpb.MetaMapGroup {
	d.mu.Lock()
	defer d.mu.Unlock()
	var all []*dcpb.MetaMapGroup
	for _, g := range d.groups {
		if slices.Contains(g.Nodes, uint64(d.self)) {
			all = append(all, g)
		}
	}
	return all
}

func (d *directory) node(n dc.NodeID) (*dcpb.MetaMapNode, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	rec, ok := d.nodes[n]
	return rec, ok
}

// hear notes where a node says it listens. It goes before the map until the map says something new: a node that comes back elsewhere must be
// found to elect the leader of meta that will record it.
func (d *directory) hear(n dc.NodeID, address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.nodes[n].GetAddress() == address {
		delete(d.heard, n)
	} else if d.heard[n] != address {
		d.heard[n] = address
		d.log.Info("node heard at another address than the map's", "peer", n.String(), "address", address)
	}
}

// address is where n listens, as far as is known.
func (d *directory) address(n dc.NodeID) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	rec, ok := d.nodes[n]
	switch {
	case ok && rec.Removed:
		return "", dc.Errorf(dc.Unavailable, "connect", n.String(), "it has been removed from the cluster")
	case d.heard[n] != "":
		return d.heard[n], nil
	case !ok:
		return "", dc.Errorf(dc.Unavailable, "connect", n.String(), "this node does not know it yet")
	}
	return rec.Address, nil
}

// removed tells whether n is known to have been removed.
func (d *directory) removed(n dc.NodeID) bool {
	rec, ok := d.node(n)
	return ok && rec.Removed
}

// snapshot gives the whole map, by id.
func (d *directory) snapshot() *dcpb.MetaMap {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := &dcpb.MetaMap{Version: d.version}
	for _, n := range d.nodes {
		m.Nodes = append(m.Nodes, n)
	}
	for _, g := range d.groups {
		m.Groups = append(m.Groups, g)
	}
	slices.SortFunc(m.Nodes, func(a, b *dcpb.MetaMapNode) int { return int(int64(a.Id) - int64(b.Id)) })
	slices.SortFunc(m.Groups, func(a, b *dcpb.MetaMapGroup) int { return int(int64(a.Id) - int64(b.Id)) })
	return m
}

// changes gives a channel that is closed at the next change.
func (d *directory) changes() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}

// fresh tells whether meta's leader has lately said that this map is current.
func (d *directory) fresh(within time.Duration) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Since(d.confirmed) < within
}

// apply takes what a stream says; false if the stream is behind what is known already.
func (d *directory) apply(reply *dcpb.MetaWatchReply) bool {
	d.mu.Lock()
	before := d.nodes
	if reply.Reset_ {
		if reply.Map.Version < d.version {
			d.mu.Unlock()
			return false
		}
		d.nodes = map[dc.NodeID]*dcpb.MetaMapNode{}
		clear(d.groups)
	}
	d.mergeLocked(reply.Map, before)
	close(d.changed)
	d.changed = make(chan struct{})
	d.mu.Unlock()
	if err := saveMap(d.dir, d.snapshot()); err != nil {
		d.log.Warn("map is not saved", "err", err)
	}
	return true
}

// resyncAfter is how long the map may be known to be behind before the stream is taken for broken.
const resyncAfter = 2 * time.Second

// confirm compares the map with the version that meta's leader names; zero if it has not looked yet.
func (d *directory) confirm(version uint64) {
	if version == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	if d.version >= version {
		d.confirmed, d.behind = now, time.Time{}
		return
	}
	if d.behind.IsZero() {
		d.behind = now
	}
	if now.Sub(d.behind) > resyncAfter && d.resync != nil {
		d.behind = now
		d.resync()
	}
}

const (
	watchRetry    = 100 * time.Millisecond
	maxWatchRetry = 2 * time.Second
)

// follow keeps the map fresh until ctx ends.
func (d *directory) follow(ctx context.Context, nodes client.Nodes) {
	retry := watchRetry
	for ctx.Err() == nil {
		for _, n := range d.sources() {
			stream, cancel := context.WithCancel(ctx)
			d.mu.Lock()
			d.resync = cancel
			d.mu.Unlock()
			started := time.Now()
			err := d.followOne(stream, nodes, n)
			cancel()
			if ctx.Err() != nil {
				return
			}
			d.log.Debug("map stream ended", "node", n, "err", err)
			if time.Since(started) > maxWatchRetry {
				retry = watchRetry
				break // it worked for a while: begin with the best source again
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(retry/2 + rand.N(retry)):
		}
		retry = min(2*retry, maxWatchRetry)
	}
}

// sources lists whom to ask for the map: this node if it holds meta, the others that should, then everybody else, who knows at least an older map.
func (d *directory) sources() []dc.NodeID {
	d.mu.Lock()
	defer d.mu.Unlock()
	var own, meta, rest []dc.NodeID
	holders := d.groups[dc.MetaGroup].GetNodes()
	for id, n := range d.nodes {
		switch {
		case n.Removed && id != d.self:
		case slices.Contains(holders, uint64(id)) && id == d.self:
			own = append(own, id)
		case slices.Contains(holders, uint64(id)):
			meta = append(meta, id)
		case id != d.self:
			rest = append(rest, id)
		}
	}
	rand.Shuffle(len(meta), func(i, j int) { meta[i], meta[j] = meta[j], meta[i] })
	rand.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	return slices.Concat(own, meta, rest[:min(len(rest), maxOtherSources)])
}

// maxOtherSources bounds how many nodes without a replica of meta are asked in one round.
const maxOtherSources = 3

func (d *directory) followOne(ctx context.Context, nodes client.Nodes, n dc.NodeID) error {
	cc, err := nodes.Conn(n)
	if err != nil {
		return err
	}
	header := &dcpb.Header{Group: uint64(dc.MetaGroup), Principal: rpc.PrincipalHeader(dc.System(d.self))}
	stream, err := dcpb.NewMetaClient(cc).Watch(ctx, &dcpb.MetaWatchRequest{Header: header})
	if err != nil {
		return rpc.FromStatus(err)
	}
	for {
		reply, err := stream.Recv()
		if err != nil {
			return rpc.FromStatus(err)
		}
		if !d.apply(reply) {
			return dc.Errorf(dc.Stale, "follow map", n.String(), "its replica of meta is behind")
		}
	}
}
