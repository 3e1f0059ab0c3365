package client

import (
	"context"
	"sync"

	"missingos/srv/dc"
)

// A window hands out the sequence numbers of one client's mutations and knows below which all are answered, so that replicas may
// forget their results. The span from the oldest unanswered number to the next is bounded, which bounds what replicas
// must remember of this client even when one mutation is stuck.
type window struct {
	client uint64
	size   uint64

	mu    sync.Mutex
	next  uint64          // the next sequence number
	low   uint64          // every number below is answered
	open  map[uint64]bool // numbers >= low that are handed out: true once answered
	moved chan struct{}   // closed and replaced when low grows
}

func newWindow(client, size uint64) *window {
	return &window{client: client, size: size, next: 1, low: 1, open: map[uint64]bool{}, moved: make(chan struct{})}
}

// begin takes the next number; it blocks while the window is full.
func (w *window) begin(ctx context.Context) (uint64, error) {
	for {
		w.mu.Lock()
		if w.next-w.low < w.size {
			seq := w.next
			w.next++
			w.open[seq] = false
			w.mu.Unlock()
			return seq, nil
		}
		moved := w.moved
		w.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return 0, dc.Errorf(dc.KindOf(ctx.Err()), "", "", "%d changes of this node are already waiting for an answer", w.size)
		}
	}
}

// end marks seq as answered or given up: it will not be sent again.
func (w *window) end(seq uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open[seq] = true
	if !w.open[w.low] {
		return
	}
	for w.open[w.low] {
		delete(w.open, w.low)
		w.low++
	}
	close(w.moved)
	w.moved = make(chan struct{})
}

// done is the number below which every mutation is answered.
func (w *window) done() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.low
}
