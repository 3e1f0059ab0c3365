package data

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/storage/command"
	"missingos/storage/machine/data"
)

// takeNoted looks at blocks that were reported, and queues what they need.
func (c *care) takeNoted(ctx context.Context) bool {
	c.mu.Lock()
	if len(c.noted) == 0 {
		c.mu.Unlock()
		return false
	}
	noted := map[file.BlockID]map[dc.NodeID]bool{}
	var ids []file.BlockID
	for id, nodes := range c.noted {
		if len(ids) == scanPage {
			break
		}
		noted[id], ids = nodes, append(ids, id)
		delete(c.noted, id)
	}
	c.mu.Unlock()
	page, err := c.page(ctx, c.members, file.BlockID{}, ids, scanPage)
	if err != nil {
		c.say("reported blocks are not looked at: " + err.Error())
		c.dueAfter(0)
		return false
	}
	for _, h := range page {
		for n := range noted[h.Block] {
			if !slices.Contains(h.up, n) {
				continue
			}
			each, err := c.cfg.Stores.VerifyBlocks(ctx, n, []file.BlockID{h.Block})
			switch {
			case err != nil: // it could not say: as bad as it was reported to be, until it is fetched anew or found good then
				c.foundBad(h.Block, n)
				c.dueAfter(c.retry)
			case each[0] != nil:
				c.log.Warn("a copy of a block is bad", "block", h.Block.String(), "holder", n.String(), "err", each[0])
				c.foundBad(h.Block, n)
				h.up, h.bad = drop(h.up, n), append(h.bad, n)
			}
		}
		c.enqueue(h)
	}
	return true
}

func (c *care) foundBad(id file.BlockID, n dc.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.bad) < maxNoted {
		c.bad[file.BadCopy{Block: id, Node: n}] = true
	}
}

// A batch is what one node does at a time.
type batch struct {
	target dc.NodeID
	tasks  []task
	bytes  int
}

// next takes a few batches of the most urgent class that has tasks, together what the rate lets through in a second, one block at least.
func (c *care) next() []*batch {
	for class := range c.queue {
		q := c.queue[class]
		if len(q) == 0 {
			continue
		}
		var batches []*batch
		total := 0
		open := map[dc.NodeID]*batch{}
		var rest []task
		for i, t := range q {
			if c.cfg.Rate > 0 && total > 0 && t.target != 0 && int64(total+t.bytes) > c.cfg.Rate {
				rest = append(rest, q[i:]...)
				break
			}
			b := open[t.target]
			if b != nil && (len(b.tasks) == file.MaxFetch || b.bytes+t.bytes > file.MaxFetchBytes) {
				b = nil
			}
			if b == nil {
				if len(batches) == careBatches {
					rest = append(rest, q[i:]...)
					break
				}
				b = &batch{target: t.target}
				open[t.target] = b
				batches = append(batches, b)
			}
			b.tasks = append(b.tasks, t)
			if t.target != 0 {
				b.bytes += t.bytes
				total += t.bytes
			}
		}
		c.queue[class] = rest
		return batches
	}
	return nil
}

