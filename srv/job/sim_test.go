package job_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"missingos/scheduler/agent"
	"missingos/scheduler/driver"
	"missingos/srv/client"
	"missingos/srv/dc"
	"missingos/srv/job"
	"missingos/srv/replica"
	"missingos/srv/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const group dc.GroupID = 3

// A cluster is the service over one replica in memory, with the agents of nodes that reach it through wires that can be cut. Processes are
// in memory; the cluster sees to it that no two of one task live at the same time.
type cluster struct {
	t     *testing.T
	rep   *replica.Memory
	local *rpc.Local
	start time.Time
	nodes []*node

	mu      sync.Mutex
	alive   map[string]*process // by job and task
	fences  map[string]string   // the last one of each
	started int
	life    func(t driver.Task) (time.Duration, int) // under mu: how long a task lives, and its exit status
}

func newCluster(t *testing.T, nodes int) *cluster {
	c := &cluster{
		t: t, local: rpc.NewLocal(), start: time.Now(), alive: map[string]*process{}, fences: map[string]string{},
		life: func(driver.Task) (time.Duration, int) { return time.Hour * 1000, 0 },
	}
	lazy := &lazyReplicas{}
	svc := job.New(job.Config{Replicas: lazy})
	kind := svc.Kind()
	kind.Register(c.local)
	c.rep = replica.NewMemory(group, kind)
	lazy.Replicas = c.rep
	t.Cleanup(c.rep.Close)
	for i := range nodes {
		c.nodes = append(c.nodes, c.node(dc.NodeID(i+1)))
	}
	time.Sleep(time.Second)
	synctest.Wait()
	return c
}

// lazyReplicas ties the service to a replica that is made from it.
type lazyReplicas struct{ replica.Replicas }

// A node is an agent, its wire, and a client that is not cut with it.
type node struct {
	name     string
	wire     *wire
	agent    *agent.Agent
	jobs     *client.Jobs
	draining atomic.Bool
}

type wire struct {
	grpc.ClientConnInterface
	cut atomic.Bool
}

func (w *wire) Conn(dc.NodeID) (grpc.ClientConnInterface, error) { return w, nil }
func (w *wire) Group(string) (dc.GroupID, error)                 { return group, nil }
func (w *wire) Replicas(dc.GroupID) []dc.NodeID                  { return []dc.NodeID{1} }

func (w *wire) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if w.cut.Load() {
		return dc.Errorf(dc.Unavailable, "", "", "the wire is cut")
	}
	err := w.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
	if w.cut.Load() {
		return dc.Errorf(dc.Unavailable, "", "", "the wire was cut")
	}
	return err
}

func (c *cluster) now() time.Duration { return time.Since(c.start) }

func (c *cluster) node(id dc.NodeID) *node {
	n := &node{name: id.String(), wire: &wire{ClientConnInterface: c.local}}
	whole := &wire{ClientConnInterface: c.local}
	n.jobs = client.NewJobs(client.New(client.Config{Node: id, Nodes: whole, Directory: whole}))
	n.agent = agent.New(agent.Config{
		Offer: func() agent.Offer {
			return agent.Offer{Name: n.name, CPUMilli: 1000, MemoryBytes: dc.GiB, Labels: map[string]string{"node": n.name, "arch": "amd64"}}
		},
		Leader: client.NewJobs(client.New(client.Config{Node: id, Nodes: n.wire, Directory: n.wire})).Agent(),
		Start:  c.run, Now: c.now, Draining: n.draining.Load,
	})
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { n.agent.Run(ctx) })
	c.t.Cleanup(func() {
		stop()
		running.Wait()
	})
	return n
}

// process is a task in memory, killed at the end of its lease like a shim does.
type process struct {
	c       *cluster
	task    string
	started chan struct{}
	done    chan struct{}
	once    sync.Once
	exit    driver.Exit
	lease   *time.Timer
	natural *time.Timer
}

func (c *cluster) run(t driver.Task, lease time.Duration) (agent.Process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	task := t.Env["DC_JOB"] + "/" + t.Env["DC_INDEX"]
	if c.alive[task] != nil {
		c.t.Errorf("at %s: %s starts on %s while it runs elsewhere", c.now(), t.ID, t.Env["DC_NODE"])
	}
	if fence := fmt.Sprintf("%20s", t.Env["DC_FENCE"]); fence <= c.fences[task] {
		c.t.Errorf("fence %s of %s after %s", fence, t.ID, c.fences[task])
	} else {
		c.fences[task] = fence
	}
	c.started++
	p := &process{c: c, task: task, started: make(chan struct{}), done: make(chan struct{})}
	close(p.started)
	c.alive[task] = p
	lives, code := c.life(t)
	p.lease = time.AfterFunc(lease-c.now(), func() { p.finish(driver.Exit{Code: 137, Fenced: true}) })
	p.natural = time.AfterFunc(lives, func() { p.finish(driver.Exit{Code: code, Reason: "done"}) })
	return p, nil
}

