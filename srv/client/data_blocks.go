package client

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/dcpb"
)

const (
	replicas      = file.Replicas
	enoughNodes   = 2                      // replicas that a write waits for
	putTimeout    = 4 * time.Second        // for one replica of one block
	straggle      = 300 * time.Millisecond // how long a write that has enough waits for the rest
	readTimeout   = 2 * time.Second
	spaceTimeout  = time.Second
	suspectFor    = 5 * time.Second // how long a node that failed is asked last
	fullFor       = 5 * time.Second // how long a node that had no room is given blocks last
	frameBytes    = 512 * dc.KiB
	maxBlockRead  = 1 * dc.MiB
	spaceFreshFor = 3 * time.Second
)

// suspects remembers nodes that failed a moment ago.
type suspects struct {
	mu    sync.Mutex
	until map[dc.NodeID]time.Time
	full  map[dc.NodeID]time.Time
	space file.Space // as last gathered
	at    time.Time
}

func (s *suspects) add(n dc.NodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.until == nil {
		s.until = map[dc.NodeID]time.Time{}
	}
	s.until[n] = time.Now().Add(suspectFor)
}

// note takes in how a write to n went. A full disk is no reason to suspect the node, but others are asked first.
func (s *suspects) note(n dc.NodeID, err error) {
	if err != nil && !errors.Is(err, dc.NoSpace) {
		s.add(n)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.until, n)
	if err == nil {
		delete(s.full, n)
		return
	}
	if s.full == nil {
		s.full = map[dc.NodeID]time.Time{}
	}
	s.full[n] = time.Now().Add(fullFor)
}

func (s *suspects) isFull(n dc.NodeID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Before(s.full[n])
}

func (s *suspects) has(n dc.NodeID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Before(s.until[n])
}

func (d *Data) nodes() []dc.NodeID {
	if d.cfg.Nodes != nil {
		if nodes := d.cfg.Nodes(); len(nodes) > 0 {
			return nodes
		}
	}
	g, err := d.group(file.Root)
	if err != nil {
		return nil
	}
	return d.c.cfg.Directory.Replicas(g)
}

// candidates orders the nodes for a new block: this one, then the others in random order, then suspects, then those that had no room a moment ago. Of equals, those
// come first that fail together least.
func (d *Data) candidates() []dc.NodeID {
	nodes := slices.Clone(d.nodes())
	rand.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	class := make(map[dc.NodeID]int, len(nodes))
	for _, n := range nodes {
		class[n] = d.rank(n)
		if d.suspect.isFull(n) {
			class[n] = rankFull
		}
	}
	slices.SortStableFunc(nodes, func(a, b dc.NodeID) int { return class[a] - class[b] })
	if d.cfg.Domain != nil {
		d.spread(nodes, class)
	}
	return nodes
}

// spread puts nodes of one class that share least with those before them before the others, for as many as a block has.
func (d *Data) spread(nodes []dc.NodeID, class map[dc.NodeID]int) {
	shared := func(n dc.NodeID, before []dc.NodeID) (pairs int) {
		zone, rack := d.cfg.Domain(n)
		for _, o := range before {
			if z, r := d.cfg.Domain(o); z == zone {
				if pairs += replicas; r == rack { // a zone counts for more than all racks
					pairs++
				}
			}
		}
		return pairs
	}
	for i := 1; i < min(replicas, len(nodes)); i++ {
		best, least := i, shared(nodes[i], nodes[:i])
		for j := i + 1; j < len(nodes) && least > 0 && (class[nodes[j]] == class[nodes[i]]); j++ {
			if s := shared(nodes[j], nodes[:i]); s < least {
				best, least = j, s
			}
		}
		nodes[i], nodes[best] = nodes[best], nodes[i]
	}
}

// The order in which nodes are asked.
const (
	rankSelf = iota
	rankOther
	rankSuspect
	rankFull
)

func (d *Data) rank(n dc.NodeID) int {
	switch {
	case n == d.c.Node() && d.cfg.Store != nil:
		return rankSelf
	case d.suspect.has(n):
		return rankSuspect
	}
	return rankOther
}

// order puts this node first and suspects last.
func (d *Data) order(nodes []dc.NodeID) {
	slices.SortStableFunc(nodes, func(a, b dc.NodeID) int { return d.rank(a) - d.rank(b) })
}

