package client

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/dcpb"
)

const (
	maxMoved      = 4096 // blocks whose new places are remembered
	maxReported   = 4096 // copies that were reported lately
	reportAgain   = 30 * time.Second
	reportTimeout = 5 * time.Second
	haveTimeout   = 5 * time.Second
	fetchTimeout  = 45 * time.Second // of one batch; below file.RelocateWithin
)

// movedBlocks remembers where blocks are that were not where their readers thought.
type movedBlocks struct {
	mu    sync.Mutex
	nodes map[file.BlockID][]dc.NodeID
}

func (m *movedBlocks) where(id file.BlockID) ([]dc.NodeID, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	nodes, ok := m.nodes[id]
	return nodes, ok
}

func (m *movedBlocks) note(id file.BlockID, nodes []dc.NodeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.nodes == nil || len(m.nodes) >= maxMoved {
		m.nodes = map[file.BlockID][]dc.NodeID{}
	}
	m.nodes[id] = nodes
}

// badCopies remembers what was reported a moment ago.
type badCopies struct {
	mu sync.Mutex
	at map[file.BadCopy]time.Time
}

// news gives those of bad that were not reported lately.
func (b *badCopies) news(bad []file.BadCopy) []file.BadCopy {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.at == nil || len(b.at) > maxReported {
		b.at = map[file.BadCopy]time.Time{}
	}
	var fresh []file.BadCopy
	for _, x := range bad {
		if time.Since(b.at[x]) > reportAgain {
			b.at[x] = time.Now()
			fresh = append(fresh, x)
		}
	}
	return fresh
}

// suspectCopies reports copies that could not be read, without waiting for it.
func (d *Data) suspectCopies(bad []file.BadCopy) {
	if bad = d.bad.news(bad); len(bad) == 0 {
		return
	}
	d.writes.Go(func() {
		ctx, cancel := context.WithTimeout(dc.WithPrincipal(context.Background(), dc.System(d.c.Node())), reportTimeout)
		defer cancel()
		if err := d.ReportBad(ctx, bad); err != nil {
			d.c.cfg.Log.Debug("bad copies are not reported", "err", err)
		}
	})
}

// ReportBad tells the leader of copies that are damaged or missing, file.MaxBad at most.
func (d *Data) ReportBad(ctx context.Context, bad []file.BadCopy) error {
	q := &dcpb.DataBadRequest{}
	for _, b := range bad[:min(len(bad), file.MaxBad)] {
		q.Bad = append(q.Bad, &dcpb.DataBad{Block: b.Block.Bytes(), Node: uint64(b.Node)})
	}
	return d.query(ctx, file.Root, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) error {
		q.Header = h
		_, err := s.Bad(ctx, q)
		return err
	})
}

