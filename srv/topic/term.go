package topic

import (
	"container/heap"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"missingos/srv/dc"
	"missingos/srv/replica"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/topic"
)

const (
	proposeTimeout = 5 * time.Second
	retryAfter     = 250 * time.Millisecond
	knownSweeps    = 1024 // more are found when these are done
)

// A term is this node's time as leader of one topic group.
type term struct {
	replica     replica.Replica
	over        <-chan struct{} // closed at its end
	descriptors Descriptors
	log         *slog.Logger

	mu     sync.Mutex
	keeps  map[uint64]*keep // topics that do not keep all, by id
	byTime deadlines
	byKey  map[flight]*deadline
	sweeps map[topic.Sweep]bool
	woken  chan struct{} // holds one token when there is news for run
	reset  chan struct{} // holds one token when there is news for retain
}

// A flight is a message of a consumer group.
type flight struct{ topic, epoch, offset uint64 }

// A deadline is when a lease ends.
type deadline struct {
	flight
	group string
	lease uint64
	at    time.Time
	place int // in the heap
}

type deadlines []*deadline

func (d deadlines) Len() int           { return len(d) }
func (d deadlines) Less(i, j int) bool { return d[i].at.Before(d[j].at) }
func (d deadlines) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].place, d[j].place = i, j
}

func (d *deadlines) Push(x any) {
	x.(*deadline).place = len(*d)
	*d = append(*d, x.(*deadline))
}

func (d *deadlines) Pop() any {
	old := *d
	x := old[len(old)-1]
	old[len(old)-1] = nil
	*d = old[:len(old)-1]
	return x
}

// lead runs one term.
func (s *Service) lead(ctx context.Context, r replica.Replica) {
	t := &term{
		replica: r, over: ctx.Done(), descriptors: s.cfg.Descriptors, log: s.cfg.Log.With("group", r.Group().String()), keeps: map[uint64]*keep{}, byKey: map[flight]*deadline{}, sweeps: map[topic.Sweep]bool{}, woken: make(chan struct{}, 1), reset: make(chan struct{}, 1),
	}
	s.mu.Lock()
	s.terms[r.Group()] = t // from here on t hears of leases; those it did not hear of are read by takeOver
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.terms[r.Group()] == t {
			delete(s.terms, r.Group())
		}
	}()
	for {
		err := t.takeOver()
		if err == nil {
			break
		}
		s.cfg.Log.Warn("topic leader cannot read its state", "group", r.Group(), "err", err)
		if !t.sleep(ctx, retryAfter) {
			return
		}
	}
	var retained sync.WaitGroup
	retained.Go(func() { t.retain(ctx) })
	defer retained.Wait()
	t.run(ctx)
}

// takeOver gives every lease its full time, and finds what is to be swept.
func (t *term) takeOver() error {
	return t.replica.Local(func(rd storage.Reader) error {
		topic.Leases(rd, func(l topic.Leased) bool {
			t.observe(l)
			return true
		})
		for _, s := range topic.Sweeps(rd, knownSweeps) {
			t.observe(s)
		}
		topic.Keeps(rd, func(k topic.Kept) bool {
			t.observe(k)
			return true
		})
		return nil
	})
}

// observe hears of what was applied. It runs on the apply path.
func (t *term) observe(ev any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch ev := ev.(type) {
	case topic.Leased:
		k := flight{ev.Topic, ev.Epoch, ev.Offset}
		if d := t.byKey[k]; d != nil {
			if d.lease >= ev.Lease {
				return // takeOver has read what was heard before
			}
			heap.Remove(&t.byTime, d.place)
		}
		d := &deadline{flight: k, group: ev.Group, lease: ev.Lease, at: time.Now().Add(time.Duration(ev.VisibilityMs) * time.Millisecond)}
		t.byKey[k] = d
		heap.Push(&t.byTime, d)
		if d.place == 0 {
			t.wake()
		}
	case topic.Settled:
		t.removeLocked(flight{ev.Topic, ev.Epoch, ev.Offset})
	case topic.Kept:
		t.kept(ev)
	case topic.Published:
		t.grown(ev)
	case topic.Sweep:
		if len(t.sweeps) < knownSweeps {
			t.sweeps[ev] = true
			t.wake()
		}
		// The leases of what is to be swept run out by themselves, and settle nothing then.
	}
}

