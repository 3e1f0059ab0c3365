package agent_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"missingos/scheduler/agent"
	"missingos/scheduler/driver"
	"missingos/srv/dc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const ttl = dc.SessionTTL

// world is a leader and a machine in memory, in virtual time.
type world struct {
	t     *testing.T
	start time.Time
	agent *agent.Agent
	done  chan struct{}
	stop  context.CancelFunc

	mu       sync.Mutex
	cut      bool // the leader cannot be reached
	epoch    uint64
	until    time.Time // the leader's idea of the lease
	orders   []agent.Allocation
	version  byte
	changed  chan struct{}
	draining bool
	marked   bool // the leader knows that the node drains
	outcomes []string
	procs    map[string]*process
	starts   []string
	failing  error // of Start
	deaf     bool  // reports do not arrive
}

func (w *world) now() time.Duration { return time.Since(w.start) }

func newWorld(t *testing.T) *world {
	w := &world{t: t, start: time.Now(), changed: make(chan struct{}), procs: map[string]*process{}, done: make(chan struct{})}
	w.agent = agent.New(agent.Config{
		Offer: func() agent.Offer { return agent.Offer{Name: "n1", CPUMilli: 1000, MemoryBytes: dc.GiB} }, Leader: w, Start: w.run, Now: w.now,
		Draining: func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.draining },
	})
	ctx, stop := context.WithCancel(context.Background())
	w.stop = stop
	go func() {
		w.agent.Run(ctx)
		close(w.done)
	}()
	t.Cleanup(func() {
		stop()
		<-w.done
	})
	synctest.Wait()
	return w
}

func (w *world) Register(ctx context.Context, o agent.Offer) (uint64, time.Duration, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut {
		return 0, 0, dc.Unavailable
	}
	for id, p := range w.procs {
		if p.alive() {
			w.t.Errorf("registered anew while %s runs", id)
		}
	}
	w.epoch++
	w.until, w.orders, w.marked = time.Now().Add(ttl), nil, false
	return w.epoch, ttl, nil
}

func (w *world) Sync(ctx context.Context, epoch uint64, seen []byte, draining bool, wait time.Duration) (agent.Orders, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for first := true; ; first = false {
		w.mu.Lock()
		if w.cut {
			w.mu.Unlock()
			<-ctx.Done()
			return agent.Orders{}, dc.Unavailable
		}
		if epoch != w.epoch || time.Now().After(w.until) {
			w.mu.Unlock()
			return agent.Orders{}, dc.Stale
		}
		if first {
			w.until = time.Now().Add(ttl)
			w.marked = draining
		}
		o := agent.Orders{Version: []byte{w.version}, Allocations: slices.Clone(w.orders)}
		changed := w.changed
		w.mu.Unlock()
		if !bytes.Equal(o.Version, seen) {
			return o, nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return agent.Orders{Version: seen, Same: true}, nil
		case <-ctx.Done():
			return agent.Orders{}, ctx.Err()
		}
	}
}

func (w *world) Report(_ context.Context, epoch uint64, outcomes []agent.Outcome) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut || w.deaf {
		return dc.Unavailable
	}
	if epoch != w.epoch {
		return dc.Stale
	}
	ends := []string{"started", "exited", "stopped", "moved", "restarted"}
	for _, o := range outcomes {
		w.outcomes = append(w.outcomes, fmt.Sprintf("%s %s %d", o.ID, ends[o.End], o.Exit))
		if o.End != agent.None {
			w.orders = slices.DeleteFunc(w.orders, func(a agent.Allocation) bool { return a.ID == o.ID })
			w.changeLocked()
		}
	}
	return nil
}

func (w *world) changeLocked() {
	w.version++
	close(w.changed)
	w.changed = make(chan struct{})
}

// order changes the orders and lets the agent follow.
func (w *world) order(fn func()) {
	w.mu.Lock()
	fn()
	w.changeLocked()
	w.mu.Unlock()
	synctest.Wait()
}

// seen gives what the leader and the machine have come to.
func (w *world) seen() (epoch uint64, until time.Time, starts []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.epoch, w.until, slices.Clone(w.starts)
}

func (w *world) proc(id string) *process {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.procs[id]
}

func (w *world) set(fn func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fn()
}

func allocation(task uint32) agent.Allocation {
	return agent.Allocation{ID: agent.ID{Job: 1, Task: task, Attempt: 1}, Job: "j", Fence: 7, Spec: []byte("#!/bin/sh\n#dc name=j\ntrue\n"), UID: 1}
}

