package node

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"missingos/fs"
	"missingos/fs/jobfs"
	"missingos/fs/kvfs"
	"missingos/fs/lockfs"
	"missingos/fs/nodefs"
	"missingos/fs/synth"
	"missingos/fs/topicfs"
	"missingos/scheduler/agent"
	"missingos/scheduler/driver"
	"missingos/srv/client"
	"missingos/srv/dc"
	"missingos/srv/job"
	"missingos/srv/kv"
	"missingos/srv/lock"
	"missingos/srv/meta"
	"missingos/srv/replica"
	"missingos/srv/topic"
)

// rooms are the services that this node offers and the trees that it shows.
type rooms struct {
	kinds    map[string]replica.Kind
	register []func(grpc.ServiceRegistrar) // services that belong to no kind of group
	run      []func(ctx context.Context)   // what a service does on every node
	closers  []closer                      // what must end while the node still serves, in the order of opening
	mount    fs.Config

	agent   *agent.Agent // nil: this node runs no tasks
	mounted *fs.Mounted
}

// openRooms makes every service, its client and its tree.
func (n *Node) openRooms() (*rooms, error) {
	r := &rooms{kinds: map[string]replica.Kind{}}
	door := synth.NewDoor(n.id.Node, n.log)
	r.mount = fs.Config{
		Mountpoint: n.cfg.Mount, Node: n.id.Node, Door: door, Rooms: map[string]synth.Dir{}, Stat: n.stat, Log: n.log,
	}

	n.openMeta(r)
	n.openLock(r)
	if err := n.openData(r); err != nil {
		return nil, err
	}
	n.openKV(r)
	n.openTopic(r)
	return r, n.openJobs(r)
}

func (n *Node) openMeta(r *rooms) {
	service := meta.New(meta.Config{
		Local: func() (replica.Replica, bool) { return n.replicas.local(dc.MetaGroup) },
		Known: n.directory.snapshot, DeadAfter: n.cfg.DeadAfter, Log: n.log,
	})
	r.kinds[dc.KindMeta] = service.Kind()
	r.mount.Rooms["nodes"] = nodefs.New(n.meta)
}

func (n *Node) openLock(r *rooms) {
	r.kinds[dc.KindLock] = lock.New(lock.Config{Log: n.log}).Kind()
	locks := client.NewLockWithTTL(n.client, n.cfg.SessionTTL)
	r.closers = append(r.closers, closer{"locks", locks.Close})
	r.mount.Rooms["lock"] = lockfs.New(locks)
	n.replicas.holds = locks.HeldUnder
}

func (n *Node) openKV(r *rooms) {
	r.kinds[dc.KindKV] = kv.New(kv.Config{
		Replicas: n.replicas, Descriptors: n.meta, Log: n.log,
		Expiry: func() error { return n.directory.allows(rowsExpire) }, Ranges: func() error { return n.directory.allows(kvRanges) },
	}).Kind()
	r.mount.Rooms["kv"] = kvfs.New(client.NewKV(n.client, n.meta))
}

func (n *Node) openTopic(r *rooms) {
	r.kinds[dc.KindTopic] = topic.New(topic.Config{
		Descriptors: n.meta, Log: n.log, Retention: func() error { return n.directory.allows(topicRetention) },
	}).Kind()
	r.mount.Rooms["topics"] = topicfs.New(client.NewTopics(n.client, n.meta))
}

// tasksDir holds what the tasks of this node write.
const tasksDir = "tasks"

