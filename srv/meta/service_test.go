package meta

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"missingos/srv/client"
	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/pki"
	"missingos/srv/replica"
	"missingos/srv/rpc"
	"missingos/storage/command"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// one is a cluster of one node in memory.
type one struct {
	*rpc.Local
	replica *replica.Memory
	ca      *pki.Authority
}

func (o *one) Conn(dc.NodeID) (grpc.ClientConnInterface, error) { return o.Local, nil }
func (o *one) Group(string) (dc.GroupID, error)                 { return dc.MetaGroup, nil }
func (o *one) Replicas(dc.GroupID) []dc.NodeID                  { return []dc.NodeID{1} }

func start(t *testing.T, cfg Config) (*one, *client.Meta) {
	t.Helper()
	o := unfounded(t, cfg)
	o.found(t)
	return o, o.client(1)
}

// unfounded is a meta group without its first command.
func unfounded(t *testing.T, cfg Config) *one {
	t.Helper()
	o := &one{Local: rpc.NewLocal()}
	cfg.Local = func() (replica.Replica, bool) { return o.replica, true }
	s := New(cfg)
	s.Kind().Register(o.Local)
	o.replica = replica.NewMemory(dc.MetaGroup, s.Kind())
	t.Cleanup(func() { o.replica.Close() })
	return o
}

func (o *one) found(t *testing.T) {
	t.Helper()
	var err error
	if o.ca, err = pki.NewAuthority("c1"); err != nil {
		t.Fatal(err)
	}
	cert, key, err := o.ca.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	init := &command.MetaInit{Cluster: "c1", CaCert: cert, CaKey: key, Node: &command.MetaNode{Id: 1, Name: "first", Address: "a:1"}}
	for range 2 { // it may be repeated
		if err := Bootstrap(t.Context(), o.replica, init); err != nil {
			t.Fatal(err)
		}
	}
}

// client is one that runs on node n.
func (o *one) client(n dc.NodeID) *client.Meta {
	return client.NewMeta(client.New(client.Config{Node: n, Nodes: o, Directory: o}))
}

