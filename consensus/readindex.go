package consensus

import (
	"context"
	"sync"

	"missingos/srv/dc"
)

// Linearizable reads. hashicorp/raft's VerifyLeader accepts acknowledgements of messages that were sent before the read began, so an old leader
// whose acks were held up can be verified after another has committed (kept as a test). This is ReadIndex (Ongaro's thesis, 6.4)
// built beside it:
//
//  1. note the commit index, which covers everything acknowledged before the read, because this term's barrier is committed;
//  2. ask the voters, in messages sent after that, whether their current term is still this one; a majority (with this replica) must say yes.
//     A voter raises its term before it votes, so a later leader cannot have been elected before a majority answered;
//  3. wait until the state machine has applied that index.
//
// One round serves all readers that came before it began; while it runs, the next ones gather. A round costs a round trip, no disk.
type reader struct {
	g *Group

	mu      sync.Mutex
	running bool
	next    *round // gathers readers while a round runs
}

type round struct {
	done  chan struct{}
	index uint64
	err   error
}

func newReader(g *Group) *reader { return &reader{g: g} }

// ReadBarrier returns when the state here contains everything that was acknowledged before the call. dc.NotLeader if this replica does not
// lead, dc.Unavailable if no majority confirms in time.
func (g *Group) ReadBarrier(ctx context.Context) error {
	index, err := g.reads.confirm(ctx)
	if err != nil {
		return err
	}
	if err := g.fsm.wait(ctx, index); err != nil {
		return dc.Errorf(dc.KindOf(err), "read", g.cfg.ID.String(), "this replica did not catch up in time")
	}
	return nil
}

// confirm joins the round that is gathering, or starts one.
func (r *reader) confirm(ctx context.Context) (uint64, error) {
	if _, ok := r.g.leading(); !ok {
		return 0, r.g.notLeader("read")
	}
	r.mu.Lock()
	mine := r.next
	if mine == nil {
		mine = &round{done: make(chan struct{})}
		r.next = mine
		if !r.running {
			r.running = true
			r.g.wg.Go(r.rounds)
		}
	}
	r.mu.Unlock()
	select {
	case <-mine.done:
		return mine.index, mine.err
	case <-ctx.Done():
		return 0, dc.Errorf(dc.KindOf(ctx.Err()), "read", r.g.cfg.ID.String(), "no majority confirmed the leader in time")
	}
}

// rounds runs rounds as long as readers gather.
func (r *reader) rounds() {
	for {
		r.mu.Lock()
		now := r.next
		r.next = nil
		if now == nil {
			r.running = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		now.index, now.err = r.g.confirmRound()
		close(now.done)
	}
}

// confirmRound makes steps 1 and 2.
func (g *Group) confirmRound() (uint64, error) {
	lead, ok := g.leading()
	if !ok {
		return 0, g.notLeader("read")
	}
	index := max(g.raft.CommitIndex(), lead.floor)
	confirm := g.confirmTerm
	if g.host.cfg.VerifyLeaderReads {
		confirm = func(uint64) error { return g.answer(g.raft.VerifyLeader()) }
	}
	if err := confirm(lead.term); err != nil {
		return 0, err
	}
	if now, ok := g.leading(); !ok || now.term != lead.term || g.raft.CurrentTerm() != lead.term {
		return 0, g.notLeader("read")
	}
	return index, nil
}

// confirmTerm asks the voters in parallel and returns as soon as a majority has confirmed, or cannot any more.
func (g *Group) confirmTerm(term uint64) error {
	voters := g.voters()
	self := 0
	for _, n := range voters {
		if n == g.host.cfg.Node {
			self = 1
		}
	}
	need := len(voters)/2 + 1 - self
	if need <= 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(g.ctx)
	defer cancel()
	answers := make(chan bool, len(voters))
	asked := 0
	for _, n := range voters {
		if n == g.host.cfg.Node {
			continue
		}
		asked++
		go func() {
			same, err := g.host.transport.Confirm(ctx, n, g.cfg.ID, term)
			answers <- err == nil && same
		}()
	}
	for ; asked >= need; asked-- {
		if <-answers {
			if need--; need == 0 {
				return nil
			}
		}
	}
	return dc.Errorf(dc.Unavailable, "read", g.cfg.ID.String(), "no majority of its %d voters confirms this leader", len(voters))
}