func (n *Node) openJobs(r *rooms) error {
	r.kinds[dc.KindJobs] = job.New(job.Config{Replicas: n.replicas, Log: n.log}).Kind()
	jobs := client.NewJobs(n.client)
	r.mount.Rooms["jobs"] = jobfs.New(jobs)
	if len(n.cfg.Shim) == 0 {
		return nil
	}
	tree := n.cfg.Mount
	if n.cfg.NoMount {
		tree = ""
	}
	tasks, err := driver.New(driver.Config{Dir: filepath.Join(n.cfg.Dir, tasksDir), Shim: n.cfg.Shim, MountPoint: tree, Log: n.log})
	if err != nil {
		return err
	}
	n.closes("task driver", func(context.Context) error { return tasks.Close() })
	r.register = append(r.register, job.NewOutputs(tasks).Register)
	r.agent = agent.New(agent.Config{
		Offer: n.offer, Leader: jobs.Agent(), Start: agent.WithDriver(tasks), Draining: n.draining, Log: n.log,
	})
	r.run = append(r.run, func(ctx context.Context) {
		every(ctx, agent.PruneEvery, func() {
			if _, err := agent.Prune(tasks, time.Now()); err != nil {
				n.log.Warn("old output of tasks is not removed", "err", err)
			}
		})
	})
	return nil
}

// offer is what this machine has for tasks: all its cores, and its memory but for a tenth.
func (n *Node) offer() agent.Offer {
	o := agent.Offer{Name: n.id.Name, CPUMilli: runtime.NumCPU() * 1000, Labels: map[string]string{}}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err == nil {
		o.MemoryBytes = int64(uint64(info.Totalram) * uint64(info.Unit) / 10 * 9)
	}
	if rec, ok := n.directory.node(n.id.Node); ok {
		maps.Copy(o.Labels, rec.Labels)
	}
	maps.Copy(o.Labels, n.cfg.Labels) // the record may not have them yet
	maps.DeleteFunc(o.Labels, func(_, v string) bool { return v == "" })
	maps.Copy(o.Labels, map[string]string{"node": n.id.Name, "arch": runtime.GOARCH, "os": runtime.GOOS})
	return o
}

func (n *Node) draining() bool {
	rec, ok := n.directory.node(n.id.Node)
	return ok && rec.Drain
}

// runTasks begins to take tasks. They see the tree, so it comes after the mount, and they end before it does.
func (n *Node) runTasks(ctx context.Context) {
	if n.rooms.agent == nil {
		return
	}
	n.loops.Go(func() { n.rooms.agent.Run(ctx) })
	n.closes("tasks", n.rooms.agent.Close)
}

// every calls fn each period until ctx ends.
func every(ctx context.Context, period time.Duration, fn func()) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			fn()
		}
	}
}

// mount shows the tree.
func (n *Node) mount() error {
	m, err := fs.Mount(n.rooms.mount)
	if err != nil {
		return err
	}
	n.rooms.mounted = m
	n.closes("mount", m.Unmount)
	n.loops.Go(func() {
		<-m.Done()
		n.end(dc.Errorf(dc.Unavailable, "run", m.Path(), "the mount was taken away"))
	})
	return nil
}

func (n *Node) mountPath() string {
	if n.rooms.mounted == nil {
		return ""
	}
	return n.rooms.mounted.Path()
}

// stat is the content of /dc/.dc/stat.
func (n *Node) stat(ctx context.Context) ([]synth.Pair, error) {
	pairs := []synth.Pair{{Key: "cluster", Value: n.id.Cluster}, {Key: "node", Value: n.id.Name}, {Key: "version", Value: Version + " " + Commit}}
	st, err := n.meta.ClusterStatus(ctx)
	if err != nil {
		return nil, err
	}
	up := 0
	for _, node := range st.Nodes {
		if node.State == "up" {
			up++
		}
		pairs = append(pairs, synth.Pair{Key: "node." + node.Name, Value: fmt.Sprintf("%s %s free %d of %d", node.State, node.Address, node.FreeBytes, node.TotalBytes)})
	}
	for _, g := range st.Groups {
		pairs = append(pairs, synth.Pair{Key: "group." + g.Name, Value: fmt.Sprintf("leader %s term %d replicas %d", dc.NodeID(g.Leader), g.Term, len(g.Replicas))})
	}
	return append(pairs, synth.Pair{Key: "nodes_up", Value: up}), nil
}
