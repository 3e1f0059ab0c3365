package client

import (
	"cmp"
	"context"
	"slices"
	"time"

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
		FreeBytes: uint64(n.FreeBytes), TotalBytes: uint64(n.TotalBytes),
	}
	if n.SeenMs != 0 {
		node.Seen = time.UnixMilli(n.SeenMs)
	}
	return node
}
