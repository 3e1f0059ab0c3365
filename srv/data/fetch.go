package data

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/dcpb"
)

// Peers is what a node's block service asks other nodes for. client.Data is one.
type Peers interface {
	Holder
	// ReadFrom reads bytes of a block from one node's store.
	ReadFrom(ctx context.Context, node dc.NodeID, id file.BlockID, off int64, dst []byte) (int, error)
	// ReportBad tells the data group's leader of copies that are damaged or missing.
	ReportBad(ctx context.Context, bad []file.BadCopy) error
}

// kept remembers what was fetched lately. Its mutex orders fetches and deletions: a block is either deleted before it is looked for, or kept.
type kept struct {
	mu      sync.Mutex
	fetched map[file.BlockID]time.Time
	pruned  time.Time
}

func (k *kept) add(id file.BlockID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	if k.fetched == nil || now.Sub(k.pruned) > file.KeepFetched {
		fresh := map[file.BlockID]time.Time{}
		for id, at := range k.fetched {
			if now.Sub(at) < file.KeepFetched {
				fresh[id] = at
			}
		}
		k.fetched, k.pruned = fresh, now
	}
	k.fetched[id] = now
}

// remove deletes those of ids that were not fetched lately, and those of ordered that were not fetched since they were asked for, and tells how many those are.
func (k *kept) remove(ids, ordered []file.BlockID, asked time.Time, del func([]file.BlockID) error) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	ids = slices.DeleteFunc(ids, func(id file.BlockID) bool {
		at, ok := k.fetched[id]
		return ok && time.Since(at) < file.KeepFetched
	})
	for _, id := range ordered {
		if at, ok := k.fetched[id]; !ok || at.Before(asked) {
			ids = append(ids, id)
		}
	}
	return len(ids), del(ids)
}

// Have tells which blocks are here.
func (b *Blocks) Have(_ context.Context, q *dcpb.BlockHaveRequest) (*dcpb.BlockHaveReply, error) {
	out := &dcpb.BlockHaveReply{Sizes: make([]uint32, len(q.Blocks))}
	for i, raw := range q.Blocks {
		id, err := file.ParseBlockID(raw)
		if err != nil {
			return nil, err
		}
		size, _ := b.store.Size(id)
		out.Sizes[i] = uint32(size)
	}
	return out, nil
}

// Fetch copies blocks from other nodes and answers when they are on this node's disk.
func (b *Blocks) Fetch(ctx context.Context, q *dcpb.BlockFetchRequest) (*dcpb.BlockFetchReply, error) {
	const op = "block.fetch"
	if b.peers == nil {
		return nil, dc.Errorf(dc.Unavailable, op, "", "the node is starting")
	}
	if len(q.Blocks) > file.MaxFetch {
		return nil, dc.Errorf(dc.Invalid, op, "", "%d blocks exceed the limit of %d", len(q.Blocks), file.MaxFetch)
	}
	out := &dcpb.BlockFetchReply{}
	for _, f := range q.Blocks {
		id, err := file.ParseBlockID(f.Block)
		if err == nil {
			err = b.fetchOne(ctx, id, f)
		}
		x := &dcpb.BlockFetched{}
		if err != nil {
			x.Kind, x.Err = 1+int32(dc.KindOf(err)), err.Error()
		}
		out.Blocks = append(out.Blocks, x)
	}
	return out, b.store.Sync()
}

// fetchOne sees to it that one block is here and good.
func (b *Blocks) fetchOne(ctx context.Context, id file.BlockID, f *dcpb.BlockFetch) error {
	const op = "block.fetch"
	b.kept.add(id) // before it is looked for: from here on nothing deletes it
	err := b.store.Verify(id)
	if err == nil {
		return nil
	}
	damaged := !errors.Is(err, dc.NotFound)
	if f.Size == 0 || f.Size > dc.MaxBlockBytes {
		return dc.Errorf(dc.Invalid, op, id.String(), "%d bytes, a block has 1 to %d", f.Size, dc.MaxBlockBytes)
	}
	data := make([]byte, f.Size)
	var errs []error
	for _, n := range f.Nodes {
		if err := ctx.Err(); err != nil {
			return dc.Wrap(err, op, id.String())
		}
		got, err := b.peers.ReadFrom(ctx, dc.NodeID(n), id, 0, data)
		switch {
		case err == nil && got == len(data):
			if damaged {
				return b.store.Replace(id, 0, data)
			}
			return b.store.Put(id, 0, data)
		case err == nil:
			err = dc.Errorf(dc.Corrupt, op, id.String(), "%s has %d bytes of it, not %d", dc.NodeID(n), got, len(data))
		}
		errs = append(errs, err)
	}
	return dc.Errorf(dc.Unavailable, op, id.String(), "none of %d nodes gives it: %w", len(f.Nodes), errors.Join(errs...))
}

// Verify reads blocks that are here.
func (b *Blocks) Verify(ctx context.Context, q *dcpb.BlockVerifyRequest) (*dcpb.BlockVerifyReply, error) {
	out := &dcpb.BlockVerifyReply{}
	for _, raw := range q.Blocks {
		id, err := file.ParseBlockID(raw)
		if err != nil {
			return nil, err
		}
		if err := ctx.Err(); err != nil {
			return nil, dc.Wrap(err, "block.verify", "")
		}
		kind := int32(0)
		if err := b.store.Verify(id); err != nil {
			kind = 1 + int32(dc.KindOf(err))
		}
		out.Kinds = append(out.Kinds, kind)
	}
	return out, nil
}

// List lists blocks in order of their ids, with their ages by this node's clock.
func (b *Blocks) List(_ context.Context, q *dcpb.BlockListRequest) (*dcpb.BlockListReply, error) {
	var after file.BlockID
	if len(q.After) > 0 {
		var err error
		if after, err = file.ParseBlockID(q.After); err != nil {
			return nil, err
		}
	}
	all := b.store.Blocks()
	i, found := slices.BinarySearchFunc(all, after, file.BlockID.Compare)
	if found {
		i++
	}
	out := &dcpb.BlockListReply{}
	for _, id := range all[i:min(len(all), i+min(int(q.Limit), dc.MaxScanPage))] {
		age := int64(-1)
		if _, put, ok := b.store.Info(id); ok {
			age = time.Since(put).Milliseconds()
		}
		out.Blocks, out.AgeMs = append(out.Blocks, id.Bytes()), append(out.AgeMs, age)
	}
	return out, nil
}

// Collect deletes what no file references.
func (b *Blocks) Collect(ctx context.Context, _ *dcpb.BlockCollectRequest) (*dcpb.BlockCollectReply, error) {
	if b.peers == nil {
		return nil, dc.Errorf(dc.Unavailable, "block.collect", "", "the node is starting")
	}
	n, err := b.CollectOrphans(ctx, b.peers, file.OrphanAge)
	return &dcpb.BlockCollectReply{Deleted: int64(n)}, err
}