func (t *term) removeLocked(k flight) {
	if d := t.byKey[k]; d != nil {
		heap.Remove(&t.byTime, d.place)
		delete(t.byKey, k)
	}
}

func (t *term) wake() {
	select {
	case t.woken <- struct{}{}:
	default:
	}
}

// run ends leases and sweeps until the term is over.
func (t *term) run(ctx context.Context) {
	for ctx.Err() == nil {
		t.expire(ctx)
		swept := t.sweep(ctx)
		t.mu.Lock()
		wait := time.Hour
		if len(t.byTime) > 0 {
			wait = time.Until(t.byTime[0].at)
		}
		t.mu.Unlock()
		if swept {
			wait = 0
		}
		if wait > 0 && !t.sleep(ctx, wait) {
			return
		}
	}
}

// sleep waits for d or until it is woken; false if the term is over.
func (t *term) sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.woken:
	case <-ctx.Done():
		return false
	}
	return true
}

// expire gives back the messages whose time is over, a group at a time.
func (t *term) expire(ctx context.Context) {
	for ctx.Err() == nil {
		due := t.due(time.Now())
		if due == nil {
			return
		}
		first := due[0]
		c := &command.TopicSettle{Topic: first.topic, Group: first.group, Epoch: first.epoch, Outcome: command.TopicOutcome_TOPIC_OUTCOME_EXPIRED}
		for _, d := range due {
			c.Ids = append(c.Ids, &command.TopicLeaseID{Offset: d.offset, Lease: d.lease})
		}
		ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
		err := t.do(ctx, t.replica.NewID(), &command.TopicCommand{Op: &command.TopicCommand_Settle{Settle: c}}, nil)
		cancel()
		t.settled(due, err)
	}
}

// due gives leases of one group that have ended by now.
func (t *term) due(now time.Time) (due []*deadline) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.byTime) > 0 && !t.byTime[0].at.After(now) && len(due) < dc.MaxTopicTake {
		d := t.byTime[0]
		if len(due) > 0 && (d.topic != due[0].topic || d.epoch != due[0].epoch) {
			break
		}
		heap.Pop(&t.byTime)
		d.place = -1
		due = append(due, d)
	}
	for _, d := range due { // still known, in case the proposal fails
		heap.Push(&t.byTime, d)
		d.at = now.Add(retryAfter)
		heap.Fix(&t.byTime, d.place)
	}
	return due
}

// settled forgets the leases of a command that was applied: those it ended were heard of, the others had ended before. With an
// unknown outcome they are tried again.
func (t *term) settled(due []*deadline, err error) {
	if err != nil && !errors.Is(err, dc.NotFound) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, d := range due {
		if t.byKey[d.flight] == d {
			t.removeLocked(d.flight)
		}
	}
}

// sweep does one step of sweeping; it tells whether there is more to do now.
func (t *term) sweep(ctx context.Context) bool {
	t.mu.Lock()
	var s topic.Sweep
	for s = range t.sweeps {
		break
	}
	n := len(t.sweeps)
	t.mu.Unlock()
	if n == 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	var out command.TopicSwept
	err := t.do(ctx, t.replica.NewID(), &command.TopicCommand{Op: &command.TopicCommand_Sweep{Sweep: &command.TopicSweep{Topic: s.Topic, Epoch: s.Epoch}}}, &out)
	if err == nil && !out.More && s.Epoch == 0 && t.descriptors != nil {
		if err = t.descriptors.RemoveDescriptor(ctx, "topic", s.Topic); errors.Is(err, dc.NotFound) {
			err = nil
		}
	}
	if err != nil {
		return t.sleep(ctx, retryAfter)
	}
	if out.More {
		return true
	}
	t.mu.Lock()
	delete(t.sweeps, s)
	n = len(t.sweeps)
	t.mu.Unlock()
	if n == 0 {
		_ = t.replica.Local(func(rd storage.Reader) error { // those there was no room for
			for _, s := range topic.Sweeps(rd, knownSweeps) {
				t.observe(s)
			}
			return nil
		})
	}
	return true
}
