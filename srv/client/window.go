package client

import (
	"context"
	"errors"
	"sync"

	"missingos/srv/dc"
)

// A window hands out the sequence numbers of one client's mutations and knows below which all are answered, so that replicas may forget
// their results. It bounds how many are unanswered, which bounds what replicas must remember of this client.
type window struct {
	client uint64
	slots  chan struct{}

	mu   sync.Mutex
	next uint64          // the next sequence number
	low  uint64          // every number below is answered
	open map[uint64]bool // numbers >= low that are handed out: true once answered
}

func newWindow(client uint64) *window {
	return &window{client: client, slots: make(chan struct{}, dc.MaxInFlightPerClient), next: 1, low: 1, open: map[uint64]bool{}}
}

// begin takes the next number; it blocks while too many are unanswered.
func (w *window) begin(ctx context.Context) (uint64, error) {
	select {
	case w.slots <- struct{}{}:
	case <-ctx.Done():
		return 0, dc.Errorf(dc.KindOf(ctx.Err()), "", "", "%d changes of this node are already waiting for an answer", dc.MaxInFlightPerClient)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	seq := w.next
	w.next++
	w.open[seq] = false
	return seq, nil
}

// end marks seq as answered or given up: it will not be sent again.
func (w *window) end(seq uint64) {
	w.mu.Lock()
	w.open[seq] = true
	for w.open[w.low] {
		delete(w.open, w.low)
		w.low++
	}
	w.mu.Unlock()
	<-w.slots
}

// done is the number below which every mutation is answered.
func (w *window) done() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.low
}

// leaderHint gives the leader that a NotLeader error names, or zero.
func leaderHint(err error) dc.NodeID {
	if e, ok := errors.AsType[*dc.Error](err); ok && e.Kind == dc.NotLeader {
		return e.Leader
	}
	return 0
}
