package job

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"missingos/scheduler"
	"missingos/scheduler/jobspec"
	"missingos/srv/dc"
	"missingos/srv/replica"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/job"
)

const (
	leaseCheck = 500 * time.Millisecond // how often the leader looks for leases that have ended
	retryPause = 500 * time.Millisecond // after a plan that could not be committed
)

// A term is what this node knows while it leads: it begins with every node holding a full lease.
type term struct {
	replica replica.Replica
	log     *slog.Logger
	place   chan struct{} // holds a token when there may be something to place

	mu     sync.Mutex
	leases map[dc.NodeID]lease
	jobs   map[string]chan struct{} // closed when the job changes
	nodes  map[dc.NodeID]chan struct{}
}

type lease struct {
	epoch  uint64
	until  time.Time
	ending bool // its end is proposed: it is not renewed any more
}

// lead runs a term: leases and placement.
func (s *Service) lead(ctx context.Context, r replica.Replica) {
	t := &term{
		replica: r, log: s.cfg.Log.With("group", r.Group().String()), place: make(chan struct{}, 1), leases: map[dc.NodeID]lease{},
		jobs: map[string]chan struct{}{}, nodes: map[dc.NodeID]chan struct{}{},
	}
	if err := t.begin(); err != nil {
		t.log.Warn("the term does not begin", "err", err)
		return
	}
	s.mu.Lock()
	s.terms[r.Group()] = t
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.terms, r.Group())
		s.mu.Unlock()
	}()
	var wg sync.WaitGroup
	wg.Go(func() { t.keepLeases(ctx) })
	wg.Go(func() { t.placeTasks(ctx) })
	wg.Wait()
}

// begin gives every live node a full lease.
func (t *term) begin() error {
	t.wakePlacer()
	return t.replica.Local(func(rd storage.Reader) error {
		for _, n := range job.Nodes(rd) {
			if n.Live {
				t.leases[dc.NodeID(n.Id)] = lease{epoch: n.Epoch, until: time.Now().Add(dc.SessionTTL)}
			}
		}
		return nil
	})
}

// renew extends a node's lease from now on. It does not if the end of that lease is on its way to the log: the node must not be told
// that it still has what another node is about to get.
func (t *term) renew(n dc.NodeID, epoch uint64) (renewed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.leases[n]
	if l.epoch > epoch || l.epoch == epoch && l.ending {
		return false
	}
	t.leases[n] = lease{epoch: epoch, until: time.Now().Add(dc.SessionTTL)}
	return true
}

// keepLeases ends leases that were not renewed in time.
func (t *term) keepLeases(ctx context.Context) {
	tick := time.NewTicker(leaseCheck)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		for n, l := range t.ended(time.Now()) {
			t.log.Warn("node lost", "node", n.String(), "epoch", l.epoch)
			once, cancel := context.WithTimeout(ctx, dc.OpTimeout)
			_, err := t.do(once, t.replica.NewID(), &command.JobExpire{Node: uint64(n), Epoch: l.epoch})
			cancel()
			if err != nil {
				t.log.Warn("the end of a lease is not recorded; it is tried again", "node", n.String(), "err", err)
				continue
			}
			t.mu.Lock()
			if t.leases[n] == l {
				delete(t.leases, n)
			}
			t.mu.Unlock()
		}
	}
}

func (t *term) ended(now time.Time) map[dc.NodeID]lease {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[dc.NodeID]lease{}
	for n, l := range t.leases {
		if now.After(l.until) {
			l.ending = true
			t.leases[n] = l
			out[n] = l
		}
	}
	return out
}

func (t *term) wakePlacer() {
	select {
	case t.place <- struct{}{}:
	default:
	}
}

// placeTasks runs the scheduler whenever something may have become possible.
func (t *term) placeTasks(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-t.place:
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		for {
			more, next, err := t.placeOnce(ctx)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				t.log.Warn("plan not committed; it is tried again", "err", err)
				timer.Reset(retryPause)
				break
			}
			if !more {
				timer.Reset(next)
				break
			}
		}
	}
}

