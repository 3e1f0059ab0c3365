package data

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/dcpb"
	"missingos/storage/block"
)

const (
	maxPuts        = 16 // blocks being received at once; more wait
	maxReadBytes   = 1 * dc.MiB
	collectPage    = 512
	collectBetween = 20 * time.Millisecond // between pages, so that a collection is no burden
)

// Blocks serves this node's block store to the other nodes.
type Blocks struct {
	dcpb.UnimplementedBlockServer
	store  *block.Store
	puts   chan struct{}
	opened time.Time
	peers  Peers // nil until SetPeers
	kept   kept
}

var _ dcpb.BlockServer = (*Blocks)(nil)

// NewBlocks makes the block service of a store, which the caller closes after the node has stopped serving.
func NewBlocks(store *block.Store) *Blocks {
	return &Blocks{store: store, puts: make(chan struct{}, maxPuts), opened: time.Now()}
}

// SetPeers says how the service reaches the others. It must be called before the service serves; without, it deletes what it is told to.
func (b *Blocks) SetPeers(p Peers) { b.peers = p }

// Register adds the service to a server.
func (b *Blocks) Register(r grpc.ServiceRegistrar) { dcpb.RegisterBlockServer(r, b) }

// Put receives one block and stores it.
func (b *Blocks) Put(stream grpc.ClientStreamingServer[dcpb.BlockPutRequest, dcpb.BlockPutReply]) error {
	const op = "block.put"
	select {
	case b.puts <- struct{}{}:
		defer func() { <-b.puts }()
	case <-stream.Context().Done():
		return dc.Errorf(dc.Unavailable, op, "", "the node is receiving %d blocks already: %w", maxPuts, stream.Context().Err())
	}
	first, err := stream.Recv()
	if err != nil {
		return dc.Wrap(err, op, "")
	}
	id, err := file.ParseBlockID(first.Block)
	if err != nil {
		return err
	}
	if first.Size == 0 || first.Size > dc.MaxBlockBytes {
		return dc.Errorf(dc.Invalid, op, id.String(), "%d bytes, a block has 1 to %d", first.Size, dc.MaxBlockBytes)
	}
	data := append(make([]byte, 0, first.Size), first.Data...)
	for {
		more, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return dc.Wrap(err, op, id.String())
		}
		if len(data)+len(more.Data) > int(first.Size) {
			return dc.Errorf(dc.Invalid, op, id.String(), "more data than the %d bytes announced", first.Size)
		}
		data = append(data, more.Data...)
	}
	if len(data) != int(first.Size) {
		return dc.Errorf(dc.Invalid, op, id.String(), "%d bytes came, %d were announced", len(data), first.Size)
	}
	if err := b.store.Put(id, file.Ino(first.Ino), data); err != nil {
		return err
	}
	return stream.SendAndClose(&dcpb.BlockPutReply{})
}

// Read reads a part of a block, 1 MiB at most.
func (b *Blocks) Read(_ context.Context, q *dcpb.BlockReadRequest) (*dcpb.BlockReadReply, error) {
	id, err := file.ParseBlockID(q.Block)
	if err != nil {
		return nil, err
	}
	dst := make([]byte, min(q.Len, maxReadBytes))
	n, err := b.store.Read(id, q.Off, dst)
	if err != nil {
		return nil, err
	}
	return &dcpb.BlockReadReply{Data: dst[:n]}, nil
}

// Delete deletes blocks, as the data group's leader orders. The order may be late, so the leader of now is asked whether the blocks should be here.
// dc.Busy if some of them were fetched a moment ago.
func (b *Blocks) Delete(ctx context.Context, q *dcpb.BlockDeleteRequest) (*dcpb.BlockDeleteReply, error) {
	ids := make([]file.BlockID, 0, len(q.Blocks))
	for _, raw := range q.Blocks {
		id, err := file.ParseBlockID(raw)
		if err != nil {
			return nil, err
		}
		if _, here := b.store.Size(id); here {
			ids = append(ids, id)
		}
	}
	if b.peers == nil || len(ids) == 0 {
		return &dcpb.BlockDeleteReply{}, b.store.Delete(ids)
	}
	asked := time.Now()
	holds, err := b.peers.HeldBlocks(ctx, ids)
	if err != nil {
		return nil, err
	}
	var gone, ordered []file.BlockID
	for i, id := range ids {
		switch holds[i] {
		case file.Here:
		case file.Ordered:
			ordered = append(ordered, id)
		default:
			gone = append(gone, id)
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, dc.Wrap(err, "block.delete", "")
	}
	want := len(gone) + len(ordered)
	n, err := b.kept.remove(gone, ordered, asked, b.store.Delete)
	if err == nil && n < want {
		err = dc.Errorf(dc.Busy, "block.delete", "", "%d of %d blocks have just been fetched", want-n, want)
	}
	return &dcpb.BlockDeleteReply{}, err
}

// Sync makes every block put before durable.
func (b *Blocks) Sync(context.Context, *dcpb.BlockSyncRequest) (*dcpb.BlockSyncReply, error) {
	return &dcpb.BlockSyncReply{}, b.store.Sync()
}

// Space tells how much room the store has.
func (b *Blocks) Space(context.Context, *dcpb.BlockSpaceRequest) (*dcpb.BlockSpaceReply, error) {
	st := b.store.Stats()
	return &dcpb.BlockSpaceReply{Free: st.Free, Total: st.Total, Blocks: int64(st.Blocks), Used: st.Bytes}, nil
}

// Holder tells what the metadata know of this node's blocks. client.Data is one.
type Holder interface {
	HeldBlocks(ctx context.Context, ids []file.BlockID) ([]file.Hold, error)
}

// CollectOrphans goes through the store once and deletes the blocks that are older than age and referenced by no file (what a writer that died
// left), and surplus copies of whatever age (what a deletion missed while this node was away, or was placed elsewhere meanwhile). No answer means no
// deletion. It returns how many it deleted. Run it every hour or so, with file.OrphanAge.
func (b *Blocks) CollectOrphans(ctx context.Context, h Holder, age time.Duration) (int, error) {
	deleted := 0
	var page []file.BlockID
	settle := func() error {
		holds, err := h.HeldBlocks(ctx, page)
		if err != nil {
			return err
		}
		var gone []file.BlockID
		for i, id := range page {
			if holds[i] == file.Here {
				continue
			}
			_, put, ok := b.store.Info(id)
			surplus := holds[i] >= file.Elsewhere && time.Since(b.opened) > file.KeepFetched // what was fetched before is not known
			if surplus || ok && time.Since(put) >= age {
				gone = append(gone, id)
			}
		}
		page = page[:0]
		n, err := b.kept.remove(gone, nil, time.Time{}, b.store.Delete)
		deleted += n
		return err
	}
	for _, id := range b.store.Blocks() {
		if page = append(page, id); len(page) < collectPage {
			continue
		}
		if err := settle(); err != nil {
			return deleted, err
		}
		if !pause(ctx, collectBetween) {
			return deleted, ctx.Err()
		}
	}
	if len(page) == 0 {
		return deleted, nil
	}
	return deleted, settle()
}
