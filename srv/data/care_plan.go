package data

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/storage"
	"missingos/storage/machine/data"
)

// A task is what one block needs: a copy on target (0: none), and its row to say now (nil: as it does).
type task struct {
	block  file.BlockID
	bytes  int
	class  int
	copies int // good ones, before
	target dc.NodeID
	from   []dc.NodeID
	was    []dc.NodeID
	now    []dc.NodeID
	gone   []dc.NodeID
}

// A held is a block with what is known of its copies.
type held struct {
	data.Holding
	up      []dc.NodeID // nodes that are up and have it
	bad     []dc.NodeID // nodes that are up and have not, or not as it should be
	pending []dc.NodeID // nodes that have yet to delete a copy
}

// round goes through all blocks, counts them, and queues what they need.
func (c *care) round(ctx context.Context) error {
	c.doing("counting")
	c.mu.Lock()
	c.due, c.dueAt = false, time.Now().Add(roundEvery)
	c.mu.Unlock()
	for i := range c.queue {
		c.queue[i] = nil
	}
	n, began := counts{copies: map[int]uint64{}, wanted: c.wanted()}, time.Now()
	holds := map[dc.NodeID]int64{}
	c.unmet()
	for from := (file.BlockID{}); ; {
		page, err := c.page(ctx, c.members, from, nil, scanPage)
		if err != nil {
			c.mu.Lock()
			c.dueAt = time.Time{}
			c.mu.Unlock()
			c.say("blocks are not counted: " + err.Error())
			return err
		}
		for _, h := range page {
			from = h.Block
			c.count(&n, h)
			for _, node := range h.Nodes {
				holds[node] += int64(h.Bytes)
			}
			c.enqueue(h)
		}
		if len(page) < scanPage {
			break
		}
		if !pause(ctx, scanBetween) {
			return ctx.Err()
		}
	}
	c.mu.Lock()
	c.holds = holds
	s := &c.status
	s.blocks, s.bytes, s.copies, s.lost, s.lostBlocks, s.short, s.wanted = n.blocks, n.bytes, n.copies, n.lost, n.lostBlocks, n.short, n.wanted
	s.counted, s.countTook = time.Now(), time.Since(began)
	c.mu.Unlock()
	c.forgetUnmet()
	if n.lost > 0 {
		c.log.Error("blocks of files have no copy on a node that is up", "blocks", n.lost, "first", n.lostBlocks[0].String())
	}
	c.doing("")
	return nil
}

// wanted is how many copies a block should have: three, or as many as there are nodes that are to stay.
func (c *care) wanted() int {
	n := 0
	for _, m := range c.members {
		if !m.gone() && !m.Drain {
			n++
		}
	}
	return min(n, file.Replicas)
}

