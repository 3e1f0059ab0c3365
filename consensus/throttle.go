package consensus

import (
	"context"
	"io"
	"sync"
	"time"

	"missingos/srv/dc"
)

// defaultSnapshotRate leaves three quarters of a gigabit network, and most of any disk, to everything else.
const defaultSnapshotRate = 32 * dc.MiB

// throttleStep is how much passes at once: small, so that streams that share a throttle take turns.
const throttleStep = 64 * dc.KiB

// A throttle lets bytes pass at a rate, whoever sends them, in the order in which they ask. Idle time is not saved up.
type throttle struct {
	rate float64 // bytes a second; zero or less lets everything pass

	mu   sync.Mutex
	free time.Time // when everything let in so far has passed
}

// wait blocks until n bytes may pass, or ctx ends.
func (t *throttle) wait(ctx context.Context, n int) error {
	if t.rate <= 0 {
		return ctx.Err()
	}
	t.mu.Lock()
	now := time.Now()
	begin := now
	if t.free.After(now) {
		begin = t.free
	}
	t.free = begin.Add(time.Duration(float64(n) / t.rate * float64(time.Second)))
	t.mu.Unlock()
	if d := begin.Sub(now); d > 0 {
		pause(ctx, d)
	}
	return ctx.Err()
}

// slowWriter passes on what a throttle lets through.
type slowWriter struct {
	ctx context.Context
	t   *throttle
	w   io.Writer
}

func (s slowWriter) Write(b []byte) (int, error) {
	for sent := 0; ; {
		n := min(len(b)-sent, throttleStep)
		if err := s.t.wait(s.ctx, n); err != nil {
			return sent, err
		}
		k, err := s.w.Write(b[sent : sent+n])
		if sent += k; err != nil || sent == len(b) {
			return sent, err
		}
	}
}

// slowReader reads as fast as a throttle lets it.
type slowReader struct {
	ctx context.Context
	t   *throttle
	r   io.Reader
}

func (s slowReader) Read(b []byte) (int, error) {
	n, err := s.r.Read(b[:min(len(b), throttleStep)])
	if err != nil {
		return n, err
	}
	return n, s.t.wait(s.ctx, n)
}
