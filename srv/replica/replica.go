// Package replica is what a service knows of the replicated groups on its node: propose a command, read the state,
// hear of applied events, run while leading. srv/node implements it by joining consensus and storage;
// [Memory] is a complete single-replica implementation for the services' own tests.
package replica

import (
	"context"

	"google.golang.org/grpc"

	"missingos/srv/dc"
	"missingos/storage"
)

// A Replica is this node's copy of one group.
type Replica interface {
	// Group names the group.
	Group() dc.GroupID
	// Propose replicates one command and returns what the machine answered. It blocks until the command is applied here,
	// ctx ends (the outcome is then unknown: dc.Unavailable, retry under the same id) or leadership is lost (dc.NotLeader
	// if the command certainly was not proposed, else dc.Unavailable). An error of the machine comes back as it was returned.
	Propose(ctx context.Context, id dc.RequestID, body []byte) ([]byte, error)
	// View runs fn on a linearizable view: it contains every command that was acknowledged before View was called.
	// dc.NotLeader if this replica does not lead, dc.Unavailable if leadership cannot be confirmed in time.
	View(ctx context.Context, fn func(storage.Reader) error) error
	// Local runs fn on the state as this replica has it now, without any promise of freshness; on a leader inside
	// Kind.Lead it is the state after a barrier at least.
	Local(fn func(storage.Reader) error) error
	// NewID makes a request id for a command of the daemon's own (controllers, expiry, sweeps).
	NewID() dc.RequestID
	// Clock is the group's hybrid clock as a leader would stamp it now, Unix milliseconds.
	Clock() int64
}

// Replicas finds the replica a request names. It returns dc.NotLeader (with the leader if known) for a group that has no replica
// here or whose replica does not lead.
type Replicas interface {
	Leading(g dc.GroupID) (Replica, error)
}

// A Kind is what srv/node needs of one kind of group: how to apply commands, and what to do beside that.
type Kind struct {
	Name    string                 // dc.KindKV, ...
	Machine func() storage.Machine // a fresh machine for a shard
	// CacheBytes is what the hot rows of one group may take in memory; 0: storage's default.
	CacheBytes int
	// Opened, if set, is called with every replica that this node opens, before it can lead. Only its Group and Local may be used
	// beside Lead; Local fails once the replica is closed.
	Opened func(r Replica)
	// Lead, if set, is run in its own goroutine while this node leads the group; ctx ends when leadership does, and Lead
	// must then return promptly. Here live deadlines, sweeps, controllers and brokers.
	Lead func(ctx context.Context, r Replica)
	// Applied, if set, is called on every replica after entries are committed to the shard, in order, with the events
	// the machine emitted. It runs on the apply path: it must be quick, must not block and must not read the shard.
	Applied func(g dc.GroupID, index dc.Index, events []any)
	// Applying, if set, is called like Applied with the same events, but before the entry is committed: no view shows it yet.
	Applying func(g dc.GroupID, events []any)
	// Register adds the kind's gRPC services to the node's server.
	Register func(s grpc.ServiceRegistrar)
}