// WriteBlock stores data, which nobody may change afterwards, as a new block on three nodes, or as many as there are, and tells where it is.
// It returns once two have it and the third has, has failed, is slow, or was a moment ago; a node that fails is replaced by another. dc.NoSpace
// if too few have room, dc.Unavailable if too few answer.
func (d *Data) WriteBlock(ctx context.Context, ino file.Ino, data []byte) (file.Location, error) {
	const op = "block.write"
	if d.cfg.Store == nil {
		return file.Location{}, dc.Errorf(dc.Unsupported, op, "", "this node has no block store, so it cannot name blocks")
	}
	id := d.cfg.Store.NewID()
	nodes := d.candidates()
	enough, want := min(enoughNodes, len(nodes)), min(replicas, len(nodes))
	if enough == 0 {
		return file.Location{}, dc.Errorf(dc.Unavailable, op, id.String(), "no node is known that keeps blocks")
	}
	type outcome struct {
		node dc.NodeID
		err  error
	}
	outcomes := make(chan outcome, len(nodes))
	running := map[dc.NodeID]bool{} // by node: whether it is worth waiting for
	next := func() {
		n := nodes[0]
		nodes = nodes[1:]
		running[n] = !d.suspect.has(n)
		d.writes.Go(func() {
			put, cancel := context.WithTimeout(context.WithoutCancel(ctx), putTimeout)
			defer cancel()
			err := d.put(put, n, id, ino, data)
			d.suspect.note(n, err)
			outcomes <- outcome{n, err}
		})
	}
	for range want {
		next()
	}
	l := file.Location{Block: id, Bytes: len(data)}
	var errs []error
	var late <-chan time.Time
	for len(running) > 0 {
		if len(l.Nodes) >= enough {
			if !slices.Contains(slices.Collect(maps.Values(running)), true) {
				return l, nil
			}
			if late == nil {
				late = time.After(straggle)
			}
		}
		select {
		case o := <-outcomes:
			delete(running, o.node)
			if o.err == nil {
				l.Nodes = append(l.Nodes, o.node)
				break
			}
			errs = append(errs, o.err)
			if len(nodes) > 0 {
				next()
			}
		case <-late:
			for n := range running {
				d.suspect.add(n)
			}
			return l, nil
		case <-ctx.Done():
			return l, dc.Errorf(dc.KindOf(ctx.Err()), op, id.String(), "%d of %d replicas written in time: %w", len(l.Nodes), enough, errors.Join(errs...))
		}
	}
	if len(l.Nodes) >= enough {
		return l, nil
	}
	return l, dc.Errorf(worst(errs), op, id.String(), "only %d of at least %d replicas could be written: %w", len(l.Nodes), enough, errors.Join(errs...))
}

// worst is the kind that a failed write is reported as: a full disk is what its user can do something about.
func worst(errs []error) dc.Kind {
	for _, err := range errs {
		if errors.Is(err, dc.NoSpace) {
			return dc.NoSpace
		}
	}
	return dc.Unavailable
}

func (d *Data) put(ctx context.Context, n dc.NodeID, id file.BlockID, ino file.Ino, data []byte) error {
	if n == d.c.Node() && d.cfg.Store != nil {
		return d.cfg.Store.Put(id, ino, data)
	}
	return d.c.OnNode(ctx, n, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
		s, err := dcpb.NewBlockClient(cc).Put(ctx)
		if err != nil {
			return err
		}
		q := &dcpb.BlockPutRequest{Header: h, Block: id.Bytes(), Ino: uint64(ino), Size: uint32(len(data))}
		for rest := data; len(rest) > 0; {
			q.Data = rest[:min(len(rest), frameBytes)]
			rest = rest[len(q.Data):]
			if s.Send(q) != nil {
				break // the reason comes with the answer
			}
			q = &dcpb.BlockPutRequest{}
		}
		_, err = s.CloseAndRecv()
		return err
	})
}

// ReadBlock reads bytes of a block from off on into dst from one of the nodes, trying each: this one first. If none gives it, it asks where the block
// is now. It gives less than dst holds only at the block's end. dc.NotFound if no node has it any more: the file has changed, or it is lost.
// Copies that are damaged or missing are reported.
func (d *Data) ReadBlock(ctx context.Context, id file.BlockID, nodes []dc.NodeID, off int64, dst []byte) (int, error) {
	if now, ok := d.moved.where(id); ok {
		nodes = now
	}
	n, err := d.readOneOf(ctx, id, nodes, off, dst)
	if err == nil || ctx.Err() != nil {
		return n, err
	}
	places, lerr := d.Locate(ctx, []file.BlockID{id})
	if lerr != nil || len(places[0]) == 0 || slices.Equal(places[0], nodes) {
		return n, err
	}
	d.moved.note(id, places[0])
	return d.readOneOf(ctx, id, places[0], off, dst)
}

