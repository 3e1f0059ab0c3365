package consensus

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"missingos/consensus/logstore"
	"missingos/consensus/transport"
	"missingos/srv/dc"
)

// journal is a state machine that keeps every command it applied, in order.
type journal struct {
	mu      sync.Mutex
	State   journalState
	restore int // how often it was replaced by a snapshot
	applied func()
	past    map[dc.Index][]byte // states to go on from, if not nil
	marks   map[dc.Index]Digest // after entries without commands
	broken  func()              // if set, the first stream of a Restore breaks, and this is called before the next
	queued  atomic.Bool
}

type journalState struct {
	Index    dc.Index
	Clock    int64
	Commands []string
}

func (j *journal) Apply(entries []Entry) [][]Result {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.applied != nil {
		j.applied()
	}
	out := make([][]Result, len(entries))
	for i, e := range entries {
		if e.Index <= j.State.Index {
			continue
		}
		if e.Clock < j.State.Clock {
			panic("the clock went back")
		}
		for _, c := range e.Commands {
			j.State.Commands = append(j.State.Commands, string(c))
			out[i] = append(out[i], Result{Body: fmt.Appendf(nil, "%d", len(j.State.Commands))})
		}
		j.State.Index, j.State.Clock = e.Index, e.Clock
		if len(e.Commands) == 0 {
			j.markLocked()
		}
		if j.past != nil {
			j.past[e.Index], _ = json.Marshal(j.State)
		}
	}
	return out
}

func (j *journal) Applied() dc.Index { j.mu.Lock(); defer j.mu.Unlock(); return j.State.Index }
func (j *journal) Clock() int64      { j.mu.Lock(); defer j.mu.Unlock(); return j.State.Clock }
func (j *journal) Checkpoint() error { return nil }

func (j *journal) Queued() bool { return j.queued.Load() }

func (j *journal) Hold(at, _ dc.Index) (HeldState, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if b, ok := j.past[at]; ok {
		return heldJournal{b, at}, nil
	}
	if at != 0 && at != j.State.Index {
		return nil, dc.Errorf(dc.Stale, "hold", "", "only the last state is here")
	}
	b, err := json.Marshal(j.State)
	return heldJournal{b, j.State.Index}, err
}

type heldJournal struct {
	state []byte
	index dc.Index
}

func (h heldJournal) Index() dc.Index { return h.index }

func (h heldJournal) WriteSnapshot(_ context.Context, p Pull, w io.Writer) error {
	if p.Format != 3 {
		return fmt.Errorf("format %d is asked for", p.Format)
	}
	_, err := w.Write(h.state[len(p.After):]) // what was received itself says where to go on
	return err
}

func (heldJournal) Release() {}

func (j *journal) Restore(ctx context.Context, _ dc.Index, fetch Fetch) error {
	p := Pull{Format: 3}
	r, err := fetch(ctx, p)
	if err == nil && j.broken != nil {
		p.After = make([]byte, 100)
		if _, err := io.ReadFull(r, p.After); err != nil {
			return err
		}
		if _, err := fmt.Sscanf(string(p.After), `{"Index":%d,`, &p.At); err != nil {
			return err
		}
		r.Close()
		j.broken()
		r, err = fetch(ctx, p)
	}
	if err != nil {
		return err
	}
	defer r.Close()
	var s journalState
	if err := json.NewDecoder(io.MultiReader(bytes.NewReader(p.After), r)).Decode(&s); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.State = s
	j.restore++
	return nil
}

func (j *journal) restored() int { j.mu.Lock(); defer j.mu.Unlock(); return j.restore }

func (j *journal) commands() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]string(nil), j.State.Commands...)
}

// cluster is n nodes on loopback in one process, each with one group.
type cluster struct {
	t     *testing.T
	dir   string
	time  Timing
	mu    sync.Mutex
	nodes map[dc.NodeID]*member
	log   func(logstore.Config) (logstore.Store, error)                                  // opens logs, if set
	wrap  func(from, to dc.NodeID, cc grpc.ClientConnInterface) grpc.ClientConnInterface // stands between nodes, if set
}

type member struct {
	host    *Host
	group   *Group
	machine *journal
	server  *grpc.Server
	served  chan struct{}
	conns   map[dc.NodeID]*grpc.ClientConn
	addr    string
}

const testGroup dc.GroupID = 9

// fast makes elections quick enough for tests.
var fast = Timing{Heartbeat: 400 * time.Millisecond, Commit: 50 * time.Millisecond}

func newCluster(t *testing.T, n int, timing Timing) *cluster {
	t.Helper()
	return newClusterOn(t, n, timing, nil)
}