// placeOnce makes and commits one plan. more tells that there may be more to place at once; next is when the next delayed task may be placed.
func (t *term) placeOnce(ctx context.Context) (more bool, next time.Duration, err error) {
	var wanting []job.Waiting
	var nodes []*command.JobNode
	now := t.replica.Clock()
	nextMs := int64(0)
	err = t.replica.Local(func(rd storage.Reader) error {
		wanting, nextMs = job.Wanting(rd, now, job.MaxPlan)
		if len(wanting) > 0 {
			nodes = job.Nodes(rd)
		}
		return nil
	})
	next = time.Hour
	if nextMs > 0 {
		next = max(time.Duration(nextMs-now)*time.Millisecond, 10*time.Millisecond)
	}
	if err != nil || len(wanting) == 0 {
		return false, next, err
	}
	plan, tasks := makePlan(wanting, nodes)
	if len(plan.Placements) == 0 && len(plan.Whys) == 0 {
		return false, next, nil
	}
	once, cancel := context.WithTimeout(ctx, dc.OpTimeout)
	defer cancel()
	res, err := t.do(once, t.replica.NewID(), plan)
	if err != nil {
		return false, next, err
	}
	return tasks == job.MaxPlan && res.Placed > 0, next, nil
}

// makePlan asks the scheduler; tasks is how many wanted a place.
func makePlan(wanting []job.Waiting, nodes []*command.JobNode) (plan *command.JobPlan, tasks int) {
	ids := map[string]uint64{}
	var asks []scheduler.Ask
	for _, w := range wanting {
		spec, err := jobspec.Parse(w.Job.Spec)
		if err != nil {
			continue // accepted by another version; it stays pending and says so
		}
		a := ask(w.Job.Name, spec)
		for _, i := range w.Tasks {
			a.Tasks = append(a.Tasks, int(i))
		}
		for n := range w.Failed {
			a.Avoid[dc.NodeID(n)] = true
		}
		ids[w.Job.Name] = w.Job.Id
		tasks += len(a.Tasks)
		asks = append(asks, a)
	}
	placed := scheduler.Process(asks, snapshot(nodes))
	plan = &command.JobPlan{}
	for _, p := range placed.Placements {
		plan.Placements = append(plan.Placements, &command.JobPlacement{Job: ids[p.Job], Task: uint32(p.Task), Node: uint64(p.Node)})
	}
	whys := map[string]string{}
	for _, u := range placed.Unplaced {
		whys[u.Job] = u.Text
	}
	for _, w := range wanting {
		if text := whys[w.Job.Name]; text != w.Job.Why {
			plan.Whys = append(plan.Whys, &command.JobWhy{Job: w.Job.Id, Text: text})
		}
	}
	return plan, tasks
}

func ask(name string, s *jobspec.Spec) scheduler.Ask {
	return scheduler.Ask{
		Job: name, CPUMilli: s.CPUMilli, MemoryBytes: s.MemoryBytes, Constraints: s.Constraints, Priority: s.Priority, Avoid: map[dc.NodeID]bool{},
	}
}

func snapshot(nodes []*command.JobNode) []scheduler.Node {
	out := make([]scheduler.Node, len(nodes))
	for i, n := range nodes {
		out[i] = scheduler.Node{
			ID: dc.NodeID(n.Id), Name: n.Name, Labels: n.Labels, Ready: n.Live && !n.Draining, CPUMilli: int(n.CpuMilli), Memory: n.MemoryBytes,
			FreeMilli: int(n.CpuMilli) - int(n.UsedMilli), FreeBytes: n.MemoryBytes - n.UsedBytes,
		}
	}
	return out
}

// wakeJob and wakeNode let those go on that wait for news; jobNews and nodeNews are what they wait on. A channel is taken before the
// state is read, so no change is missed.
func (t *term) wakeJob(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ch := t.jobs[name]; ch != nil {
		close(ch)
		delete(t.jobs, name)
	}
}

func (t *term) wakeNode(n dc.NodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if ch := t.nodes[n]; ch != nil {
		close(ch)
		delete(t.nodes, n)
	}
}

// wakeNodes lets every node look.
func (t *term) wakeNodes() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for n, ch := range t.nodes {
		close(ch)
		delete(t.nodes, n)
	}
}

func (t *term) jobNews(name string) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.jobs[name] == nil {
		t.jobs[name] = make(chan struct{})
	}
	return t.jobs[name]
}

func (t *term) nodeNews(n dc.NodeID) <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.nodes[n] == nil {
		t.nodes[n] = make(chan struct{})
	}
	return t.nodes[n]
}