func (p *process) finish(e driver.Exit) {
	p.once.Do(func() {
		p.c.mu.Lock()
		delete(p.c.alive, p.task)
		p.c.mu.Unlock()
		p.exit = e
		p.lease.Stop()
		p.natural.Stop()
		close(p.done)
	})
}

func (p *process) Started() <-chan struct{}   { return p.started }
func (p *process) Done() <-chan struct{}      { return p.done }
func (p *process) PID() int                   { return 42 }
func (p *process) Note() string               { return "" }
func (p *process) Exit() driver.Exit          { return p.exit }
func (p *process) Extend(lease time.Duration) { p.lease.Reset(lease - p.c.now()) }
func (p *process) Kill()                      { p.finish(driver.Exit{Code: 137, Signal: 9}) }
func (p *process) Stop() {
	time.AfterFunc(200*time.Millisecond, func() { p.finish(driver.Exit{Code: 143, Signal: 15}) })
}

func (c *cluster) submit(format string, args ...any) string {
	c.t.Helper()
	ctx := dc.WithPrincipal(c.t.Context(), dc.Principal{UID: 1000, GID: 1000, Node: 1})
	name, err := c.nodes[0].jobs.Submit(ctx, fmt.Appendf(nil, format, args...))
	if err != nil {
		c.t.Fatal(err)
	}
	return name
}

func (c *cluster) job(name string) client.JobInfo {
	c.t.Helper()
	info, err := c.nodes[0].jobs.Job(c.t.Context(), name)
	if err != nil {
		c.t.Fatal(err)
	}
	return info
}

func (c *cluster) task(name string, index int) client.JobTask {
	c.t.Helper()
	task, err := c.nodes[0].jobs.Task(c.t.Context(), name, index)
	if err != nil {
		c.t.Fatal(err)
	}
	return task
}

// within waits for a condition, at most for the time given, and tells how long it took.
func (c *cluster) within(d time.Duration, what string, ok func() bool) time.Duration {
	c.t.Helper()
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if ok() {
			return time.Since(begin)
		}
		if time.Since(begin) > d {
			c.t.Fatalf("%s: not within %s", what, d)
		}
	}
}

func (c *cluster) running(name string) bool {
	info := c.job(name)
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for task := range c.alive {
		if len(task) > len(name) && task[:len(name)+1] == name+"/" {
			n++
		}
	}
	return info.Phase == "running" && info.Placed == info.Desired && n == int(info.Desired)
}

const service = "name: web\ntype: service\ncount: 4\ncpu: 0.1\ncommand: [serve]\n"

func TestTasksOfALostNodeRunElsewhereAfterItsLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		c.submit(service)
		c.within(time.Second, "start", func() bool { return c.running("web") })
		victim := c.task("web", 0).NodeName
		for _, n := range c.nodes {
			n.wire.cut.Store(n.name == victim)
		}
		took := c.within(30*time.Second, "elsewhere", func() bool { return c.task("web", 0).NodeName != victim && c.running("web") })
		if took < dc.SessionTTL-3*time.Second || took > dc.SessionTTL+2*time.Second {
			t.Errorf("took %s", took)
		}
		if got := c.task("web", 0); got.Attempt != 2 || got.Failures != 0 {
			t.Errorf("got %+v", got)
		}
	})
}

func TestALeaderChangeGivesEveryNodeAFullLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		c.submit(service)
		c.within(time.Second, "start", func() bool { return c.running("web") })
		before := c.started
		for range 5 { // shorter than the agents' leases; longer in sum
			c.rep.Resign()
			time.Sleep(4 * time.Second)
			c.rep.Lead()
			time.Sleep(3 * time.Second)
		}
		if c.started != before || !c.running("web") {
			t.Errorf("%d starts after %d", c.started, before)
		}
		c.rep.Resign()
		time.Sleep(time.Minute)
		if len(c.alive) != 0 {
			t.Errorf("%d tasks live without a lease", len(c.alive))
		}
		c.rep.Lead()
		c.within(30*time.Second, "back", func() bool { return c.running("web") })
	})
}

