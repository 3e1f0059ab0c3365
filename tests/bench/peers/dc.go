package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"missingos/ctl"
	"missingos/ctl/local"
	"missingos/srv/client"
	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/pki"
	"missingos/srv/rpc"
)

// missing is a local cluster of three dcd.
type missing struct {
	cluster *local.Cluster
	args    []string // more for `dcd run`
}

var _ store = (*missing)(nil)

func (m *missing) name() string { return "dcd" }

func (m *missing) up(ctx context.Context, dir string) (err error) {
	if m.cluster, err = ctl.LocalCluster(&ctl.Env{Stderr: os.Stderr, Dir: dir, Mount: filepath.Join(dir, "dc")}, 3, m.args...); err != nil {
		return err
	}
	return m.cluster.Up(ctx)
}

func (m *missing) down(ctx context.Context) error { return m.cluster.Down(ctx) }

func (m *missing) processes() (pids []int) {
	for _, n := range m.cluster.List() {
		if n.PID != 0 {
			pids = append(pids, n.PID)
		}
	}
	return pids
}

func (m *missing) leader(ctx context.Context) (int, error) {
	st, err := m.status(ctx)
	if err != nil {
		return 0, err
	}
	for _, g := range st.Groups {
		if g.Name == client.LockGroup && g.Leader != 0 {
			return int(g.Leader), nil
		}
	}
	return 0, fmt.Errorf("nobody leads the lock group")
}

func (m *missing) kill(ctx context.Context, n int) error  { return m.cluster.Kill(ctx, n) }
func (m *missing) start(ctx context.Context, n int) error { return m.cluster.Start(ctx, n) }

// status asks a node that runs how the cluster is.
func (m *missing) status(ctx context.Context) (st *dcpb.AdminStatusReply, err error) {
	for _, n := range m.cluster.List() {
		if n.PID == 0 {
			continue
		}
		if st, err = m.ask(ctx, n.N); err == nil {
			return st, nil
		}
	}
	return nil, fmt.Errorf("no node answers: %w", err)
}

func (m *missing) ask(ctx context.Context, n int) (*dcpb.AdminStatusReply, error) {
	cc, err := grpc.NewClient("unix://"+m.cluster.Socket(n), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer cc.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return dcpb.NewAdminClient(cc).Status(ctx, &dcpb.AdminStatusRequest{})
}

func (m *missing) dial(ctx context.Context, _ bool) (caller, error) {
	id, err := pki.LoadIdentity(m.cluster.NodeDir(1))
	if err != nil {
		return nil, err
	}
	st, err := m.status(ctx)
	if err != nil {
		return nil, err
	}
	r := &remote{id: id, status: st, conns: map[dc.NodeID]connection{}}
	return &missingCaller{l: client.NewLock(client.New(client.Config{Node: id.Node, Nodes: r, Directory: r})), r: r}, nil
}

// remote is how the client finds and reaches the nodes, speaking as node 1.
type remote struct {
	id     *pki.Identity
	status *dcpb.AdminStatusReply

	mu    sync.Mutex
	conns map[dc.NodeID]connection
}

// connection is what a node has to another.
type connection struct {
	under *grpc.ClientConn
	*rpc.Mux
}

var (
	_ client.Nodes     = (*remote)(nil)
	_ client.Directory = (*remote)(nil)
)

func (r *remote) Group(name string) (dc.GroupID, error) {
	for _, g := range r.status.Groups {
		if g.Name == name {
			return dc.GroupID(g.Id), nil
		}
	}
	return 0, dc.Errorf(dc.NotFound, "group", name, "")
}

func (r *remote) Replicas(id dc.GroupID) []dc.NodeID {
	var out []dc.NodeID
	for _, g := range r.status.Groups {
		if g.Id == uint64(id) {
			for _, x := range g.Replicas {
				out = append(out, dc.NodeID(x.Node))
			}
		}
	}
	return out
}

func (r *remote) Conn(n dc.NodeID) (grpc.ClientConnInterface, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c, ok := r.conns[n]; ok {
		return c, nil
	}
	for _, node := range r.status.Nodes {
		if node.Id == uint64(n) {
			cc, err := grpc.NewClient("passthrough:///"+node.Address, grpc.WithTransportCredentials(credentials.NewTLS(r.id.Client(n))))
			if err != nil {
				return nil, err
			}
			r.conns[n] = connection{cc, rpc.NewMux(cc)}
			return r.conns[n], nil
		}
	}
	return nil, dc.Errorf(dc.Unavailable, "connect", n.String(), "no such node")
}

type missingCaller struct {
	l *client.Lock
	r *remote
}

func (m *missingCaller) mkdir(ctx context.Context, dir string) error {
	_, err := m.l.Mkdir(ctx, dir, 0o755)
	if dc.KindOf(err) == dc.Exists {
		err = nil
	}
	return err
}

func (m *missingCaller) put(ctx context.Context, path string, value []byte) error {
	_, err := m.l.Put(ctx, path, client.LockPut{Value: value})
	return err
}

func (m *missingCaller) get(ctx context.Context, path string) error {
	_, err := m.l.Read(ctx, path)
	return err
}

func (m *missingCaller) lock(ctx context.Context, path string) error {
	x, err := m.l.Acquire(ctx, path, true, true)
	if err != nil {
		return err
	}
	return x.Release(ctx)
}

func (m *missingCaller) watch(ctx context.Context, dir string, ready chan<- struct{}, fn func([]byte)) error {
	var once sync.Once
	err := m.l.Watch(ctx, client.LockWatch{Path: dir, Recursive: true}, func(rev client.LockRevision) error {
		once.Do(func() { close(ready) })
		for _, ev := range rev.Events {
			if ev.Kind == "put" {
				fn(ev.File.Value)
			}
		}
		return nil
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (m *missingCaller) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = m.l.Close(ctx)
	m.r.mu.Lock()
	defer m.r.mu.Unlock()
	for _, c := range m.r.conns {
		_ = c.under.Close()
		c.Close()
	}
}
