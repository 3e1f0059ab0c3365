package client

import (
	"cmp"
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

// Node is a machine of the cluster as the meta group's leader sees it.
type Node struct {
	ID         dc.NodeID
	Name       string
	State      string // "up", "down", "draining"
	Address    string
	Version    string
	Labels     map[string]string
	FreeBytes  uint64 // of the disk that holds its data
	TotalBytes uint64
	Seen       time.Time // its last heartbeat; zero if this leader has had none

	Drain        bool     // it is to be emptied
	Decommission bool     // and then removed
	Replicas     int      // placed on it
	Leaders      int      // groups that it leads
	Blocks       uint64   // of /dc/data that it stores
	Waits        []string // what is left on a node that drains
}

// Nodes gives up to limit nodes in name order, strictly after a name ("" for the start).
func (m *Meta) Nodes(ctx context.Context, after string, limit int) ([]Node, error) {
	status, err := m.ClusterStatus(ctx)
	if err != nil {
		return nil, err
	}
	var all []Node
	for _, n := range status.Nodes {
		if n.State != "removed" && n.Name > after {
			all = append(all, asNode(n))
		}
	}
	slices.SortFunc(all, func(a, b Node) int { return cmp.Compare(a.Name, b.Name) })
	return all[:min(len(all), limit)], nil
}

// Node finds a node by name; dc.NotFound if there is none.
func (m *Meta) Node(ctx context.Context, name string) (Node, error) {
	status, err := m.ClusterStatus(ctx)
	if err != nil {
		return Node{}, err
	}
	for _, n := range status.Nodes {
		if n.Name == name && n.State != "removed" {
			return asNode(n), nil
		}
	}
	return Node{}, dc.Errorf(dc.NotFound, "node", name, "the cluster has no node of that name")
}

func asNode(n *dcpb.AdminNode) Node {
	node := Node{
		ID: dc.NodeID(n.Id), Name: n.Name, State: n.State, Address: n.Address, Version: n.Version, Labels: n.Labels,
		FreeBytes: n.FreeBytes, TotalBytes: n.TotalBytes,
		Drain: n.Drain, Decommission: n.Decommission, Replicas: int(n.Replicas), Leaders: int(n.Leaders), Blocks: n.Blocks, Waits: n.Waits,
	}
	if n.SeenMs != 0 {
		node.Seen = time.UnixMilli(n.SeenMs)
	}
	return node
}

// Decommission drains a node and removes it when nothing is left on it; the node is named by name or id. dc.Busy if there are too few others.
func (m *Meta) Decommission(ctx context.Context, node string) error {
	yes := true
	return m.setNode(ctx, &dcpb.MetaSetNodeRequest{Node: node, Decommission: &yes})
}

// A GroupMove is what a person wants of a group; names or ids.
type GroupMove struct {
	Group     string
	From, To  string // of one replica; both or neither
	Leader    string // who should lead
	Automatic bool   // give the group back to the controller
	Force     bool   // also if the replicas then share more zones or racks
}

// MoveGroup changes where a group should be; it returns before that is so.
func (m *Meta) MoveGroup(ctx context.Context, w GroupMove) error {
	return m.c.Mutate(ctx, dc.MetaGroup, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
		_, err := dcpb.NewMetaClient(cc).MoveGroup(ctx, &dcpb.MetaMoveGroupRequest{
			Header: h, Moved: w.Group, From: w.From, To: w.To, Leader: w.Leader, Automatic: w.Automatic, Force: w.Force,
		})
		return err
	})
}