// work does one wave: a few batches at the same time, no faster than the rate.
func (c *care) work(ctx context.Context) {
	if c.throttled(ctx) != nil {
		return
	}
	batches := c.next()
	total, tasks := 0, 0
	for _, b := range batches {
		total += b.bytes
		tasks += len(b.tasks)
	}
	c.doing(doings[batches[0].tasks[0].class])
	c.mu.Lock()
	c.status.moving = uint64(tasks)
	if s := &c.status; time.Since(s.busyAt) > rateOver {
		s.recent, s.recentAt, s.busyFrom = [2]uint64{}, time.Now(), time.Now()
	}
	c.mu.Unlock()
	if c.cfg.Rate > 0 {
		c.passed = time.Now().Add(time.Duration(float64(total) / float64(c.cfg.Rate) * float64(time.Second)))
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	failed := false
	for _, b := range batches {
		wg.Go(func() {
			err := c.do(ctx, b)
			mu.Lock()
			defer mu.Unlock()
			if err != nil && ctx.Err() == nil {
				failed = true
				c.say(err.Error())
			}
		})
	}
	wg.Wait()
	c.mu.Lock()
	c.status.moving, c.status.busyAt = 0, time.Now()
	c.mu.Unlock()
	if failed {
		c.dueAfter(c.retry)
		c.retry = min(2*c.retry, retryMost)
	} else if c.queuedTasks() == 0 {
		c.retry = retryFirst
	}
}

var doings = [classes]string{"repairing", "repairing", "repairing", "draining", "tidying", "balancing"}

// throttled waits until what was let through has had its time.
func (c *care) throttled(ctx context.Context) error {
	if d := time.Until(c.passed); d > 0 {
		pause(ctx, d)
	}
	return ctx.Err()
}

// do has one node fetch blocks and then names it in their rows.
func (c *care) do(ctx context.Context, b *batch) error {
	until := c.r.Clock() + file.RelocateWithin.Milliseconds()
	each := make([]error, len(b.tasks))
	if b.target != 0 {
		if slices.ContainsFunc(b.tasks, func(t task) bool { return t.now != nil }) {
			if err := c.cfg.Allowed(); err != nil { // before anything is copied in vain
				return err
			}
		}
		fetch := make([]file.Fetch, len(b.tasks))
		for i, t := range b.tasks {
			fetch[i] = file.Fetch{Block: t.block, Bytes: t.bytes, From: slices.DeleteFunc(slices.Clone(t.from), func(n dc.NodeID) bool { return n == b.target })}
		}
		var err error
		if each, err = c.cfg.Stores.FetchBlocks(ctx, b.target, fetch); err != nil {
			c.tally(nil, len(b.tasks))
			return err
		}
	}
	relocate := &command.DataRelocate{UntilMs: until}
	var moved, done []task
	var errs []error
	for i, t := range b.tasks {
		switch {
		case each[i] != nil:
			errs = append(errs, each[i])
		case t.now == nil:
			done = append(done, t)
		default:
			relocate.Moves = append(relocate.Moves, &command.DataMove{Block: t.block.Bytes(), Was: numbers(t.was), Now: numbers(t.now), Gone: numbers(t.gone)})
			moved = append(moved, t)
		}
	}
	if len(moved) > 0 {
		res, err := c.relocate(ctx, relocate)
		if err != nil {
			c.tally(done, len(errs)+len(moved))
			return err
		}
		for i, t := range moved {
			if i < len(res.Moved) && res.Moved[i] {
				done = append(done, t)
				c.held(t)
			} // else the row has changed meanwhile: the block is gone, or the next round looks again
		}
	}
	for _, t := range done { // there may be more to do for it
		if t.class < classBalance && t.copies < file.Replicas-1 {
			c.note(t.block, 0)
		}
	}
	c.tally(done, len(errs))
	return errors.Join(errs[:min(len(errs), 3)]...)
}

// held notes who should hold a block now.
func (c *care) held(t task) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.holds == nil {
		return
	}
	for _, n := range t.was {
		c.holds[n] -= int64(t.bytes)
	}
	for _, n := range t.now {
		c.holds[n] += int64(t.bytes)
	}
}

func (c *care) relocate(ctx context.Context, m *command.DataRelocate) (*command.DataResult, error) {
	if err := c.cfg.Allowed(); err != nil {
		return nil, err
	}
	return propose(ctx, c.r, c.r.NewID(), &command.DataCommand{Version: data.FirstVersion, Op: &command.DataCommand_Relocate{Relocate: m}})
}

func numbers(nodes []dc.NodeID) []uint64 {
	all := make([]uint64, len(nodes))
	for i, n := range nodes {
		all[i] = uint64(n)
	}
	return all
}

// tally counts what came of tasks.
func (c *care) tally(done []task, failed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &c.status
	s.failed += uint64(failed)
	for _, t := range done {
		for _, n := range t.was {
			if n == t.target || t.now != nil && !slices.Contains(t.now, n) { // put right, or left out
				delete(c.bad, file.BadCopy{Block: t.block, Node: n})
			}
		}
		if t.target == 0 {
			continue
		}
		s.done++
		s.doneBytes += uint64(t.bytes)
		s.rolled()
		s.recent[1] += uint64(t.bytes)
		if t.class <= classFew && s.copies[t.copies] > 0 {
			s.copies[t.copies]--
			s.copies[t.copies+1]++
		}
	}
	if len(done) > 0 && failed == 0 {
		s.lastErr = ""
	}
}

// rolled begins a new window for the rate when the last is over.
func (s *counts) rolled() {
	if over := time.Since(s.recentAt); over >= rateOver {
		s.recent[0], s.recent[1], s.recentAt = s.recent[1], 0, time.Now()
		if over >= 2*rateOver {
			s.recent[0] = 0
		}
	}
}

// rate is bytes a second over the last window and this one.
func (s *counts) rate() float64 {
	s.rolled()
	over := min(rateOver+time.Since(s.recentAt), time.Since(s.busyFrom))
	return float64(s.recent[0]+s.recent[1]) / max(over.Seconds(), 1)
}