// newClusterOn is newCluster with logs that the caller opens.
func newClusterOn(t *testing.T, n int, timing Timing, log func(logstore.Config) (logstore.Store, error)) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), time: timing, nodes: map[dc.NodeID]*member{}, log: log}
	var all []dc.NodeID
	for i := range n {
		all = append(all, dc.NodeID(i+1))
	}
	for _, id := range all {
		c.start(id, &journal{}, all)
	}
	t.Cleanup(c.stopAll)
	return c
}

func (c *cluster) stopAll() {
	for id := range c.nodes {
		c.stop(id)
	}
}

// stand makes a node stand for election at once.
func (c *cluster) stand(id dc.NodeID) {
	c.t.Helper()
	for n, m := range c.nodes {
		if n == id {
			continue
		}
		cc, err := c.dial(m, id)
		if err == nil {
			_, err = transport.NewRaftClient(cc).TimeoutNow(c.t.Context(), &transport.TimeoutNowRequest{From: uint64(n), Group: uint64(testGroup)})
		}
		if err != nil {
			c.t.Fatal(err)
		}
		return
	}
}

func (c *cluster) start(id dc.NodeID, machine *journal, bootstrap []dc.NodeID) *member {
	c.t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	m := &member{machine: machine, server: grpc.NewServer(), served: make(chan struct{}), conns: map[dc.NodeID]*grpc.ClientConn{}, addr: lis.Addr().String()}
	m.host = NewHost(HostConfig{Node: id, Timing: c.time, LogDir: filepath.Join(c.dir, id.String(), "log"), OpenLog: c.log, Fatal: func(err error) { c.t.Errorf("node %s: fatal: %v", id, err) }, Dial: func(n dc.NodeID) (grpc.ClientConnInterface, error) {
		cc, err := c.dial(m, n)
		c.mu.Lock()
		wrap := c.wrap
		c.mu.Unlock()
		if err != nil || wrap == nil {
			return cc, err
		}
		return wrap(id, n, cc), nil
	}})
	m.host.Register(m.server)
	c.mu.Lock()
	c.nodes[id] = m
	c.mu.Unlock()
	go func() { defer close(m.served); _ = m.server.Serve(lis) }()
	m.group, err = m.host.Open(GroupConfig{ID: testGroup, Dir: filepath.Join(c.dir, id.String()), Machine: machine, Bootstrap: bootstrap})
	if err != nil {
		c.t.Fatal(err)
	}
	return m
}

func (c *cluster) dial(from *member, n dc.NodeID) (*grpc.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	to, ok := c.nodes[n]
	if !ok {
		return nil, fmt.Errorf("node %s is down", n)
	}
	if cc, ok := from.conns[n]; ok && cc.Target() == to.addr {
		return cc, nil
	}
	cc, err := grpc.NewClient(to.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err == nil {
		if old := from.conns[n]; old != nil {
			old.Close()
		}
		from.conns[n] = cc
	}
	return cc, err
}

// stop ends a node without handing over anything, as a crash would look to the others.
func (c *cluster) stop(id dc.NodeID) *journal {
	c.t.Helper()
	c.mu.Lock()
	m := c.nodes[id]
	delete(c.nodes, id)
	c.mu.Unlock()
	m.server.Stop()
	<-m.served
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := m.host.Close(ended); err != nil {
		c.t.Errorf("close %s: %v", id, err)
	}
	for _, cc := range m.conns {
		cc.Close()
	}
	return m.machine
}

// leader waits for a ready leader.
func (c *cluster) leader() (dc.NodeID, *member) {
	c.t.Helper()
	var id dc.NodeID
	var found *member
	eventually(c.t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for n, m := range c.nodes {
			if m.group != nil && m.group.IsLeader() {
				id, found = n, m
				return true
			}
		}
		return false
	})
	return id, found
}

// propose proposes until it is acknowledged.
func (c *cluster) propose(cmd string) {
	c.t.Helper()
	eventually(c.t, func() bool {
		_, m := c.leader()
		ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Second)
		defer cancel()
		_, err := m.group.Propose(ctx, []byte(cmd))
		return err == nil
	})
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatal("not so within 20 s")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// ownLog is a log for one group alone.
type ownLog struct {
	logstore.Store
	shared *logstore.Shared
}

func (ownLog) IsMonotonic() bool { return true }
func (o ownLog) Close() error    { return o.shared.Close() }

func openOwnLog(cfg logstore.Config) (logstore.Store, error) {
	fs, err := logstore.OpenFS(filepath.Join(cfg.Dir, "log"))
	if err != nil {
		return nil, err
	}
	s, err := logstore.OpenShared(logstore.SharedConfig{FS: fs, Fatal: cfg.Fatal})
	if err != nil {
		return nil, err
	}
	return ownLog{s.Open(cfg.Group), s}, nil
}
