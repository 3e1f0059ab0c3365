package client

import (
	"context"

	"google.golang.org/grpc"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

// A Call is one attempt of one request on one node. It must put h into the request message and use cc, e.g.
//
//	reply, err = dcpb.NewKVClient(cc).Put(ctx, &dcpb.KVPutRequest{Header: h, ...})
type Call func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error

// Nodes is how the client reaches nodes: mutual TLS, or in process for this node itself.
type Nodes interface {
	Conn(n dc.NodeID) (grpc.ClientConnInterface, error)
}

// Directory is what the client must know of the cluster: which groups there are and which nodes hold them (a cache of meta).
type Directory interface {
	// Group finds a group by name ("lock", "kv/1"); dc.Unavailable while the directory is empty.
	Group(name string) (dc.GroupID, error)
	Replicas(g dc.GroupID) []dc.NodeID
}
