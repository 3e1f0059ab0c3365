package cluster

import (
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"missingos/srv/client"
	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/pki"
	"missingos/srv/rpc"
)

// outsider is how a client in a process of its own reaches the nodes: with the key of one of them, over sockets, by what it knew of the cluster when it
// started.
type outsider struct {
	id     *pki.Identity
	status *dcpb.MetaStatusReply

	mu    sync.Mutex
	conns map[dc.NodeID]*rpc.Mux
	under []*grpc.ClientConn
}

var (
	_ client.Nodes     = (*outsider)(nil)
	_ client.Directory = (*outsider)(nil)
)

// outsider gives a client that speaks as node i and outlives it. It is closed with the test, and before the cluster.
func (c *Cluster) outsider(i int) *client.Client {
	c.t.Helper()
	id, err := pki.LoadIdentity(c.nodes[i-1].dir)
	if err != nil {
		c.t.Fatal(err)
	}
	st, err := c.Meta(i).ClusterStatus(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	o := &outsider{id: id, status: st, conns: map[dc.NodeID]*rpc.Mux{}}
	c.t.Cleanup(o.close)
	return client.New(client.Config{Node: id.Node, Nodes: o, Directory: o})
}

func (o *outsider) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, cc := range o.under {
		_ = cc.Close()
	}
	for _, m := range o.conns {
		m.Close()
	}
}

func (o *outsider) Group(name string) (dc.GroupID, error) {
	for _, g := range o.status.Groups {
		if g.Name == name {
			return dc.GroupID(g.Id), nil
		}
	}
	return 0, dc.Errorf(dc.NotFound, "group", name, "")
}

func (o *outsider) Replicas(id dc.GroupID) (nodes []dc.NodeID) {
	for _, g := range o.status.Groups {
		if g.Id == uint64(id) {
			for _, n := range o.status.Nodes {
				nodes = append(nodes, dc.NodeID(n.Id))
			}
		}
	}
	return nodes
}

func (o *outsider) Conn(n dc.NodeID) (grpc.ClientConnInterface, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if m := o.conns[n]; m != nil {
		return m, nil
	}
	for _, node := range o.status.Nodes {
		if node.Id == uint64(n) {
			cc, err := grpc.NewClient("passthrough:///"+node.Address, grpc.WithTransportCredentials(credentials.NewTLS(o.id.Client(n))))
			if err != nil {
				return nil, err
			}
			o.under, o.conns[n] = append(o.under, cc), rpc.NewMux(cc)
			return o.conns[n], nil
		}
	}
	return nil, dc.Errorf(dc.Unavailable, "connect", n.String(), "no such node")
}
