package datafs

import (
	"context"
	"slices"
	"sync"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

const (
	chunkBytes = 1 * dc.MiB
	maxChunks  = 64 // kept of blocks of other nodes
)

// blockCache reads blocks. Those of this node come straight from its store; of others it fetches aligned chunks, keeps the
// latest, and fetches the next one ahead. Blocks never change, so nothing in it is ever stale.
type blockCache struct {
	blocks Content
	node   dc.NodeID
	ctx    context.Context
	stop   context.CancelFunc
	ahead  sync.WaitGroup

	mu     sync.Mutex
	chunks map[chunkKey]*chunk
	order  []chunkKey // least recently fetched first
}

type chunkKey struct {
	block file.BlockID
	index int64
}

type chunk struct {
	ready chan struct{}
	data  []byte // set before ready is closed
	err   error
}

func newBlockCache(blocks Content, node dc.NodeID) *blockCache {
	c := &blockCache{blocks: blocks, node: node, chunks: map[chunkKey]*chunk{}}
	c.ctx, c.stop = context.WithCancel(dc.WithPrincipal(context.Background(), dc.System(node)))
	return c
}

func (c *blockCache) close() {
	c.stop()
	c.ahead.Wait()
}

// read reads bytes of e's block from off on into dst, all of them.
func (c *blockCache) read(ctx context.Context, e file.Extent, off int64, dst []byte) error {
	if slices.Contains(e.Nodes, c.node) {
		n, err := c.blocks.ReadBlock(ctx, e.Block, e.Nodes, off, dst)
		return whole(e, n, len(dst), err)
	}
	for len(dst) > 0 {
		k := chunkKey{e.Block, off / chunkBytes}
		ch := c.get(k, e)
		select {
		case <-ch.ready:
		case <-ctx.Done():
			return dc.Errorf(dc.KindOf(ctx.Err()), "block.read", e.Block.String(), "%w", ctx.Err())
		}
		if ch.err != nil {
			return ch.err
		}
		at := off - k.index*chunkBytes
		if at >= int64(len(ch.data)) {
			return whole(e, 0, len(dst), nil)
		}
		n := copy(dst, ch.data[at:])
		dst, off = dst[n:], off+int64(n)
		if next := (k.index + 1) * chunkBytes; next < e.BlockOff+e.Len && at+int64(n) > chunkBytes/2 {
			c.get(chunkKey{e.Block, k.index + 1}, e)
		}
	}
	return nil
}

func whole(e file.Extent, got, want int, err error) error {
	if err == nil && got < want {
		return dc.Errorf(dc.Corrupt, "block.read", e.Block.String(), "the block is shorter than the extent that lies in it")
	}
	return err
}

// get finds a chunk or begins to fetch it.
func (c *blockCache) get(k chunkKey, e file.Extent) *chunk {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch := c.chunks[k]; ch != nil {
		return ch
	}
	ch := &chunk{ready: make(chan struct{})}
	c.chunks[k] = ch
	c.order = append(c.order, k)
	if len(c.order) > maxChunks {
		delete(c.chunks, c.order[0])
		c.order = c.order[1:]
	}
	c.ahead.Go(func() {
		ctx, cancel := context.WithTimeout(c.ctx, dc.OpTimeout)
		defer cancel()
		buf := make([]byte, chunkBytes)
		n, err := c.blocks.ReadBlock(ctx, e.Block, e.Nodes, k.index*chunkBytes, buf)
		ch.data, ch.err = buf[:n], err
		close(ch.ready)
		if err != nil { // the next reader tries again
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.chunks[k] == ch {
				delete(c.chunks, k)
				c.order = slices.DeleteFunc(c.order, func(o chunkKey) bool { return o == k })
			}
		}
	})
	return ch
}
