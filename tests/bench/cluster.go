package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"missingos/srv/client"
	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/pki"
)

// remote is how the benchmark's client finds and reaches the nodes, speaking as node 1.
type remote struct {
	id     *pki.Identity
	status *dcpb.AdminStatusReply

	mu    sync.Mutex
	conns map[dc.NodeID]*grpc.ClientConn
}

var (
	_ client.Nodes     = (*remote)(nil)
	_ client.Directory = (*remote)(nil)
)

// dial makes a client; close it after use.
func (b *bench) dial(ctx context.Context) (*client.Client, *remote, error) {
	id, err := pki.LoadIdentity(b.cluster.NodeDir(1))
	if err != nil {
		return nil, nil, err
	}
	st, err := b.status(ctx, 1)
	if err != nil {
		return nil, nil, err
	}
	r := &remote{id: id, status: st, conns: map[dc.NodeID]*grpc.ClientConn{}}
	return client.New(client.Config{Node: id.Node, Nodes: r, Directory: r}), r, nil
}

// status asks node n how the cluster is.
func (b *bench) status(ctx context.Context, n int) (*dcpb.AdminStatusReply, error) {
	cc, err := grpc.NewClient("unix://"+b.cluster.Socket(n), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer cc.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return dcpb.NewAdminClient(cc).Status(ctx, &dcpb.AdminStatusRequest{})
}

// leader is the number of the node that leads a group.
func (b *bench) leader(ctx context.Context, group string) (int, error) {
	st, err := b.status(ctx, 1)
	if err != nil {
		return 0, err
	}
	for _, g := range st.Groups {
		if g.Name == group && g.Leader != 0 {
			return int(g.Leader), nil
		}
	}
	return 0, fmt.Errorf("nobody leads %s", group)
}

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
	if cc := r.conns[n]; cc != nil {
		return cc, nil
	}
	for _, node := range r.status.Nodes {
		if node.Id == uint64(n) {
			cc, err := grpc.NewClient("passthrough:///"+node.Address, grpc.WithTransportCredentials(credentials.NewTLS(r.id.Client(n))))
			if err != nil {
				return nil, err
			}
			r.conns[n] = cc
			return cc, nil
		}
	}
	return nil, dc.Errorf(dc.Unavailable, "connect", n.String(), "no such node")
}

func (r *remote) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, cc := range r.conns {
		_ = cc.Close()
	}
}

// usage is the processor time and memory of the daemons.
type usage struct {
	cpu time.Duration
	rss int64
}

func (b *bench) usage() (u usage, err error) {
	for _, n := range b.cluster.List() {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.PID))
		if err != nil {
			return u, err
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		f := strings.Fields(rest)
		user, _ := strconv.Atoi(f[11])
		system, _ := strconv.Atoi(f[12])
		pages, _ := strconv.Atoi(f[21])
		u.cpu += time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100 on Linux
		u.rss += int64(pages * os.Getpagesize())
	}
	return u, nil
}

// idle: the cluster with nothing to do.
func idle(ctx context.Context, b *bench) error {
	const settle, watch = 5 * time.Second, 10 * time.Second
	if err := sleep(ctx, settle); err != nil {
		return err
	}
	before, err := b.usage()
	if err != nil {
		return err
	}
	if err := sleep(ctx, watch); err != nil {
		return err
	}
	after, err := b.usage()
	if err != nil {
		return err
	}
	b.table.figure("idle", "processor, all nodes", fmt.Sprintf("%.1f%%", 100*float64(after.cpu-before.cpu)/float64(watch)), "of one core")
	b.table.figure("idle", "memory (RSS), all nodes", fmt.Sprintf("%d MiB", after.rss>>20), "")
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