func TestDrainAndShutdownMoveTasks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		c.submit(service)
		c.within(time.Second, "start", func() bool { return c.running("web") })
		c.nodes[0].draining.Store(true)
		on := func(name string) bool {
			for i := range 4 {
				if c.task("web", i).NodeName != name {
					return false
				}
			}
			return c.running("web")
		}
		c.within(5*time.Second, "drained", func() bool { return on("n2") })
		c.nodes[0].draining.Store(false)
		time.Sleep(3 * time.Second)
		if err := c.nodes[1].agent.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := c.within(5*time.Second, "moved", func() bool { return on("n1") }); took > time.Second {
			t.Errorf("took %s", took)
		}
		if got := c.task("web", 0); got.Failures != 0 {
			t.Errorf("a move counts as a failure: %+v", got)
		}
	})
}

func TestRetriesAndLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		c.life = func(k driver.Task) (time.Duration, int) {
			if k.Env["DC_INDEX"] == "1" && k.Env["DC_ATTEMPT"] < "3" || k.Env["DC_JOB"] == "never" {
				return time.Second, 5
			}
			return time.Second, 0
		}
		c.submit("#!/bin/sh\n#dc name=twice array=0-2 retries=2\ntrue\n")
		c.submit("#!/bin/sh\n#dc name=never retries=1\ntrue\n")
		c.within(time.Minute, "end", func() bool { return c.job("twice").Over() && c.job("never").Over() })
		if j := c.job("twice"); j.Phase != "succeeded" || c.task("twice", 1).Attempt != 3 {
			t.Errorf("got %+v, %+v", j, c.task("twice", 1))
		}
		if j, k := c.job("never"), c.task("never", 0); j.Phase != "failed" || k.Attempt != 2 || k.Exit != 5 || k.Reason != "done" {
			t.Errorf("got %+v, %+v", j, k)
		}
	})
}

func TestWhatDoesNotFitWaitsAndSaysWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		c.life = func(driver.Task) (time.Duration, int) { return time.Minute, 0 }
		c.submit("#!/bin/sh\n#dc name=big array=0-3 cpu=0.6\ntrue\n")
		time.Sleep(2 * time.Second)
		if j := c.job("big"); j.Placed != 2 || j.Pending != 2 || j.Why == "" {
			t.Errorf("got %+v", j)
		}
		c.within(3*time.Minute, "end", func() bool { return c.job("big").Phase == "succeeded" })
	})
}

// TestNeverTwice plays random faults and wishes; the cluster itself reports two lives of one task. In the end all is healed, and what
// should run runs.
func TestNeverTwice(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { neverTwice(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func neverTwice(t *testing.T, rnd *rand.Rand) {
	c := newCluster(t, 4)
	lives := rand.New(rand.NewPCG(rnd.Uint64(), 2)) // guarded by c.mu, like life
	c.life = func(driver.Task) (time.Duration, int) {
		return time.Duration(lives.IntN(60_000)) * time.Millisecond, lives.IntN(2)
	}
	leading := true
	for range 150 {
		ctx, cancel := context.WithTimeout(dc.WithPrincipal(t.Context(), dc.Principal{UID: 1000, Node: 1}), 100*time.Millisecond)
		n := c.nodes[rnd.IntN(len(c.nodes))]
		name := []string{"a", "b", "web"}[rnd.IntN(3)]
		switch rnd.IntN(9) {
		case 0, 1:
			n.wire.cut.Store(true)
		case 2, 3:
			n.wire.cut.Store(false)
		case 4:
			if leading = !leading; leading {
				c.rep.Lead()
			} else {
				c.rep.Resign()
			}
		case 5:
			n.draining.Store(!n.draining.Load())
		case 6:
			_, _ = n.jobs.Submit(ctx, fmt.Appendf(nil, "#!/bin/sh\n#dc name=%s array=0-%d cpu=0.2 retries=3\ntrue\n", name, rnd.IntN(6)))
		case 7:
			_ = n.jobs.Control(ctx, name, []string{"stop", "kill", "restart", "start"}[rnd.IntN(4)], 0)
		case 8:
			_, _ = n.jobs.Submit(ctx, []byte(service))
		}
		cancel()
		time.Sleep(time.Duration(rnd.IntN(8000)) * time.Millisecond)
	}
	if !leading {
		c.rep.Lead()
	}
	for _, n := range c.nodes {
		n.wire.cut.Store(false)
		n.draining.Store(false)
	}
	c.mu.Lock()
	c.life = func(driver.Task) (time.Duration, int) { return 2 * time.Hour, 0 }
	c.mu.Unlock()
	time.Sleep(time.Minute)
	c.submit(service)
	c.within(5*time.Minute, "the service runs", func() bool { return c.running("web") })
	if c.started < 20 {
		t.Errorf("only %d starts: the faults leave nothing to see", c.started)
	}
}