func (o *one) join(t *testing.T, secret, name string) (*dcpb.JoinReply, error) {
	t.Helper()
	key, err := pki.CreateKey(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.NewRequest(key)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := o.client(1).Admit(t.Context(), &dcpb.JoinRequest{Csr: csr, Name: name, Address: name + ":1"}, pki.Hash([]byte(secret)))
	if err == nil {
		if _, err := pki.NewIdentity(reply.Cluster, dc.NodeID(reply.Node), name, key, reply.Certificate, reply.CaCertificate); err != nil {
			t.Errorf("the certificate does not serve: %v", err)
		}
	}
	return reply, err
}

func TestJoining(t *testing.T) {
	o, m := start(t, Config{})
	if _, err := m.MintToken(t.Context(), pki.Hash([]byte("s")), time.Minute); err != nil {
		t.Fatal(err)
	}
	if _, err := o.join(t, "wrong", "second"); !errors.Is(err, dc.Denied) {
		t.Errorf("a wrong token gave %v, want denied", err)
	}
	reply, err := o.join(t, "s", "second")
	if err != nil {
		t.Fatal(err)
	}
	if reply.Node != 2 || len(reply.Map.Nodes) != 2 || len(reply.Map.Groups) != 6 {
		t.Errorf("got node %d and a map of %d nodes and %d groups, want 2, 2, 6", reply.Node, len(reply.Map.Nodes), len(reply.Map.Groups))
	}
	if _, err := o.join(t, "s", "third"); !errors.Is(err, dc.Denied) {
		t.Errorf("a spent token gave %v, want denied", err)
	}
	if _, err := m.MintToken(t.Context(), pki.Hash([]byte("x")), 365*24*time.Hour); !errors.Is(err, dc.Invalid) {
		t.Errorf("a token for a year gave %v, want invalid", err)
	}
	user := dc.WithPrincipal(t.Context(), dc.Principal{UID: 1000})
	if _, err := m.MintToken(user, pki.Hash([]byte("x")), time.Minute); !errors.Is(err, dc.Denied) {
		t.Errorf("a user's token gave %v, want denied", err)
	}
}

// watch collects the map as Watch tells it until it satisfies done.
func (o *one) watch(ctx context.Context, t *testing.T, done func(*dcpb.MetaMap) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	stream, err := dcpb.NewMetaClient(o.Local).Watch(ctx, &dcpb.MetaWatchRequest{Header: &dcpb.Header{Principal: &dcpb.Principal{Node: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	for {
		reply, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if done(reply.Map) {
			return
		}
	}
}

func TestGroupsAreRaisedWhenNodesAreHeardOf(t *testing.T) {
	o, m := start(t, Config{DeadAfter: time.Minute})
	for i, name := range []string{"second", "third"} {
		secret := pki.Hash([]byte(name))
		if _, err := m.MintToken(t.Context(), secret, time.Minute); err != nil {
			t.Fatal(err)
		}
		reply, err := o.join(t, name, name)
		if err != nil || reply.Node != uint64(i+2) {
			t.Fatalf("join: %v, %v", reply, err)
		}
	}
	for n := dc.NodeID(1); n <= 3; n++ {
		if _, err := o.client(n).Heartbeat(t.Context(), &dcpb.MetaHeartbeatRequest{FreeBytes: 5, TotalBytes: 10}); err != nil {
			t.Fatal(err)
		}
	}
	raised := map[uint64]bool{}
	o.watch(t.Context(), t, func(m *dcpb.MetaMap) bool {
		for _, g := range m.Groups {
			raised[g.Id] = len(g.Nodes) == 3
		}
		for _, ok := range raised {
			if !ok {
				return false
			}
		}
		return len(raised) == 6
	})
	st, err := m.ClusterStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range st.Nodes {
		if n.State != "up" || n.TotalBytes != 10 {
			t.Errorf("node %s is %s with %d bytes, want up, 10", n.Name, n.State, n.TotalBytes)
		}
	}
	if err := m.RemoveNode(t.Context(), "third"); err != nil {
		t.Fatal(err)
	}
	o.watch(t.Context(), t, func(m *dcpb.MetaMap) bool {
		for _, g := range m.Groups {
			raised[g.Id] = len(g.Nodes) == 3
		}
		for _, still := range raised {
			if still {
				return false
			}
		}
		return true
	})
	reply, err := o.client(3).Heartbeat(t.Context(), &dcpb.MetaHeartbeatRequest{})
	if err != nil || !reply.Removed {
		t.Errorf("the removed node's heartbeat got %v, %v; want to be told", reply, err)
	}
}

func TestDescriptorsThroughTheClient(t *testing.T) {
	o, m := start(t, Config{})
	user := dc.WithPrincipal(t.Context(), dc.Principal{UID: 7, GID: 8})
	d, err := m.CreateDescriptor(user, "table", "users", 0o750)
	if err != nil {
		t.Fatal(err)
	}
	other := o.client(1) // with a cache of its own
	got, err := other.Descriptor(t.Context(), "table", "users")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, d); diff != "" {
		t.Error(diff)
	}
	if _, err := m.CreateDescriptor(user, "table", "users", 0); !errors.Is(err, dc.Exists) {
		t.Errorf("got %v, want exists", err)
	}
	stranger := dc.WithPrincipal(t.Context(), dc.Principal{UID: 9})
	if err := m.MarkDropping(stranger, "table", d.ID); !errors.Is(err, dc.Denied) {
		t.Errorf("a stranger's drop gave %v, want denied", err)
	}
	if err := m.MarkDropping(user, "table", d.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Descriptor(t.Context(), "table", "users"); !errors.Is(err, dc.NotFound) {
		t.Errorf("got %v, want not found", err)
	}
	for range 2 {
		if err := m.RemoveDescriptor(t.Context(), "table", d.ID); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := m.ListDescriptors(t.Context(), "table", "", 0); err != nil || len(all) != 0 {
		t.Errorf("got %v, %v; want none", all, err)
	}
}

func TestMarksOfNodes(t *testing.T) {
	_, m := start(t, Config{})
	if err := m.Drain(t.Context(), "first", true); err != nil {
		t.Fatal(err)
	}
	if err := m.Label(t.Context(), "n1", map[string]string{"rack": "r1"}); err != nil {
		t.Fatal(err)
	}
	if err := m.Drain(t.Context(), "nobody", true); !errors.Is(err, dc.NotFound) {
		t.Errorf("got %v, want not found", err)
	}
	if err := m.RemoveNode(t.Context(), "first"); !errors.Is(err, dc.Invalid) {
		t.Errorf("removing the last node gave %v, want invalid", err)
	}
	st, err := m.ClusterStatus(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(st.Nodes[0].Labels, map[string]string{"rack": "r1"}); diff != "" {
		t.Error(diff)
	}
}

// A request that comes before the cluster's first command waits for it; its first answer must not be its answer for ever.
func TestARequestBeforeTheFirstCommandIsAnsweredAfterIt(t *testing.T) {
	o := unfounded(t, Config{})
	minted := make(chan error, 1)
	go func() {
		_, err := o.client(1).MintToken(t.Context(), make([]byte, 32), time.Hour)
		minted <- err
	}()
	select {
	case err := <-minted:
		t.Fatalf("answered %v before there is a cluster", err)
	case <-time.After(50 * time.Millisecond):
	}
	o.found(t)
	if err := <-minted; err != nil {
		t.Error(err)
	}
}
