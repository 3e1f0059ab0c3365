package topicfs

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"missingos/srv/client"
	"missingos/srv/dc"
)

// A reader is an open `next` or `take`: a synth.Source of one message a chunk.
//
// A message is taken by a goroutine that outlives the read(2) that asked for it: an interrupted read must not lose what the
// leader has leased to it, and finds it with the next one.
type reader struct {
	group group
	id    uint64
	ids   bool // take: lines begin with ids, and are acknowledged by them

	ctx    context.Context // of the open file
	cancel context.CancelFunc

	given   *client.TopicLease // what the last Next gave, for next to acknowledge
	pending chan taken         // not nil while a message is being taken; holds one
}

type taken struct {
	message client.TopicDelivery
	err     error
}

func newReader(ctx context.Context, g group, ids bool) *reader {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	return &reader{group: g, id: rand.Uint64(), ids: ids, ctx: ctx, cancel: cancel}
}

// Next acknowledges the message given before, and gives the next.
func (r *reader) Next(ctx context.Context) ([]byte, error) {
	if r.pending == nil {
		var ack []client.TopicLease
		if r.given != nil && !r.ids {
			ack = append(ack, *r.given)
		}
		r.given = nil
		pending := make(chan taken, 1)
		r.pending = pending
		go func() { pending <- r.take(ack) }()
	}
	select {
	case t := <-r.pending:
		r.pending = nil
		if t.err != nil {
			return nil, t.err
		}
		r.given = &t.message.ID
		return r.line(t.message), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (r *reader) line(m client.TopicDelivery) []byte {
	var b []byte
	if r.ids {
		b = append(append(b, idText(m.ID)...), '\t')
	}
	return append(append(b, m.Message.Value...), '\n')
}

// Pauses between attempts to reach a leader; each attempt takes up to dc.OpTimeout itself.
const retryPause = 200 * time.Millisecond

// take gets one message, however long it takes.
func (r *reader) take(ack []client.TopicLease) taken {
	s, d, name := r.group.store, r.group.d, r.group.name
	for {
		ctx, cancel := context.WithTimeout(r.ctx, dc.OpTimeout)
		got, err := s.Take(ctx, d, name, r.id, 1, ack...)
		cancel()
		if err == nil {
			ack = nil
		}
		if len(got) > 0 {
			return taken{message: got[0]}
		}
		if err == nil {
			err = s.Wait(r.ctx, d, name, r.id)
		}
		switch {
		case r.ctx.Err() != nil:
			return taken{err: r.ctx.Err()}
		case err != nil && !errors.Is(err, dc.Unavailable):
			return taken{err: err}
		case err != nil:
			if !pause(r.ctx, retryPause) {
				return taken{err: r.ctx.Err()}
			}
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// Close ends the reader. A message that was taken and not given to anybody goes back; one that was given stays leased until its
// visibility timeout, for its reader may be at work on it.
func (r *reader) Close() {
	r.cancel()
	if r.pending == nil {
		return
	}
	t := <-r.pending
	if t.err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), dc.OpTimeout)
	defer cancel()
	// Without success the visibility timeout does it.
	_ = r.group.store.Settle(ctx, r.group.d, r.group.name, client.TopicUnread, t.message.ID)
}
