package transport

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"missingos/srv/dc"
)

// Heartbeats of all groups to a node go out together, in a pulse: each waits for the next beat of it. An idle leader of many groups so sends one message an
// interval to each node, instead of one a group. Raft's timers for the next heartbeat begin with the answers and end at some time before the
// next beat, so groups stay in step, and have as many heartbeats as the pulse has beats, not more. Every group has at most one heartbeat under way to a node, so a node that does not answer holds up at most
// as many messages as there are groups.
//
// An idle leader also repeats its commit index now and then, in a message of each group's own to each follower. What a follower has acknowledged
// once says nothing new as long as it is the same process (life): if it answers heartbeats the message is not sent at all, and Raft told that it was, but
// for one time in repeatEvery. Raft then holds the follower's last answer for newer than it is, by freshBeats at most: a leader that has lost its
// majority steps down so much later. Reads do not count on that.

// A beats gathers the heartbeats to one node.
type beats struct {
	t    *Transport
	peer dc.NodeID

	life atomic.Uint64 // of the peer's process, as it last said; zero if it never did

	mu   sync.Mutex
	next *beatBatch // is gathering; nil if none
}

// A beatBatch is one message. done is closed when replies and err stand.
type beatBatch struct {
	req     BeatRequest
	waiting int // callers that still want an answer
	ctx     context.Context
	cancel  context.CancelFunc
	done    chan struct{}
	reply   *BeatReply
	err     error
}

func (t *Transport) beats(n dc.NodeID) *beats {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.peers[n]
	if b == nil {
		b = &beats{t: t, peer: n}
		t.peers[n] = b
	}
	return b
}

// send joins the next message and waits for its own slot's answer.
func (b *beats) send(ctx context.Context, r *AppendRequest) (*AppendReply, error) {
	b.mu.Lock()
	if err := ctx.Err(); err != nil {
		b.mu.Unlock()
		return nil, err
	}
	batch := b.next
	if batch == nil {
		batch = &beatBatch{req: BeatRequest{From: uint64(b.t.cfg.Node)}, done: make(chan struct{})}
		batch.ctx, batch.cancel = context.WithTimeout(context.Background(), b.t.cfg.Pulse+b.t.cfg.Gather+heartbeatTimeout)
		b.next = batch
		b.t.sending.Go(func() { b.run(batch) })
	}
	slot := len(batch.req.Groups)
	batch.req.Groups = append(batch.req.Groups, r.Group)
	batch.req.Terms = append(batch.req.Terms, r.Term)
	batch.waiting++
	b.mu.Unlock()
	select {
	case <-batch.done:
	case <-ctx.Done():
		b.leave(batch)
		return nil, ctx.Err()
	}
	if batch.err != nil {
		return nil, batch.err
	}
	if slot >= len(batch.reply.Slots) || !batch.reply.Slots[slot].Answered || batch.reply.Slots[slot].Reply == nil {
		return nil, dc.Errorf(dc.Unavailable, "heartbeat", dc.GroupID(r.Group).String(), "node %s has no replica that answers", b.peer)
	}
	return batch.reply.Slots[slot].Reply, nil
}

// leave gives a message up when nobody wants its answer any more.
func (b *beats) leave(batch *beatBatch) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if batch.waiting--; batch.waiting == 0 {
		batch.cancel()
		if b.next == batch {
			b.next = nil
		}
	}
}

// run lets a message gather, sends it and hands its answer on.
func (b *beats) run(batch *beatBatch) {
	defer batch.cancel()
	defer close(batch.done)
	gathered := time.NewTimer(b.t.untilBeat())
	defer gathered.Stop()
	select {
	case <-gathered.C:
	case <-batch.ctx.Done():
	}
	b.mu.Lock()
	if b.next == batch {
		b.next = nil
	}
	b.mu.Unlock()
	if batch.err = batch.ctx.Err(); batch.err != nil {
		return
	}
	c, err := b.t.client(b.peer)
	if err == nil {
		batch.reply, err = c.Beat(batch.ctx, &batch.req)
	}
	if err == nil {
		b.life.Store(batch.reply.Life)
	}
	batch.err = err
}

// untilBeat is how long a heartbeat waits that is the first of its message.
func (t *Transport) untilBeat() time.Duration {
	if t.cfg.Pulse <= 0 {
		return t.cfg.Gather
	}
	wait := t.cfg.Pulse - time.Since(t.began)%t.cfg.Pulse
	if wait > t.cfg.Pulse*3/5 {
		return t.cfg.Gather
	}
	return wait
}

// Beat serves the heartbeats of several groups. Raft answers a heartbeat without its main goroutine, but may write a new term; a group whose disk
// takes its time is left out of the answer, and gets no second heartbeat before the first is through.
func (s service) Beat(ctx context.Context, r *BeatRequest) (*BeatReply, error) {
	if len(r.Groups) != len(r.Terms) {
		return nil, dc.Errorf(dc.Invalid, "raft", "", "a heartbeat names %d groups and %d terms", len(r.Groups), len(r.Terms))
	}
	if err := s.t.checkPeer(ctx, r.From); err != nil {
		return nil, err
	}
	type answer struct {
		slot  int
		reply *AppendReply
	}
	reply := &BeatReply{Life: s.t.life, Slots: make([]*BeatSlot, len(r.Groups))}
	lanes := s.t.heard(r, reply)
	answers := make(chan answer, len(lanes))
	open := 0
	for i, l := range lanes {
		if l == nil || !l.beating.CompareAndSwap(false, true) {
			continue
		}
		open++
		go func() {
			defer l.beating.Store(false)
			a, err := s.Append(ctx, &AppendRequest{From: r.From, Group: r.Groups[i], Term: r.Terms[i]})
			if err != nil {
				a = nil
			}
			answers <- answer{i, a}
		}()
	}
	patience := time.NewTimer(beatPatience)
	defer patience.Stop()
	for ; open > 0; open-- {
		select {
		case a := <-answers:
			reply.Slots[a.slot].Answered, reply.Slots[a.slot].Reply = a.reply != nil, a.reply
		case <-patience.C:
			return reply, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return reply, nil
}

// heard answers the heartbeats that are no news, and gives the lanes of the others: most of those of idle groups cost no goroutine and no look
// into Raft.
func (t *Transport) heard(r *BeatRequest, reply *BeatReply) map[int]*Lane {
	t.mu.RLock()
	defer t.mu.RUnlock()
	slots, answers := make([]BeatSlot, len(r.Groups)), make([]AppendReply, len(r.Groups))
	news := map[int]*Lane{}
	for i, g := range r.Groups {
		reply.Slots[i] = &slots[i]
		l := t.lanes[dc.GroupID(g)]
		if l == nil {
			continue
		}
		last, ok := uint64(0), false
		if l.replica != nil {
			last, ok = l.replica.Heard(dc.NodeID(r.From), r.Terms[i])
		}
		if !ok {
			news[i] = l
			continue
		}
		answers[i].Term, answers[i].LastIndex, answers[i].Success = r.Terms[i], last, true
		slots[i].Answered, slots[i].Reply = true, &answers[i]
	}
	return news
}