// Locate tells where blocks are now; no nodes for one that no file references.
func (d *Data) Locate(ctx context.Context, ids []file.BlockID) ([][]dc.NodeID, error) {
	q := &dcpb.DataLocateRequest{Blocks: blockBytes(ids)}
	var out *dcpb.DataLocateReply
	err := d.query(ctx, file.Root, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (err error) {
		q.Header = h
		out, err = s.Locate(ctx, q)
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(out.Places) != len(ids) {
		return nil, dc.Errorf(dc.Internal, "locate", "", "%d answers for %d blocks", len(out.Places), len(ids))
	}
	places := make([][]dc.NodeID, len(ids))
	for i, p := range out.Places {
		for _, n := range p.Nodes {
			places[i] = append(places[i], dc.NodeID(n))
		}
	}
	return places, nil
}

// onBlocks runs one call on a node's block service.
func (d *Data) onBlocks(ctx context.Context, n dc.NodeID, limit time.Duration, call func(context.Context, dcpb.BlockClient, *dcpb.Header) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return d.c.OnNode(ctx, n, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
		return call(ctx, dcpb.NewBlockClient(cc), h)
	})
}

// HaveBlocks asks a node for the lengths of blocks that it has; 0 for those that it has not.
func (d *Data) HaveBlocks(ctx context.Context, n dc.NodeID, ids []file.BlockID) (sizes []uint32, err error) {
	err = d.onBlocks(ctx, n, haveTimeout, func(ctx context.Context, s dcpb.BlockClient, h *dcpb.Header) error {
		out, err := s.Have(ctx, &dcpb.BlockHaveRequest{Header: h, Blocks: blockBytes(ids)})
		if err == nil && len(out.Sizes) != len(ids) {
			err = dc.Errorf(dc.Internal, "block.have", n.String(), "%d answers for %d blocks", len(out.Sizes), len(ids))
		}
		sizes = out.GetSizes()
		return err
	})
	return sizes, err
}

// FetchBlocks has a node copy blocks from others, file.MaxFetch at most, and gives an error for each, nil for those that are on its disk then.
func (d *Data) FetchBlocks(ctx context.Context, n dc.NodeID, blocks []file.Fetch) (each []error, err error) {
	q := &dcpb.BlockFetchRequest{}
	for _, b := range blocks {
		f := &dcpb.BlockFetch{Block: b.Block.Bytes(), Size: uint32(b.Bytes)}
		for _, n := range b.From {
			f.Nodes = append(f.Nodes, uint64(n))
		}
		q.Blocks = append(q.Blocks, f)
	}
	err = d.onBlocks(ctx, n, fetchTimeout, func(ctx context.Context, s dcpb.BlockClient, h *dcpb.Header) error {
		q.Header = h
		out, err := s.Fetch(ctx, q)
		if err != nil {
			return err
		}
		if len(out.Blocks) != len(blocks) {
			return dc.Errorf(dc.Internal, "block.fetch", n.String(), "%d answers for %d blocks", len(out.Blocks), len(blocks))
		}
		each = make([]error, len(blocks))
		for i, b := range out.Blocks {
			if b.Kind != 0 {
				each[i] = dc.Errorf(dc.Kind(b.Kind-1), "block.fetch", blocks[i].Block.String(), "%s: %s", n, b.Err)
			}
		}
		return nil
	})
	return each, err
}

// VerifyBlocks has a node read blocks, and gives an error for each.
func (d *Data) VerifyBlocks(ctx context.Context, n dc.NodeID, ids []file.BlockID) (each []error, err error) {
	err = d.onBlocks(ctx, n, fetchTimeout, func(ctx context.Context, s dcpb.BlockClient, h *dcpb.Header) error {
		out, err := s.Verify(ctx, &dcpb.BlockVerifyRequest{Header: h, Blocks: blockBytes(ids)})
		if err != nil {
			return err
		}
		if len(out.Kinds) != len(ids) {
			return dc.Errorf(dc.Internal, "block.verify", n.String(), "%d answers for %d blocks", len(out.Kinds), len(ids))
		}
		each = make([]error, len(ids))
		for i, k := range out.Kinds {
			if k != 0 {
				each[i] = dc.Errorf(dc.Kind(k-1), "block.verify", ids[i].String(), "on %s", n)
			}
		}
		return nil
	})
	return each, err
}

// StoreSpace asks a node how much room it has for blocks.
func (d *Data) StoreSpace(ctx context.Context, n dc.NodeID) (st file.Store, err error) {
	err = d.onBlocks(ctx, n, spaceTimeout, func(ctx context.Context, s dcpb.BlockClient, h *dcpb.Header) error {
		out, err := s.Space(ctx, &dcpb.BlockSpaceRequest{Header: h})
		if err == nil {
			st = file.Store{Used: max(out.Used, out.Total-out.Free), Free: out.Free, Blocks: out.Blocks}
		}
		return err
	})
	return st, err
}

func blockBytes(ids []file.BlockID) [][]byte {
	all := make([][]byte, len(ids))
	for i, id := range ids {
		all[i] = id.Bytes()
	}
	return all
}

// Care tells how the blocks of files are and what is done for them.
func (d *Data) Care(ctx context.Context) (out *dcpb.DataCareReply, err error) {
	err = d.query(ctx, file.Root, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (err error) {
		out, err = s.Care(ctx, &dcpb.DataCareRequest{Header: h})
		return err
	})
	return out, err
}

// Check checks a page of one part of the metadata or of the blocks on the leader; from is what the last answer's Next was.
func (d *Data) Check(ctx context.Context, q *dcpb.DataCheckRequest) (out *dcpb.DataCheckReply, err error) {
	err = d.query(ctx, file.Root, func(ctx context.Context, s dcpb.DataClient, h *dcpb.Header) (err error) {
		q.Header = h
		out, err = s.Check(ctx, q)
		return err
	})
	return out, err
}

// A StoredBlock is what a node's store has, and how long it has been there by the node's clock; less than 0: it cannot be read.
type StoredBlock struct {
	Block file.BlockID
	Age   time.Duration
}

// ListBlocks lists up to limit blocks of a node's store after one.
func (d *Data) ListBlocks(ctx context.Context, n dc.NodeID, after file.BlockID, limit int) (all []StoredBlock, err error) {
	err = d.onBlocks(ctx, n, haveTimeout, func(ctx context.Context, s dcpb.BlockClient, h *dcpb.Header) error {
		q := &dcpb.BlockListRequest{Header: h, Limit: uint32(limit)}
		if !after.IsZero() {
			q.After = after.Bytes()
		}
		out, err := s.List(ctx, q)
		for i, raw := range out.GetBlocks() {
			id, perr := file.ParseBlockID(raw)
			if perr != nil {
				return perr
			}
			all = append(all, StoredBlock{id, time.Duration(out.AgeMs[i]) * time.Millisecond})
		}
		return err
	})
	return all, err
}

// CollectBlocks has a node delete what no file references and what is surplus.
func (d *Data) CollectBlocks(ctx context.Context, n dc.NodeID) (deleted int, err error) {
	err = d.onBlocks(ctx, n, fetchTimeout, func(ctx context.Context, s dcpb.BlockClient, h *dcpb.Header) error {
		out, err := s.Collect(ctx, &dcpb.BlockCollectRequest{Header: h})
		deleted = int(out.GetDeleted())
		return err
	})
	return deleted, err
}
