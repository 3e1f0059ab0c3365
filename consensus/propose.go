package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/hashicorp/raft"

	"missingos/srv/dc"
)

// The proposer gathers commands into entries. A command goes out at once when fewer than maxInFlight entries are under way; otherwise it
// waits in the queue and goes out with all that has come meanwhile, up to dc.MaxBatchBytes. So one caller has the latency of one
// fsync round, and many share it. A fixed delay (the obvious design) would slow the one and hardly help the many.
const (
	maxInFlight   = 4
	maxQueueBytes = 64 * dc.MiB // admission: beyond this, proposers wait
)

// proposal is a command under way; done gets its result exactly once.
type proposal struct {
	cmd  []byte
	done chan outcome
}

type outcome struct {
	result Result
	err    error
}

type proposer struct {
	g     *Group
	wake  chan struct{}
	slots chan struct{} // entries in flight

	mu    sync.Mutex
	queue []*proposal
	bytes int
	room  chan struct{} // closed and replaced when the queue shrinks
}

func newProposer(g *Group) *proposer {
	return &proposer{g: g, wake: make(chan struct{}, 1), slots: make(chan struct{}, maxInFlight), room: make(chan struct{})}
}

// Propose replicates one command and returns the state machine's answer. It blocks until the command is applied here or ctx ends.
//
// dc.NotLeader: the command is not in the log and will not be. dc.NoSpace: refused, the disk has reached its reserve. dc.TooLarge: over
// dc.MaxCommandBytes. dc.Unavailable or dc.Interrupted: the outcome is unknown.
func (g *Group) Propose(ctx context.Context, cmd []byte) (Result, error) {
	if len(cmd) > dc.MaxCommandBytes {
		return Result{}, dc.Errorf(dc.TooLarge, "propose", g.cfg.ID.String(), "a command of %d bytes exceeds the limit of %d", len(cmd), dc.MaxCommandBytes)
	}
	if _, ok := g.leading(); !ok {
		return Result{}, g.notLeader("propose")
	}
	if err := g.host.cfg.Space(); err != nil {
		return Result{}, err
	}
	p := &proposal{cmd: cmd, done: make(chan outcome, 1)}
	if err := g.prop.add(ctx, p); err != nil {
		return Result{}, err
	}
	select {
	case o := <-p.done:
		return o.result, o.err
	case <-ctx.Done():
		return Result{}, dc.Errorf(dc.KindOf(ctx.Err()), "propose", g.cfg.ID.String(), "no majority answered in time; the outcome is unknown")
	case <-g.ctx.Done():
		return Result{}, dc.Errorf(dc.Unavailable, "propose", g.cfg.ID.String(), "this replica is shutting down; the outcome is unknown")
	}
}

// add queues p, waiting while the queue is full.
func (r *proposer) add(ctx context.Context, p *proposal) error {
	for {
		r.mu.Lock()
		if r.bytes == 0 || r.bytes+len(p.cmd) <= maxQueueBytes {
			r.queue = append(r.queue, p)
			r.bytes += len(p.cmd)
			r.mu.Unlock()
			select {
			case r.wake <- struct{}{}:
			default:
			}
			return nil
		}
		room := r.room
		r.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return dc.Errorf(dc.KindOf(ctx.Err()), "propose", r.g.cfg.ID.String(), "the group's queue stayed full; the command was not proposed")
		case <-r.g.ctx.Done():
			return r.g.notLeader("propose")
		}
	}
}

// take removes the next batch.
func (r *proposer) take() []*proposal {
	r.mu.Lock()
	defer r.mu.Unlock()
	n, size := 0, 0
	for n < len(r.queue) && n < dc.MaxBatchCommands && (n == 0 || size+len(r.queue[n].cmd) <= dc.MaxBatchBytes) {
		size += len(r.queue[n].cmd)
		n++
	}
	if n == 0 {
		return nil
	}
	batch := r.queue[:n:n]
	r.queue = r.queue[n:]
	r.bytes -= size
	close(r.room)
	r.room = make(chan struct{})
	return batch
}

// run sends batches until the group closes.
func (r *proposer) run() {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		select {
		case <-r.wake:
		case <-r.g.ctx.Done():
			return
		}
		for {
			select {
			case r.slots <- struct{}{}:
			case <-r.g.ctx.Done():
				return
			}
			batch := r.take()
			if batch == nil {
				<-r.slots
				break
			}
			f := r.send(batch)
			wg.Go(func() {
				defer func() { <-r.slots }()
				r.finish(batch, f)
			})
		}
	}
}

// send hands a batch to Raft, stamped with the leader's clock.
func (r *proposer) send(batch []*proposal) raft.ApplyFuture {
	commands := make([][]byte, len(batch))
	for i, p := range batch {
		commands[i] = p.cmd
	}
	clock := r.g.Clock()
	r.g.fsm.stamp(clock)
	return r.g.raft.Apply(encodeEntry(clock, commands), 0)
}

// finish waits for Raft's answer and gives each proposal its own.
func (r *proposer) finish(batch []*proposal, f raft.ApplyFuture) {
	if err := r.g.answer(f); err != nil {
		err = r.g.proposalError(err)
		for _, p := range batch {
			p.done <- outcome{err: err}
		}
		return
	}
	results, ok := f.Response().([]Result)
	if !ok || len(results) != len(batch) {
		err := dc.Errorf(dc.Unavailable, "propose", r.g.cfg.ID.String(), "the state machine was replaced meanwhile; the outcome is unknown")
		for _, p := range batch {
			p.done <- outcome{err: err}
		}
		return
	}
	for i, p := range batch {
		p.done <- outcome{result: results[i]}
	}
}

// proposalError says whether an entry that Raft refused can still be in the log.
func (g *Group) proposalError(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress), errors.Is(err, raft.ErrEnqueueTimeout):
		return g.notLeader("propose")
	}
	return dc.Errorf(dc.Unavailable, "propose", g.cfg.ID.String(), "%w; the outcome is unknown", fmt.Errorf("raft: %w", err))
}
