package node

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"time"

	"missingos/fs/datafs"
	"missingos/srv/client"
	"missingos/srv/data"
	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/storage/block"
)

const (
	blocksDir = "blocks"
	// collectEvery is how often a node looks for blocks that no file references, emptyEvery when it is to be emptied.
	collectEvery = time.Hour
	emptyEvery   = 10 * time.Second
	// collectFirst is when it does so after its start: what it held may have been placed elsewhere meanwhile.
	collectFirst = file.KeepFetched + 30*time.Second
	// scrubIdle is how long a node waits between scrubs, and when it has nothing to scrub.
	scrubIdle = time.Minute
)

// blocksReserve is what blocks leave free on the disk: more than the node's reserve, so that a disk full of blocks stops no group from growing.
func blocksReserve(reserve uint64) int64 { return int64(reserve + min(reserve/4, dc.GiB)) }

// openData opens the block store, its service, and what is on top of both: /dc/data.
func (n *Node) openData(r *rooms) error {
	store, err := block.Open(block.Config{
		Dir: filepath.Join(n.cfg.Dir, blocksDir), Node: n.id.Node, ReserveBytes: blocksReserve(n.space.limit()), MaxBytes: n.cfg.StoreBytes, Fatal: n.cfg.Fatal, Log: n.log,
	})
	if err != nil {
		return err
	}
	n.closes("blocks", func(context.Context) error { return store.Close() })
	n.blocks = store
	blocks := data.NewBlocks(store)
	r.register = append(r.register, blocks.Register)
	files := client.NewData(n.client, client.DataConfig{Store: store, Nodes: n.directory.takers, Domain: n.directory.domain})
	blocks.SetPeers(files)
	n.files = files
	tree := datafs.New(datafs.Config{Service: files, Door: r.mount.Door, Node: n.id.Node, Log: n.log})
	r.mount.Data, r.mount.KillPriv = tree, true
	r.closers = append(r.closers, closer{"files", func(context.Context) error { files.Close(); return nil }}, closer{"data", tree.Close})
	r.kinds[dc.KindData] = data.New(data.Config{
		Replicas: n.replicas, Deleter: files, Log: n.log,
		Full:   func() error { return n.directory.allows(fullFiles) },
		Locks:  func() error { return n.directory.allows(fileLocks) },
		Leases: func() error { return n.directory.allows(fileLeases) },
		Care:   data.CareConfig{Stores: files, Members: n.members, Rate: n.cfg.RepairRate, Allowed: func() error { return n.directory.allows(movedBlocks) }},
	}).Kind()
	r.run = append(r.run, func(ctx context.Context) { n.collect(ctx, blocks, files) }, func(ctx context.Context) { n.scrub(ctx, blocks) })
	return nil
}

// collect deletes blocks that no file references now and then, and often while the node is to be emptied.
func (n *Node) collect(ctx context.Context, blocks *data.Blocks, files *client.Data) {
	due := time.Now().Add(collectFirst)
	every(ctx, emptyEvery, func() {
		age := file.OrphanAge
		switch {
		case n.draining():
			age = file.SettledAge
		case time.Now().Before(due):
			return
		}
		due = time.Now().Add(collectEvery)
		if deleted, err := blocks.CollectOrphans(ctx, files, age); err != nil && ctx.Err() == nil {
			n.log.Warn("unreferenced blocks are not collected", "err", err)
		} else if deleted > 0 {
			n.log.Info("unreferenced blocks collected", "blocks", deleted)
		}
	})
}

// scrub reads all blocks, again and again.
func (n *Node) scrub(ctx context.Context, blocks *data.Blocks) {
	period := n.cfg.ScrubEvery
	switch {
	case period < 0:
		return
	case period == 0:
		period = data.DefaultScrub
	}
	idle := min(scrubIdle, period)
	for ctx.Err() == nil {
		bad, err := blocks.Scrub(ctx, n.id.Node, period)
		switch {
		case err != nil && ctx.Err() == nil:
			n.log.Warn("blocks are not scrubbed", "err", err)
		case bad > 0:
			n.log.Warn("blocks scrubbed", "bad", bad)
		}
		select {
		case <-ctx.Done():
		case <-time.After(idle):
		}
	}
}

// members gives the nodes as meta's leader sees them.
func (n *Node) members(ctx context.Context) ([]data.Member, error) {
	st, err := n.meta.ClusterStatus(ctx)
	if err != nil {
		return nil, err
	}
	if len(st.Nodes) == 0 {
		return nil, errors.New("meta's leader names no nodes")
	}
	all := make([]data.Member, 0, len(st.Nodes))
	for _, x := range st.Nodes {
		all = append(all, data.Member{
			Node: dc.NodeID(x.Id), Name: x.Name, Up: x.State == "up" || x.State == "draining", Dead: x.Dead, Drain: x.Drain, Removed: x.State == "removed",
			Zone: x.Labels["zone"], Rack: x.Labels["rack"],
		})
	}
	return all, nil
}

// domain tells what a node fails together with.
func (d *directory) domain(n dc.NodeID) (zone, rack string) {
	rec, _ := d.node(n)
	return rec.GetLabels()["zone"], rec.GetLabels()["rack"]
}

// hearDown notes which nodes meta's leader has not heard of lately.
func (d *directory) hearDown(nodes []uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.down = nodes
}

// takers lists the nodes that new blocks may be given to. What is said to be down may be up by now, so it is left out only while there are enough others.
func (d *directory) takers() []dc.NodeID {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]dc.NodeID, 0, len(d.nodes))
	var down []dc.NodeID
	for id, n := range d.nodes {
		switch {
		case n.Removed || n.Drain:
		case id != d.self && slices.Contains(d.down, uint64(id)):
			down = append(down, id)
		default:
			all = append(all, id)
		}
	}
	if len(all) < file.Replicas {
		all = append(all, down...)
	}
	return all
}
