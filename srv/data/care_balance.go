package data

import (
	"context"
	"slices"
	"time"

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
	// countForBalance is how old the count of what nodes hold may be when balancing begins.
	countForBalance = 2 * time.Minute
)

// balance queues blocks of the fullest node for the emptiest. It goes by what the rows say, kept up to date move by move: what the stores say lags behind, and less
// than that would have moved. It tells whether there is something to do.
func (c *care) balance(ctx context.Context) bool {
	full, empty, mean, ok := c.extremes()
	spread := c.share(full) - c.share(empty)
	if !ok || spread < balanceEnd || !c.balancing && spread < balanceBegin || c.cfg.Allowed() != nil {
		c.balancing = false
		c.doing("")
		return false
	}
	c.mu.Lock()
	old := time.Since(c.status.counted) > countForBalance
	c.mu.Unlock()
	if !c.balancing && old {
		c.due, c.ticks = true, balanceEvery
		return true
	}
	if !c.balancing {
		c.log.Info("blocks move from the fullest node to the emptiest", "from", full.String(), "to", empty.String())
	}
	c.balancing = true
	// What brings one of the two to the mean of all, at most: nothing moves that would have to move back.
	part := min(c.share(full)-mean, mean-c.share(empty))
	room := int64(part * float64(min(c.spaces[full].Used+c.spaces[full].Free, c.spaces[empty].Used+c.spaces[empty].Free)))
	left := min(room, balanceMost)
	for range balancePages {
		page, err := c.page(ctx, c.members, c.balanceAt, nil, scanPage)
		if err != nil {
			return false
		}
		for _, h := range page {
			c.balanceAt = h.Block
			if t, ok := c.shift(h, full, empty); ok && left >= int64(t.bytes) { // a block more than that would only change places
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
	return true
}

// share is how much of what a node can hold is taken by blocks that it should hold, from 0 to 1.
func (c *care) share(n dc.NodeID) float64 {
	s := c.spaces[n]
	if s == nil || s.Used+s.Free <= 0 {
		return 1
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return float64(c.holds[n]) / float64(s.Used+s.Free)
}

// extremes finds the fullest and the emptiest node of those that are open, and the mean share of all.
func (c *care) extremes() (full, empty dc.NodeID, mean float64, ok bool) {
	n := 0
	for id, m := range c.members {
		if s := c.spaces[id]; !m.open() || s == nil || !s.known {
			continue
		}
		n++
		mean += c.share(id)
		if full == 0 || c.share(id) > c.share(full) {
			full = id
		}
		if empty == 0 || c.share(id) < c.share(empty) {
			empty = id
		}
	}
	return full, empty, mean / float64(max(n, 1)), full != 0 && full != empty
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
