package client

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

// descriptorTTL is how long a found descriptor is believed without asking again. A stale one is harmless: a dropped table's group answers
// dc.NotFound for its id, and the caller then calls Forget.
const descriptorTTL = time.Second

// maxDescriptors bounds the cache of descriptors; at the bound it is emptied.
const maxDescriptors = 4096

// Descriptor names a table or topic.
type Descriptor struct {
	Kind    string // "table", "topic"
	Name    string
	ID      uint64 // never used again
	Group   dc.GroupID
	State   string // "ready", "dropping"
	Created time.Time
	UID     uint32
	GID     uint32
	Mode    uint32
}

// Meta is the client of the meta group: descriptors of tables and topics, marks of nodes. It is safe for concurrent use.
type Meta struct {
	c *Client

	mu    sync.Mutex
	cache map[descriptorName]cachedDescriptor
}

type descriptorName struct{ kind, name string }

type cachedDescriptor struct {
	Descriptor
	until time.Time
}

// NewMeta makes the meta group's client.
func NewMeta(c *Client) *Meta {
	return &Meta{c: c, cache: map[descriptorName]cachedDescriptor{}}
}

// CreateDescriptor names a new table or topic for the caller; dc.Exists if the name is taken.
func (m *Meta) CreateDescriptor(ctx context.Context, kind, name string, mode uint32) (Descriptor, error) {
	var reply *dcpb.MetaDescriptorReply
	err := m.c.Mutate(ctx, dc.MetaGroup, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) (err error) {
		reply, err = dcpb.NewMetaClient(cc).CreateDescriptor(ctx, &dcpb.MetaCreateDescriptorRequest{Header: h, Kind: kind, Name: name, Mode: mode})
		return err
	})
	if err != nil {
		return Descriptor{}, err
	}
	d := descriptorOf(reply.Descriptor_)
	m.remember(d)
	return d, nil
}

// Descriptor finds a table or topic by name; dc.NotFound if there is none. An answer up to a second old may come from the cache; that there is none
// never does.
func (m *Meta) Descriptor(ctx context.Context, kind, name string) (Descriptor, error) {
	m.mu.Lock()
	d, ok := m.cache[descriptorName{kind, name}]
	m.mu.Unlock()
	if ok && time.Now().Before(d.until) {
		return d.Descriptor, nil
	}
	var reply *dcpb.MetaDescriptorReply
	err := m.c.Query(ctx, dc.MetaGroup, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) (err error) {
		reply, err = dcpb.NewMetaClient(cc).Descriptor(ctx, &dcpb.MetaDescriptorRequest{Header: h, Kind: kind, Name: name})
		return err
	})
	if err != nil {
		m.Forget(kind, name)
		return Descriptor{}, err
	}
	found := descriptorOf(reply.Descriptor_)
	m.remember(found)
	return found, nil
}

// Forget drops a name from the cache, after the group has said that the id is stale.
func (m *Meta) Forget(kind, name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.cache, descriptorName{kind, name})
}

func (m *Meta) remember(d Descriptor) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.cache) >= maxDescriptors {
		clear(m.cache)
	}
	m.cache[descriptorName{d.Kind, d.Name}] = cachedDescriptor{d, time.Now().Add(descriptorTTL)}
}

// ListDescriptors gives up to limit (at most dc.MaxScanPage, also if limit is 0) descriptors in name order, strictly after a name ("" for the start).
func (m *Meta) ListDescriptors(ctx context.Context, kind, after string, limit int) ([]Descriptor, error) {
	var reply *dcpb.MetaListDescriptorsReply
	err := m.c.Query(ctx, dc.MetaGroup, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) (err error) {
		reply, err = dcpb.NewMetaClient(cc).ListDescriptors(ctx, &dcpb.MetaListDescriptorsRequest{Header: h, Kind: kind, After: after, Limit: uint32(max(limit, 0))})
		return err
	})
	if err != nil {
		return nil, err
	}
	all := make([]Descriptor, len(reply.Descriptors))
	for i, d := range reply.Descriptors {
		all[i] = descriptorOf(d)
	}
	return all, nil
}

// MarkDropping frees the name of a table or topic whose group has been told to drop it. It may be repeated.
func (m *Meta) MarkDropping(ctx context.Context, kind string, id uint64) error {
	m.forgetID(kind, id)
	return m.c.Mutate(ctx, dc.MetaGroup, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
		_, err := dcpb.NewMetaClient(cc).MarkDropping(ctx, &dcpb.MetaDropRequest{Header: h, Kind: kind, Id: id})
		return err
	})
}

// RemoveDescriptor forgets a table or topic. It may be repeated.
func (m *Meta) RemoveDescriptor(ctx context.Context, kind string, id uint64) error {
	m.forgetID(kind, id)
	return m.c.Mutate(ctx, dc.MetaGroup, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
		_, err := dcpb.NewMetaClient(cc).RemoveDescriptor(ctx, &dcpb.MetaDropRequest{Header: h, Kind: kind, Id: id})
		return err
	})
}

func (m *Meta) forgetID(kind string, id uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, d := range m.cache {
		if d.Kind == kind && d.ID == id {
			delete(m.cache, name)
		}
	}
}