func (d *Data) readOneOf(ctx context.Context, id file.BlockID, nodes []dc.NodeID, off int64, dst []byte) (int, error) {
	const op = "block.read"
	nodes = slices.Clone(nodes)
	rand.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	d.order(nodes)
	var errs []error
	var bad []file.BadCopy
	defer func() { d.suspectCopies(bad) }()
	kind := dc.NotFound
	for _, n := range nodes {
		got, err := d.ReadFrom(ctx, n, id, off, dst)
		if err == nil {
			return got, nil
		}
		errs = append(errs, err)
		switch k := dc.KindOf(err); {
		case k == dc.Corrupt:
			kind = dc.Corrupt
			bad = append(bad, file.BadCopy{Block: id, Node: n})
			d.c.cfg.Log.Error("a replica of a block is damaged", "node", n, "block", id.String(), "err", err)
		case k == dc.NotFound:
			bad = append(bad, file.BadCopy{Block: id, Node: n})
		default:
			d.suspect.add(n)
			if kind == dc.NotFound {
				kind = dc.Unavailable
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	return 0, dc.Errorf(kind, op, id.String(), "none of its %d replicas could be read: %w", len(nodes), errors.Join(errs...))
}

// ReadFrom reads bytes of a block from one node's store, as [Data.ReadBlock].
func (d *Data) ReadFrom(ctx context.Context, n dc.NodeID, id file.BlockID, off int64, dst []byte) (int, error) {
	if n == d.c.Node() && d.cfg.Store != nil {
		return d.cfg.Store.Read(id, off, dst)
	}
	got := 0
	for got < len(dst) {
		want := min(len(dst)-got, maxBlockRead)
		var out *dcpb.BlockReadReply
		attempt, cancel := context.WithTimeout(ctx, readTimeout)
		err := d.c.OnNode(attempt, n, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) (err error) {
			out, err = dcpb.NewBlockClient(cc).Read(ctx, &dcpb.BlockReadRequest{Header: h, Block: id.Bytes(), Off: off + int64(got), Len: uint32(want)})
			return err
		})
		cancel()
		if err != nil {
			return got, err
		}
		got += copy(dst[got:], out.Data)
		if len(out.Data) < want {
			break
		}
	}
	return got, nil
}

// SyncBlocks makes blocks durable that were written before: each element of placed is the nodes that hold some of them, and
// two of those (or the one there is) must have it on disk.
func (d *Data) SyncBlocks(ctx context.Context, placed [][]dc.NodeID) error {
	type outcome struct {
		node dc.NodeID
		err  error
	}
	var nodes []dc.NodeID
	for _, set := range placed {
		for _, n := range set {
			if !slices.Contains(nodes, n) {
				nodes = append(nodes, n)
			}
		}
	}
	outcomes := make(chan outcome, len(nodes))
	for _, n := range nodes {
		d.writes.Go(func() {
			attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), putTimeout)
			defer cancel()
			outcomes <- outcome{n, d.syncAt(attempt, n)}
		})
	}
	synced := map[dc.NodeID]bool{}
	var errs []error
	for range nodes {
		if allSynced(placed, synced) {
			return nil
		}
		select {
		case o := <-outcomes:
			if synced[o.node] = o.err == nil; o.err != nil {
				errs = append(errs, o.err)
			}
		case <-ctx.Done():
			return dc.Errorf(dc.KindOf(ctx.Err()), "fsync", "", "too few nodes have written the data to disk in time")
		}
	}
	if allSynced(placed, synced) {
		return nil
	}
	return dc.Errorf(dc.Unavailable, "fsync", "", "the data is not on the disks of %d nodes: %w", enoughNodes, errors.Join(errs...))
}

func allSynced(placed [][]dc.NodeID, synced map[dc.NodeID]bool) bool {
	for _, set := range placed {
		done := 0
		for _, n := range set {
			if synced[n] {
				done++
			}
		}
		if done < min(enoughNodes, len(set)) {
			return false
		}
	}
	return true
}

func (d *Data) syncAt(ctx context.Context, n dc.NodeID) error {
	if n == d.c.Node() && d.cfg.Store != nil {
		return d.cfg.Store.Sync()
	}
	return d.c.OnNode(ctx, n, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
		_, err := dcpb.NewBlockClient(cc).Sync(ctx, &dcpb.BlockSyncRequest{Header: h})
		return err
	})
}

// DeleteBlocks has a node delete blocks, those that should be there excepted: see data.Blocks.Delete.
func (d *Data) DeleteBlocks(ctx context.Context, n dc.NodeID, ids []file.BlockID) error {
	return d.c.OnNode(ctx, n, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
		_, err := dcpb.NewBlockClient(cc).Delete(ctx, &dcpb.BlockDeleteRequest{Header: h, Blocks: blockBytes(ids)})
		return err
	})
}