// page reads blocks, up to limit of those after from or those of ids, and asks the nodes that are up for them.
func (c *care) page(ctx context.Context, members map[dc.NodeID]Member, from file.BlockID, ids []file.BlockID, limit int) ([]held, error) {
	var page []held
	err := c.r.Local(func(rd storage.Reader) error {
		var all []data.Holding
		if ids == nil {
			all = data.Holdings(rd, 0, from, limit)
		}
		for _, id := range ids {
			if h, ok := data.Held(rd, 0, id); ok {
				all = append(all, h)
			}
		}
		for _, h := range all {
			x := held{Holding: h}
			if len(h.Nodes) != file.Replicas || slices.ContainsFunc(h.Nodes, func(n dc.NodeID) bool { return !members[n].open() }) {
				for n := range members {
					if data.AwaitsDeletion(rd, 0, h.Block.Bytes(), n) {
						x.pending = append(x.pending, n)
					}
				}
			}
			page = append(page, x)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	asked := map[dc.NodeID][]int{}
	for i, h := range page {
		for _, n := range h.Nodes {
			_ = c.isBad(h.Block, n)
			if m := members[n]; m.Up && !m.Removed {
				asked[n] = append(asked[n], i)
			}
		}
	}
	for n, which := range asked {
		blocks := make([]file.BlockID, len(which))
		for i, at := range which {
			blocks[i] = page[at].Block
		}
		sizes, err := c.cfg.Stores.HaveBlocks(ctx, n, blocks)
		if err != nil {
			continue // down, it seems: neither good nor bad
		}
		for i, at := range which {
			if h := &page[at]; int(sizes[i]) == h.Bytes && !c.isBad(h.Block, n) {
				h.up = append(h.up, n)
			} else {
				h.bad = append(h.bad, n)
			}
		}
	}
	return page, ctx.Err()
}

// isBad tells whether a copy was read and found bad, and notes that it was met.
func (c *care) isBad(id file.BlockID, n dc.NodeID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, bad := c.bad[file.BadCopy{Block: id, Node: n}]
	if bad {
		c.bad[file.BadCopy{Block: id, Node: n}] = true
	}
	return bad
}

// unmet sets out to forget bad copies that a round does not meet: nobody references them any more.
func (c *care) unmet() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for b := range c.bad {
		c.bad[b] = false
	}
}

func (c *care) forgetUnmet() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for b, met := range c.bad {
		if m := c.known[b.Node]; !met && m.Up {
			delete(c.bad, b)
		}
	}
}

// keep gives the nodes whose copies count: those that should have it without dead and removed ones and those known to have none.
func keep(members map[dc.NodeID]Member, h held) []dc.NodeID {
	var keep []dc.NodeID
	for _, n := range h.Nodes {
		if m, known := members[n]; (!known || !m.gone()) && !slices.Contains(h.bad, n) {
			keep = append(keep, n)
		}
	}
	return keep
}

func (c *care) count(n *counts, h held) {
	keep := keep(c.members, h)
	n.blocks++
	n.bytes += uint64(h.Bytes)
	n.copies[len(keep)]++
	if len(h.up) == 0 {
		n.lost++
		if len(n.lostBlocks) < maxLostNamed {
			n.lostBlocks = append(n.lostBlocks, h.Block)
		}
	}
	if len(keep) < file.Replicas && len(h.bad) == 0 {
		if _, ok := c.target(h, keep, h.Nodes); !ok {
			n.short++
		}
	}
}

// enqueue plans what a block needs next.
func (c *care) enqueue(h held) {
	t, ok := c.plan(h)
	if !ok {
		if len(h.bad) > 0 {
			c.dueAfter(retryMost)
		}
		return
	}
	if c.queuedTasks() >= maxQueued {
		for last := classes - 1; ; last-- { // the least urgent makes room; the next round finds it again
			if last <= t.class {
				c.dueAfter(0)
				return
			}
			if n := len(c.queue[last]); n > 0 {
				c.queue[last] = c.queue[last][:n-1]
				c.dueAfter(0)
				break
			}
		}
	}
	if s := c.spaces[t.target]; s != nil {
		s.coming += int64(t.bytes)
	}
	c.queue[t.class] = append(c.queue[t.class], t)
}

func (c *care) dueAfter(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at := time.Now().Add(d); at.Before(c.dueAt) {
		c.dueAt = at
	}
}

// plan says what a block needs next: a bad copy put right in its place, a copy elsewhere for one that is gone or on a draining node, or one fewer. Nothing is ever
// dropped in the place of which there is not another already, but what is bad, or on nodes that are gone.
func (c *care) plan(h held) (task, bool) {
	keep := keep(c.members, h)
	t := task{block: h.Block, bytes: h.Bytes, copies: len(keep), from: h.up, was: h.Nodes}
	if len(h.up) == 0 {
		return t, false
	}
	t.class = classFew
	if len(keep) == 1 {
		t.class = classLast
	}
	for _, n := range h.bad {
		if m := c.members[n]; m.Drain || !c.room(n, h.Bytes) || slices.Contains(h.pending, n) {
			continue
		}
		if t.target = n; len(keep) >= file.Replicas {
			t.class = classInPlace
		}
		return t, true
	}
	if len(keep) < file.Replicas {
		if to, ok := c.target(h, keep, h.Nodes); ok {
			c.replace(&t, h, keep, to)
			return t, true
		}
	}
	return c.tidy(t, h, keep)
}

// replace has t add a node, in the place of one that does not count, if there is one.
func (c *care) replace(t *task, h held, keep []dc.NodeID, to dc.NodeID) {
	t.target, t.now = to, slices.Clone(h.Nodes)
	for i, n := range t.now {
		if !slices.Contains(keep, n) {
			t.now[i] = to
			if !slices.Contains(h.bad, n) {
				t.gone = append(t.gone, n)
			}
			return
		}
	}
	t.now = append(t.now, to)
}

// tidy plans what is not about safety: a draining node is left, surplus goes, removed nodes are forgotten.
func (c *care) tidy(t task, h held, keep []dc.NodeID) (task, bool) {
	for _, n := range keep {
		if !c.members[n].Drain {
			continue
		}
		rest := slices.DeleteFunc(slices.Clone(keep), func(o dc.NodeID) bool { return o == n })
		staying := 0
		for _, o := range rest {
			if slices.Contains(h.up, o) && !c.members[o].Drain {
				staying++
			}
		}
		if staying >= file.Replicas {
			t.class, t.now = classSurplus, drop(h.Nodes, n)
			return t, true
		}
		if to, ok := c.target(h, rest, h.Nodes); ok {
			t.class, t.target, t.now = classDrain, to, slices.Clone(h.Nodes)
			t.now[slices.Index(t.now, n)] = to
			return t, true
		}
	}
	t.class = classSurplus
	for _, n := range h.Nodes {
		if c.members[n].Removed && len(keep) > 0 {
			t.now, t.gone = drop(h.Nodes, n), []dc.NodeID{n}
			return t, true
		}
	}
	if len(keep) == len(h.up) && len(keep) > file.Replicas {
		t.now = drop(h.Nodes, c.worst(keep))
		return t, true
	}
	return t, false
}

func drop(nodes []dc.NodeID, n dc.NodeID) []dc.NodeID {
	return slices.DeleteFunc(slices.Clone(nodes), func(o dc.NodeID) bool { return o == n })
}

// room tells whether a node is known to have room for a block and all that is on the way to it.
func (c *care) room(n dc.NodeID, bytes int) bool {
	s := c.spaces[n]
	return s != nil && s.known && s.Free-s.coming > int64(bytes)+dc.MaxBlockBytes
}

// use is how full a node's store is, from 0 to 1, with what is on the way to it.
func (c *care) use(n dc.NodeID) float64 {
	s := c.spaces[n]
	if s == nil || s.Used+s.Free <= 0 {
		return 1
	}
	return float64(s.Used+s.coming) / float64(s.Used+s.Free)
}

// shared counts with how many of others n shares a zone, and a rack of it: labels as for groups.
func (c *care) shared(n dc.NodeID, others []dc.NodeID) (zones, racks int) {
	m := c.members[n]
	for _, id := range others {
		if o := c.members[id]; id != n && o.Zone == m.Zone {
			zones++
			if o.Rack == m.Rack {
				racks++
			}
		}
	}
	return zones, racks
}

// target chooses a node to hold a block beside others, none of except: one that is open, has room and no deletion of it pending; that shares least with the others, and of
// two of those, taken at random, the emptier.
func (c *care) target(h held, others, except []dc.NodeID) (dc.NodeID, bool) {
	var best []dc.NodeID
	bestZones, bestRacks := 0, 0
	for id, m := range c.members {
		if !m.open() || slices.Contains(except, id) || slices.Contains(h.pending, id) || !c.room(id, h.Bytes) {
			continue
		}
		zones, racks := c.shared(id, others)
		if d := cmp.Or(cmp.Compare(zones, bestZones), cmp.Compare(racks, bestRacks)); len(best) == 0 || d < 0 {
			best, bestZones, bestRacks = []dc.NodeID{id}, zones, racks
		} else if d == 0 {
			best = append(best, id)
		}
	}
	if len(best) == 0 {
		return 0, false
	}
	a, b := best[rand.IntN(len(best))], best[rand.IntN(len(best))]
	if c.use(b) < c.use(a) {
		a = b
	}
	return a, true
}

// worst is the node that can best be done without: that shares most, then the fullest.
func (c *care) worst(nodes []dc.NodeID) dc.NodeID {
	return slices.MaxFunc(nodes, func(a, b dc.NodeID) int {
		za, ra := c.shared(a, nodes)
		zb, rb := c.shared(b, nodes)
		return cmp.Or(cmp.Compare(za, zb), cmp.Compare(ra, rb), cmp.Compare(c.use(a), c.use(b)))
	})
}
