package data

import (
	"context"
	"slices"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
)

// Balance begins when the fullest node's store is this much fuller than the emptiest's, as parts of what each can hold, and ends when it is half as much: a
// difference that is nothing to a user moves nothing.
const (
	balanceBegin = 0.10
	balanceEnd   = 0.05
	// balanceMost is how many bytes are queued at a time: then the stores are looked at anew.
	balanceMost = 256 * dc.MiB
	// balancePages is how many pages are searched in one go.
	balancePages = 16
)

// balance queues blocks of the fullest node for the emptiest. It tells whether there is something to do.
func (c *care) balance(ctx context.Context) bool {
	full, empty, ok := c.extremes()
	spread := c.use(full) - c.use(empty)
	if !ok || spread < balanceEnd || !c.balancing && spread < balanceBegin || c.cfg.Allowed() != nil {
		c.balancing = false
		c.doing("")
		return false
	}
	if !c.balancing {
		c.log.Info("blocks move from the fullest node to the emptiest", "from", full.String(), "to", empty.String())
	}
	c.balancing = true
	// What brings the two to the middle, at most.
	room := int64(spread / 2 * float64(min(c.spaces[full].Used+c.spaces[full].Free, c.spaces[empty].Used+c.spaces[empty].Free)))
	left := min(room, balanceMost)
	for range balancePages {
		page, err := c.page(ctx, c.members, c.balanceAt, nil, scanPage)
		if err != nil {
			return false
		}
		for _, h := range page {
			c.balanceAt = h.Block
			if t, ok := c.shift(h, full, empty); ok && left > 0 {
				left -= int64(t.bytes)
				c.queue[classBalance] = append(c.queue[classBalance], t)
			}
		}
		if len(page) < scanPage {
			c.balanceAt = file.BlockID{}
			break
		}
		if left <= 0 {
			break
		}
	}
	if c.queuedTasks() == 0 {
		c.balancing = !c.balanceAt.IsZero() // nothing fits in the whole of them: another time
		c.doing("")
		return c.balancing
	}
	c.looked = c.looked.Add(-membersFresh) // what the stores have changes by this
	return true
}

// extremes finds the fullest and the emptiest node of those that are open.
func (c *care) extremes() (full, empty dc.NodeID, ok bool) {
	for id, m := range c.members {
		if s := c.spaces[id]; !m.open() || s == nil || !s.known {
			continue
		}
		if full == 0 || c.use(id) > c.use(full) {
			full = id
		}
		if empty == 0 || c.use(id) < c.use(empty) {
			empty = id
		}
	}
	return full, empty, full != 0 && full != empty
}

// shift plans the move of a whole block's copy from one node to another, if that makes nothing worse.
func (c *care) shift(h held, from, to dc.NodeID) (task, bool) {
	i := slices.Index(h.Nodes, from)
	if i < 0 || slices.Contains(h.Nodes, to) || slices.Contains(h.pending, to) || len(h.up) != len(h.Nodes) || !c.room(to, h.Bytes) {
		return task{}, false
	}
	rest := drop(h.Nodes, from)
	zf, rf := c.shared(from, rest)
	zt, rt := c.shared(to, rest)
	if zt > zf || zt == zf && rt > rf {
		return task{}, false
	}
	t := task{block: h.Block, bytes: h.Bytes, class: classBalance, copies: len(h.Nodes), target: to, from: h.up, was: h.Nodes, now: slices.Clone(h.Nodes)}
	t.now[i] = to
	return t, true
}