// process is a task in memory; TERM ends it after a while, if it hears it.
type process struct {
	w       *world
	id      string
	started chan struct{}
	done    chan struct{}
	once    sync.Once
	exit    driver.Exit
	timer   *time.Timer
	deaf    bool
}

func (w *world) run(t driver.Task, lease time.Duration) (agent.Process, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failing != nil {
		return nil, w.failing
	}
	if p := w.procs[t.ID]; p != nil {
		w.t.Errorf("%s is started a second time", t.ID)
	}
	if lease > time.Duration(w.until.Sub(w.start)) {
		w.t.Errorf("%s runs under a lease of %s, which ends for the leader at %s", t.ID, lease, w.until.Sub(w.start))
	}
	p := &process{w: w, id: t.ID, started: make(chan struct{}), done: make(chan struct{})}
	p.timer = time.AfterFunc(lease-w.now(), func() { p.finish(driver.Exit{Code: 137, Fenced: true}) })
	close(p.started)
	w.procs[t.ID] = p
	w.starts = append(w.starts, strings.Join([]string{t.ID, t.Env["DC_JOB"], t.Env["DC_INDEX"], t.Env["DC_COUNT"], t.Env["DC_NODE"], t.Env["DC_ATTEMPT"], t.Env["DC_FENCE"]}, " "))
	return p, nil
}

func (p *process) finish(e driver.Exit) {
	p.once.Do(func() {
		p.exit = e
		p.timer.Stop()
		close(p.done)
	})
}

func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}
func (p *process) Started() <-chan struct{} { return p.started }
func (p *process) Done() <-chan struct{}    { return p.done }
func (p *process) PID() int                 { return 42 }
func (p *process) Note() string             { return "" }
func (p *process) Exit() driver.Exit        { return p.exit }
func (p *process) Extend(lease time.Duration) {
	p.timer.Reset(lease - p.w.now())
}
func (p *process) Kill() { p.finish(driver.Exit{Code: 137, Signal: 9}) }
func (p *process) Stop() {
	if !p.deaf {
		time.AfterFunc(100*time.Millisecond, func() { p.finish(driver.Exit{Code: 143, Signal: 15}) })
	}
}

func (w *world) want(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.outcomes, want) {
		t.Errorf("outcomes %q, want %q", w.outcomes, want)
	}
	w.outcomes = nil
}

func TestRunsWhatIsAllocatedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.order(func() { w.orders = append(w.orders, allocation(0)) })
		w.want(t, "1.0.1 started 0")
		if _, _, got := w.seen(); len(got) != 1 || got[0] != "1.0.1 j 0 1 n1 1 7" {
			t.Errorf("starts %q", got)
		}
		time.Sleep(time.Minute) // many renewals
		if !w.proc("1.0.1").alive() {
			t.Error("the task has not outlived its first lease")
		}
		// While its end cannot be reported the orders still name it; that starts nothing.
		w.set(func() { w.deaf = true })
		w.proc("1.0.1").finish(driver.Exit{Code: 3})
		for range 3 {
			time.Sleep(time.Second)
			w.order(func() {})
		}
		w.want(t)
		w.set(func() { w.deaf = false })
		time.Sleep(2 * time.Second)
		w.want(t, "1.0.1 exited 3")
		if _, _, got := w.seen(); len(got) != 1 {
			t.Errorf("starts %q", got)
		}
	})
}

func TestStopKillUpdateAndVanish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for i := range uint32(4) {
			w.order(func() { w.orders = append(w.orders, allocation(i)) })
		}
		w.want(t, "1.0.1 started 0", "1.1.1 started 0", "1.2.1 started 0", "1.3.1 started 0")
		w.order(func() { w.orders[0].Want = "stop" })
		time.Sleep(time.Second)
		w.want(t, "1.0.1 stopped 143")
		w.order(func() { w.orders[0].Want = "kill" })
		w.want(t, "1.1.1 stopped 137")
		w.order(func() { w.orders[0].Outdated = true })
		time.Sleep(time.Second)
		w.want(t, "1.2.1 restarted 143")
		w.order(func() { w.orders = nil })
		if w.proc("1.3.1").alive() {
			t.Error("what is not ordered any more still runs")
		}
		// One that must end before it has begun does not begin.
		w.want(t, "1.3.1 stopped 137")
		w.order(func() {
			a := allocation(9)
			a.Want = "stop"
			w.orders = append(w.orders, a)
		})
		w.want(t, "1.9.1 stopped 0")
	})
}

func TestKillIsStrongerThanStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.order(func() { w.orders = append(w.orders, allocation(0)) })
		w.proc("1.0.1").deaf = true
		w.order(func() { w.orders[0].Want = "stop" })
		w.want(t, "1.0.1 started 0")
		w.order(func() { w.orders[0].Want = "kill" })
		w.want(t, "1.0.1 stopped 137")
	})
}

func TestAFailureToStartIsAnOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.set(func() { w.failing = errors.New("no shim") })
		w.order(func() { w.orders = append(w.orders, allocation(0)) })
		w.want(t, "1.0.1 exited 126")
	})
}

func TestAPartitionedNodeEndsItsTasksBeforeItsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.order(func() { w.orders = append(w.orders, allocation(0)) })
		w.want(t, "1.0.1 started 0")
		time.Sleep(7 * time.Second)
		w.set(func() { w.cut = true })
		p := w.proc("1.0.1")
		<-p.done
		_, until, _ := w.seen()
		if left := time.Until(until); left <= 0 || left > 5*time.Second {
			t.Errorf("the task ended %s before the leader's deadline", left)
		}
		// When the leader is back, the node begins anew; the old attempt's outcome is nobody's business any more.
		time.Sleep(time.Minute)
		w.set(func() { w.cut = false })
		time.Sleep(10 * time.Second)
		if epoch, _, _ := w.seen(); epoch != 2 {
			t.Errorf("epoch %d", epoch)
		}
		w.want(t)
		w.order(func() { w.orders = append(w.orders, allocation(1)) })
		w.want(t, "1.1.1 started 0")
	})
}

func TestAShortPartitionIsNotNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.order(func() { w.orders = append(w.orders, allocation(0)) })
		w.want(t, "1.0.1 started 0")
		time.Sleep(7 * time.Second)
		w.set(func() { w.cut = true })
		time.Sleep(4 * time.Second)
		w.proc("1.0.1").finish(driver.Exit{})
		w.set(func() { w.cut = false })
		time.Sleep(3 * time.Second)
		w.want(t, "1.0.1 exited 0")
		if epoch, _, _ := w.seen(); epoch != 1 {
			t.Errorf("epoch %d", epoch)
		}
	})
}

func TestALeaseEndedByTheLeaderKillsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.order(func() { w.orders = append(w.orders, allocation(0)) })
		w.proc("1.0.1").deaf = true
		w.order(func() { w.epoch = 77 }) // the node's next Sync is stale
		time.Sleep(time.Second)
		if epoch, _, _ := w.seen(); w.proc("1.0.1").alive() || epoch != 78 {
			t.Errorf("alive %v, epoch %d", w.proc("1.0.1").alive(), epoch)
		}
	})
}

func TestDrainMovesTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.order(func() { w.orders = append(w.orders, allocation(0), allocation(1)) })
		w.set(func() { w.outcomes = nil; w.draining = true })
		time.Sleep(5 * time.Second)
		w.mu.Lock()
		slices.Sort(w.outcomes)
		marked := w.marked
		w.mu.Unlock()
		w.want(t, "1.0.1 moved 143", "1.1.1 moved 143")
		if !marked {
			t.Error("the leader does not know that the node drains")
		}
	})
}

func TestClosingGivesTasksBack(t *testing.T) {
	for _, deaf := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.order(func() { w.orders = append(w.orders, allocation(0)) })
			w.proc("1.0.1").deaf = deaf
			begin := time.Now()
			if err := w.agent.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			code, most := 143, time.Second
			if deaf {
				code, most = 137, 4*time.Second
			}
			w.want(t, "1.0.1 started 0", fmt.Sprintf("1.0.1 moved %d", code))
			w.mu.Lock()
			marked := w.marked
			w.mu.Unlock()
			if took := time.Since(begin); took > most || !marked {
				t.Errorf("took %s, marked %v", took, marked)
			}
		})
	}
}

func TestClosingWithoutALeaderIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.order(func() { w.orders = append(w.orders, allocation(0)) })
		w.set(func() { w.cut = true })
		begin := time.Now()
		if err := w.agent.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 10*time.Second || w.proc("1.0.1").alive() {
			t.Errorf("took %s, alive %v", took, w.proc("1.0.1").alive())
		}
	})
}
