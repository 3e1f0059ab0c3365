package meta

import (
	"context"
	"sync"

	"google.golang.org/grpc"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/rpc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/meta"
)

// watchQueue is how many batches of changes a watcher may be behind; one that is further behind starts over with the whole map.
const watchQueue = 256

// A hub hands the changes of the map to watchers. Its publish runs on the apply path and never blocks.
type hub struct {
	mu       sync.Mutex
	watchers map[*watcher]struct{}
}

type watcher struct {
	changes chan *dcpb.MetaMap // closed when the watcher must start over
}

func newHub() *hub { return &hub{watchers: map[*watcher]struct{}{}} }

func (h *hub) publish(events []any) {
	var m *dcpb.MetaMap
	for _, ev := range events {
		if m == nil {
			m = &dcpb.MetaMap{}
		}
		switch rec := ev.(type) {
		case storage.Restored:
			h.restart()
			return
		case *command.MetaNode:
			m.Nodes = append(m.Nodes, mapNode(rec))
			m.Version = max(m.Version, rec.Record)
		case *command.MetaGroup:
			m.Groups = append(m.Groups, mapGroup(rec))
			m.Version = max(m.Version, rec.Version)
		}
	}
	if m == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		select {
		case w.changes <- m:
		default:
			h.dropLocked(w)
		}
	}
}

// restart makes every watcher start over: the whole state has been replaced.
func (h *hub) restart() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		h.dropLocked(w)
	}
}

func (h *hub) dropLocked(w *watcher) {
	close(w.changes)
	delete(h.watchers, w)
}

func (h *hub) join() *watcher {
	w := &watcher{changes: make(chan *dcpb.MetaMap, watchQueue)}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watchers[w] = struct{}{}
	return w
}

func (h *hub) leave(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, w)
}

// Watch sends the whole map and then its changes. It may be served by a replica that is behind; versions never go back in one stream.
// A node without a replica says what it knows, and that it is the wrong one to ask.
func (s *Service) Watch(req *dcpb.MetaWatchRequest, out grpc.ServerStreamingServer[dcpb.MetaWatchReply]) error {
	if rpc.Principal(req.Header).UID != 0 {
		return dc.Errorf(dc.Denied, "watch map", "", "this is for daemons")
	}
	for {
		r, ok := s.cfg.Local()
		if !ok {
			if s.cfg.Known != nil {
				if err := out.Send(&dcpb.MetaWatchReply{Reset_: true, Map: s.cfg.Known()}); err != nil {
					return err
				}
			}
			return dc.Errorf(dc.NotLeader, "watch map", "", "this node holds no replica of the meta group")
		}
		w := s.hub.join() // before the read: a change is in the map, or comes after it, or both
		lagged, err := s.watch(out.Context(), r.Local, w, out.Send)
		s.hub.leave(w)
		if !lagged {
			return err
		}
	}
}

func (s *Service) watch(ctx context.Context, read func(func(storage.Reader) error) error, w *watcher, send func(*dcpb.MetaWatchReply) error) (lagged bool, err error) {
	var m *dcpb.MetaMap
	if err := read(func(r storage.Reader) error { m = mapOf(r); return nil }); err != nil {
		return false, err
	}
	version := m.Version
	if err := send(&dcpb.MetaWatchReply{Reset_: true, Map: m}); err != nil {
		return false, err
	}
	for {
		select {
		case change, ok := <-w.changes:
			if !ok {
				return true, nil
			}
			if change.Version <= version {
				continue
			}
			version = change.Version
			if err := send(&dcpb.MetaWatchReply{Map: change}); err != nil {
				return false, err
			}
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// mapOf reads the whole map.
func mapOf(r storage.Reader) *dcpb.MetaMap {
	m := &dcpb.MetaMap{}
	for n := range meta.Nodes(r) {
		m.Nodes = append(m.Nodes, mapNode(n))
		m.Version = max(m.Version, n.Record)
	}
	for g := range meta.Groups(r) {
		m.Groups = append(m.Groups, mapGroup(g))
		m.Version = max(m.Version, g.Version)
	}
	return m
}

func mapNode(n *command.MetaNode) *dcpb.MetaMapNode {
	return &dcpb.MetaMapNode{
		Id: n.Id, Name: n.Name, Address: n.Address, Removed: n.State == command.MetaNode_STATE_REMOVED, Drain: n.Drain,
		Labels: n.Labels, Version: n.Version, JoinedMs: n.JoinedMs,
	}
}

func mapGroup(g *command.MetaGroup) *dcpb.MetaMapGroup {
	return &dcpb.MetaMapGroup{Id: g.Id, Name: g.Name, Kind: g.Kind, Nodes: g.Nodes, Bootstrap: g.Bootstrap, Want: g.Want, Version: g.Version}
}
