package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"missingos/scheduler/driver"
	"missingos/srv/dc"
)

// A Process is a task that was started; *driver.Process is one.
type Process interface {
	Started() <-chan struct{}
	Done() <-chan struct{}
	PID() int
	Note() string
	Exit() driver.Exit
	Extend(lease time.Duration)
	Stop()
	Kill()
}

// Config is what an agent needs. All but Draining, Now and Log are required.
type Config struct {
	Offer  func() Offer
	Leader Leader
	// Start runs a task under a lease, which is a time of Now.
	Start func(t driver.Task, lease time.Duration) (Process, error)
	// Draining tells whether the node is to give up its tasks.
	Draining func() bool
	// Now is a clock that counts suspended time. Default: driver.Now.
	Now func() time.Duration
	Log *slog.Logger
}

// Bounds of the conversation with the leader.
const (
	syncWait     = 2 * time.Second // how long the leader may hold a Sync for news
	callTimeout  = 5 * time.Second
	firstBackoff = 50 * time.Millisecond
	maxBackoff   = time.Second
	maxStarting  = 8 // tasks that are being started at the same time
	maxOutcomes  = 256
	// handBack bounds how long a closing agent lets tasks end by themselves.
	handBack = 3 * time.Second
)

// Agent runs the tasks of one node.
type Agent struct {
	cfg      Config
	starting chan struct{} // a token for each task being started
	closing  chan struct{}
	close    sync.Once
	ended    chan struct{}
	drained  atomic.Bool // closing: as good as draining

	mu    sync.Mutex
	lease time.Duration // when the present lease ends, by Now
}

// New makes an agent; Run runs it.
func New(cfg Config) *Agent {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = driver.Now
	}
	if cfg.Draining == nil {
		cfg.Draining = func() bool { return false }
	}
	return &Agent{cfg: cfg, starting: make(chan struct{}, maxStarting), closing: make(chan struct{}), ended: make(chan struct{})}
}

// WithDriver makes the agent start tasks with d.
func WithDriver(d *driver.Driver) func(driver.Task, time.Duration) (Process, error) {
	return func(t driver.Task, lease time.Duration) (Process, error) {
		p, err := d.Start(t, lease)
		if err != nil {
			return nil, err // not a nil *Process in an interface
		}
		return p, nil
	}
}

// Run keeps the node at work until ctx ends or Close is called; then nothing that it has started runs any more. It is called once.
func (a *Agent) Run(ctx context.Context) {
	defer close(a.ended)
	backoff := firstBackoff
	for ctx.Err() == nil && !a.isClosing() {
		sent := a.cfg.Now()
		epoch, length, err := a.register(ctx)
		if err != nil {
			a.cfg.Log.Debug("register for tasks", "err", err)
			a.pause(ctx, backoff)
			backoff = min(2*backoff, maxBackoff)
			continue
		}
		backoff = firstBackoff
		a.setLease(sent + length - dc.JobLeaseMargin)
		a.cfg.Log.Info("ready for tasks", "epoch", epoch)
		s := newSession(a, epoch, length)
		s.run(ctx)
	}
}

// Close gives the node's tasks back, so that they run elsewhere at once, and waits for Run to return. It must come while the cluster can still be
// reached from here. If ctx ends first, Run's own ctx must be ended to kill what is left.
func (a *Agent) Close(ctx context.Context) error {
	a.close.Do(func() {
		a.drained.Store(true)
		close(a.closing)
	})
	select {
	case <-a.ended:
		return nil
	case <-ctx.Done():
		return dc.Errorf(dc.Unavailable, "close", "agent", "tasks are still ending: %w", ctx.Err())
	}
}

func (a *Agent) isClosing() bool { return a.drained.Load() }

func (a *Agent) draining() bool { return a.isClosing() || a.cfg.Draining() }

func (a *Agent) register(ctx context.Context) (uint64, time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return a.cfg.Leader.Register(ctx, a.cfg.Offer())
}

// pause waits, or until the agent is to end.
func (a *Agent) pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	case <-a.closing:
	}
}

func (a *Agent) setLease(until time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lease = until
}

func (a *Agent) leaseEnd() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.lease
}

func (a *Agent) leaseEnded() bool { return a.cfg.Now() >= a.leaseEnd() }

// stale tells whether an error says that the lease has ended.
func stale(err error) bool { return errors.Is(err, dc.Stale) }