func descriptorOf(d *dcpb.MetaDescriptor) Descriptor {
	state := "ready"
	if d.Dropping {
		state = "dropping"
	}
	return Descriptor{
		Kind: d.Kind, Name: d.Name, ID: d.Id, Group: dc.GroupID(d.Group), State: state, Created: time.UnixMilli(d.CreatedMs),
		UID: d.Uid, GID: d.Gid, Mode: d.Mode,
	}
}

// Drain sets or clears a node's drain mark; the node is named by name or id.
func (m *Meta) Drain(ctx context.Context, node string, drain bool) error {
	return m.setNode(ctx, &dcpb.MetaSetNodeRequest{Node: node, Drain: &drain})
}

// Label sets labels of a node; an empty value removes one.
func (m *Meta) Label(ctx context.Context, node string, labels map[string]string) error {
	return m.setNode(ctx, &dcpb.MetaSetNodeRequest{Node: node, SetLabels: labels})
}

func (m *Meta) setNode(ctx context.Context, req *dcpb.MetaSetNodeRequest) error {
	return m.c.Mutate(ctx, dc.MetaGroup, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
		_, err := dcpb.NewMetaClient(cc).SetNode(ctx, &dcpb.MetaSetNodeRequest{Header: h, Node: req.Node, Drain: req.Drain, SetLabels: req.SetLabels, Decommission: req.Decommission})
		return err
	})
}

// RemoveNode takes a node out of the cluster for ever.
func (m *Meta) RemoveNode(ctx context.Context, node string) error {
	return m.c.Mutate(ctx, dc.MetaGroup, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
		_, err := dcpb.NewMetaClient(cc).RemoveNode(ctx, &dcpb.MetaRemoveNodeRequest{Header: h, Node: node})
		return err
	})
}

// MintToken stores the hash of a join token's secret and tells when it expires.
func (m *Meta) MintToken(ctx context.Context, hash []byte, life time.Duration) (expires time.Time, err error) {
	var reply *dcpb.MetaMintTokenReply
	err = m.c.Mutate(ctx, dc.MetaGroup, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) (err error) {
		reply, err = dcpb.NewMetaClient(cc).MintToken(ctx, &dcpb.MetaMintTokenRequest{Header: h, Hash: hash, TtlMs: life.Milliseconds()})
		return err
	})
	if err != nil {
		return time.Time{}, err
	}
	return time.UnixMilli(reply.ExpiresMs), nil
}

// Admit passes a joining node's request on to the leader.
func (m *Meta) Admit(ctx context.Context, req *dcpb.JoinRequest, hash []byte) (*dcpb.JoinReply, error) {
	var reply *dcpb.MetaAdmitReply
	err := m.c.Mutate(ctx, dc.MetaGroup, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) (err error) {
		reply, err = dcpb.NewMetaClient(cc).Admit(ctx, &dcpb.MetaAdmitRequest{Header: h, Hash: hash, Csr: req.Csr, Name: req.Name, Address: req.Address, Version: req.Version})
		return err
	})
	if err != nil {
		return nil, err
	}
	return &dcpb.JoinReply{
		Cluster: reply.Cluster, Node: reply.Node, Name: reply.Name, Certificate: reply.Certificate, CaCertificate: reply.CaCertificate, Map: reply.Map,
	}, nil
}

// Register tells the cluster where this node listens, what it runs and some of its labels.
func (m *Meta) Register(ctx context.Context, address, version string, labels map[string]string) error {
	return m.c.Mutate(ctx, dc.MetaGroup, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
		_, err := dcpb.NewMetaClient(cc).Register(ctx, &dcpb.MetaRegisterRequest{Header: h, Address: address, Version: version, SetLabels: labels})
		return err
	})
}

// Heartbeat tells the leader that this node lives; req needs no header.
func (m *Meta) Heartbeat(ctx context.Context, req *dcpb.MetaHeartbeatRequest) (*dcpb.MetaHeartbeatReply, error) {
	var reply *dcpb.MetaHeartbeatReply
	err := m.c.Query(ctx, dc.MetaGroup, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) (err error) {
		reply, err = dcpb.NewMetaClient(cc).Heartbeat(ctx, &dcpb.MetaHeartbeatRequest{ // an own one for each attempt: the leader keeps it
			Header: h, FreeBytes: req.FreeBytes, TotalBytes: req.TotalBytes, Replicas: req.Replicas, Load: req.Load,
			MemoryBytes: req.MemoryBytes, MemoryFreeBytes: req.MemoryFreeBytes, Cpus: req.Cpus, Full: req.Full, Blocks: req.Blocks,
		})
		return err
	})
	return reply, err
}

// GroupStarted tells that a group has a leader, so that nobody bootstraps it any more.
func (m *Meta) GroupStarted(ctx context.Context, g dc.GroupID) error {
	return m.c.Mutate(ctx, dc.MetaGroup, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
		_, err := dcpb.NewMetaClient(cc).GroupStarted(ctx, &dcpb.MetaGroupStartedRequest{Header: h, Started: uint64(g)})
		return err
	})
}

// ClusterStatus describes nodes and groups as the meta leader knows them.
func (m *Meta) ClusterStatus(ctx context.Context) (*dcpb.MetaStatusReply, error) {
	var reply *dcpb.MetaStatusReply
	err := m.c.Query(ctx, dc.MetaGroup, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) (err error) {
		reply, err = dcpb.NewMetaClient(cc).Status(ctx, &dcpb.MetaStatusRequest{Header: h})
		return err
	})
	return reply, err
}
