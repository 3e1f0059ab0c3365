package agent

import (
	"context"
	"sync"
	"time"

	"missingos/srv/dc"
)

// A session is the time of one lease: tasks live within it.
type session struct {
	a      *Agent
	epoch  uint64
	length time.Duration
	node   string
	over   chan struct{} // closed when the lease is known to have ended, for the reporter
	end    sync.Once
	tasks  sync.WaitGroup
	news   chan struct{} // holds a token when there are outcomes

	mu       sync.Mutex
	known    map[ID]*task // what the orders name, and what still runs
	outcomes []Outcome    // to be reported, in order
}

func newSession(a *Agent, epoch uint64, length time.Duration) *session {
	return &session{a: a, epoch: epoch, length: length, node: a.cfg.Offer().Name, over: make(chan struct{}), news: make(chan struct{}, 1), known: map[ID]*task{}}
}

func (s *session) finish() { s.end.Do(func() { close(s.over) }) }

// run follows the orders until the lease ends, ctx ends or the agent is closed; then it ends all tasks and waits for them.
func (s *session) run(ctx context.Context) {
	var reporter sync.WaitGroup
	reporter.Go(s.report)
	syncing, stop := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-s.a.closing:
			stop()
		case <-s.over:
		case <-syncing.Done():
		}
	})
	s.follow(syncing)
	stop()
	watch.Wait()
	if s.a.isClosing() && ctx.Err() == nil && !s.isOver() && s.busy() {
		s.giveBack(ctx)
	}
	s.killAll()
	s.tasks.Wait()
	s.finish()
	reporter.Wait()
}

func (s *session) isOver() bool {
	select {
	case <-s.over:
		return true
	default:
		return false
	}
}

// follow renews the lease and carries out orders.
func (s *session) follow(ctx context.Context) {
	var seen []byte
	var current []Allocation
	drained := false
	backoff, wait := firstBackoff, syncWait
	for ctx.Err() == nil {
		orders, err := s.sync(ctx, seen, wait)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			backoff, wait = firstBackoff, syncWait
			draining := s.a.draining()
			if !orders.Same {
				seen, current = orders.Version, orders.Allocations
			}
			if !orders.Same || draining != drained {
				drained = draining
				s.obey(current)
			}
		case stale(err) || s.a.leaseEnded():
			s.a.cfg.Log.Warn("the node's lease has ended: its tasks are killed", "epoch", s.epoch, "err", err)
			s.finish()
			return
		default:
			s.a.cfg.Log.Debug("sync of tasks", "err", err)
			s.a.pause(ctx, min(backoff, max(s.a.leaseEnd()-s.a.cfg.Now(), time.Millisecond)))
			backoff, wait = min(2*backoff, maxBackoff), 0
		}
	}
}

// sync asks for orders; an answer extends the lease, counted from when the question was sent.
func (s *session) sync(ctx context.Context, seen []byte, wait time.Duration) (Orders, error) {
	sent := s.a.cfg.Now()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	orders, err := s.a.cfg.Leader.Sync(ctx, s.epoch, seen, s.a.draining(), wait)
	if err != nil {
		return orders, err
	}
	if s.a.leaseEnded() { // it ended while the answer was on its way, and with it the tasks: begin anew
		return orders, dc.Errorf(dc.Stale, "sync", "", "the answer came after the lease's end")
	}
	s.a.setLease(sent + s.length - dc.JobLeaseMargin)
	s.extend()
	return orders, nil
}

// extend tells the shims of the lease, not more often than is of use.
func (s *session) extend() {
	lease := s.a.leaseEnd()
	for _, t := range s.running() {
		t.extend(lease, s.length/4)
	}
}

// obey makes tasks match the orders: what is not there yet starts, what must end is told to, what is not named any more is killed.
func (s *session) obey(allocations []Allocation) {
	draining := s.a.draining()
	named := make(map[ID]bool, len(allocations))
	for _, al := range allocations {
		named[al.ID] = true
		s.mu.Lock()
		t := s.known[al.ID]
		if t == nil {
			t = &task{s: s, a: al, woken: make(chan struct{}, 1)}
			s.known[al.ID] = t
			s.tasks.Go(t.run)
		}
		s.mu.Unlock()
		switch {
		case al.Want == "kill":
			t.mustEnd(Stopped, true)
		case al.Want == "stop":
			t.mustEnd(Stopped, false)
		case al.Outdated:
			t.mustEnd(Restarted, false)
		case draining:
			t.mustEnd(Moved, false)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, t := range s.known {
		switch {
		case named[id]:
		case t.hasEnded():
			delete(s.known, id)
		default:
			t.mustEnd(Stopped, true)
		}
	}
}

// running lists the tasks that have a process.
func (s *session) running() []*task {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*task
	for _, t := range s.known {
		if t.process() != nil && !t.hasEnded() {
			out = append(out, t)
		}
	}
	return out
}

// busy tells whether anything has not ended.
func (s *session) busy() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.known {
		if !t.hasEnded() {
			return true
		}
	}
	return false
}

func (s *session) killAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.known {
		t.mustEnd(Moved, true)
	}
}

// giveBack lets the tasks of a closing node end and reports them, so that they run elsewhere before the lease has ended. The node is
// marked as draining first: nothing new comes.
func (s *session) giveBack(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, handBack)
	defer cancel()
	orders, err := s.sync(ctx, nil, 0)
	if err != nil {
		s.a.cfg.Log.Debug("the node's tasks are not given back", "err", err)
		return
	}
	s.obey(orders.Allocations)
	ended := make(chan struct{})
	go func() {
		s.tasks.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		s.killAll()
		<-ended
	}
}

// tell queues an outcome.
func (s *session) tell(o Outcome) {
	s.mu.Lock()
	s.outcomes = append(s.outcomes, o)
	s.mu.Unlock()
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// report sends outcomes until the session is over and none are left, or cannot be sent any more.
func (s *session) report() {
	backoff := firstBackoff
	for {
		batch := s.batch()
		if len(batch) == 0 {
			select {
			case <-s.news:
				continue
			case <-s.over:
			}
			if batch = s.batch(); len(batch) == 0 {
				return
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		err := s.a.cfg.Leader.Report(ctx, s.epoch, batch)
		cancel()
		switch {
		case err == nil:
			backoff = firstBackoff
			s.mu.Lock()
			s.outcomes = s.outcomes[len(batch):]
			s.mu.Unlock()
		case stale(err), s.isOver(), s.a.leaseEnded():
			return // the leader takes what ran here for lost, in its time
		default:
			s.a.cfg.Log.Debug("report of tasks", "err", err)
			t := time.NewTimer(backoff)
			select {
			case <-t.C:
			case <-s.over:
			}
			t.Stop()
			backoff = min(2*backoff, maxBackoff)
		}
	}
}

func (s *session) batch() []Outcome {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Outcome(nil), s.outcomes[:min(len(s.outcomes), maxOutcomes)]...)
}
