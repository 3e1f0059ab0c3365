package agent

import (
	"maps"
	"strconv"
	"sync"
	"time"

	"missingos/scheduler/driver"
	"missingos/scheduler/jobspec"
)

// grace is how long a task has from TERM to KILL.
const grace = 10 * time.Second

// A task is one allocation's life on this node.
type task struct {
	s     *session
	a     Allocation
	woken chan struct{} // holds a token when it must end

	mu    sync.Mutex
	proc  Process
	told  time.Duration // the lease that its shim knows of
	end   End           // why it must end, None while it need not
	kill  bool
	ended bool
}

func (t *task) process() Process {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.proc
}

func (t *task) hasEnded() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ended
}

// mustEnd makes the task end; the first reason holds, and killing is stronger than stopping.
func (t *task) mustEnd(why End, kill bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.end != None && (t.kill || !kill) {
		return
	}
	if t.end == None {
		t.end = why
	}
	t.kill = kill
	select {
	case t.woken <- struct{}{}:
	default:
	}
}

func (t *task) fate() (end End, kill bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.end, t.kill
}

// extend tells the shim of a lease that is later than the one it knows by at least step.
func (t *task) extend(lease, step time.Duration) {
	t.mu.Lock()
	p, tell := t.proc, lease-t.told >= step
	if tell {
		t.told = lease
	}
	t.mu.Unlock()
	if tell {
		p.Extend(lease)
	}
}

// run starts the task, unless it must end before, and sees it to its end.
func (t *task) run() {
	out := Outcome{ID: t.a.ID}
	p, failure := t.start()
	switch {
	case p != nil:
		out = t.watch(p)
	case failure != nil:
		out.End, out.Exit, out.Reason = Exited, 126, failure.Error()
	default:
		out.End, _ = t.fate()
		out.Reason = "it had not begun"
	}
	t.mu.Lock()
	t.ended = true
	t.mu.Unlock()
	t.s.tell(out)
}

// start waits for its turn and starts the process; neither process nor error means that it must not begin any more.
func (t *task) start() (Process, error) {
	starting := t.s.a.starting
	for turn := false; !turn; {
		if end, _ := t.fate(); end != None {
			return nil, nil
		}
		select {
		case starting <- struct{}{}:
			turn = true
		case <-t.woken:
		}
	}
	defer func() { <-starting }()
	if end, _ := t.fate(); end != None {
		return nil, nil
	}
	spec, err := jobspec.Parse(t.a.Spec)
	if err != nil {
		return nil, err
	}
	lease := t.s.a.leaseEnd()
	p, err := t.s.a.cfg.Start(t.work(spec), lease)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.proc, t.told = p, lease
	t.mu.Unlock()
	t.extend(t.s.a.leaseEnd(), 1) // it may have been renewed meanwhile
	select {
	case <-p.Started():
	case <-p.Done():
	case <-t.woken:
	}
	return p, nil
}

// work is what the driver is to run.
func (t *task) work(spec *jobspec.Spec) driver.Task {
	env := maps.Clone(spec.Env)
	if env == nil {
		env = map[string]string{}
	}
	index := strconv.FormatUint(uint64(t.a.Task), 10)
	maps.Copy(env, map[string]string{
		"DC_JOB": t.a.Job, "DC_TASK": index, "DC_INDEX": index, "DC_COUNT": strconv.Itoa(spec.Count), "DC_NODE": t.s.node,
		"DC_ATTEMPT": strconv.FormatUint(uint64(t.a.Attempt), 10), "DC_FENCE": strconv.FormatUint(t.a.Fence, 10),
	})
	return driver.Task{
		ID: t.a.ID.String(), Command: spec.Command, Script: spec.Script, Env: env, UID: t.a.UID, GID: t.a.GID, Groups: t.a.Groups,
		MilliCPU: int64(spec.CPUMilli), MemoryBytes: spec.MemoryBytes, Time: spec.Time, Grace: grace,
	}
}

// watch reports the start, passes on that it must end, and gives the outcome.
func (t *task) watch(p Process) Outcome {
	started := p.Started()
	for {
		if end, kill := t.fate(); kill {
			p.Kill()
		} else if end != None {
			p.Stop()
		}
		select {
		case <-started:
			started = nil
			t.s.tell(Outcome{ID: t.a.ID, PID: p.PID(), Reason: p.Note()})
		case <-t.woken:
		case <-p.Done():
			if started != nil && p.PID() != 0 {
				t.s.tell(Outcome{ID: t.a.ID, PID: p.PID(), Reason: p.Note()})
			}
			return t.outcome(p.Exit())
		}
	}
}

// outcome says how it ended. What had been told to end and did well all the same has done its work.
func (t *task) outcome(exit driver.Exit) Outcome {
	end, _ := t.fate()
	if end == None || end == Moved && exit.Code == 0 {
		end = Exited
	}
	return Outcome{ID: t.a.ID, End: end, Exit: exit.Code, Reason: exit.Reason}
}
