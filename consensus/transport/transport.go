package transport

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"

	"missingos/srv/dc"
)

// How long calls may take. A snapshot's pull has no deadline of its own but ends when it makes no progress.
const (
	heartbeatTimeout = 2 * time.Second
	appendTimeout    = 10 * time.Second
	voteTimeout      = 2 * time.Second
	beatPatience     = 50 * time.Millisecond // for groups that are slow to answer a common heartbeat
	confirmTimeout   = 2 * time.Second
	progressTimeout  = 2 * time.Second
	installTimeout   = 30 * time.Minute
	holdTimeout      = 5 * time.Second
	pullStall        = 30 * time.Second
	pullChunkBytes   = 256 * dc.KiB
	maxAppendBytes   = 1 * dc.MiB // of entries in one message, unless one entry alone is larger
)

// A Dialer gives a connection to a node: mutual TLS in production, memory in simulations.
type Dialer func(n dc.NodeID) (grpc.ClientConnInterface, error)

// A Registrar is a server to add the service to.
type Registrar = grpc.ServiceRegistrar

// Config says how a node speaks to others.
type Config struct {
	Node dc.NodeID
	// Dial gives a connection to a node; it is asked for every call and should keep connections. It must not block for long.
	Dial Dialer
	// Peer tells which node a request came from by its certificate; nil trusts what the request says (tests).
	Peer func(ctx context.Context) (dc.NodeID, bool)
	// Heartbeats to a node go out every Pulse, those of all groups together. One that has to wait for longer than 3/5 of that, since it came just
	// too late, goes after Gather instead, with those that came meanwhile. Pulse must be a little longer than the longest time from one
	// heartbeat of a group to the next, and Gather short beside that. Zero is no pulse: all wait for Gather.
	Gather, Pulse time.Duration
}

// A Replica is what the transport asks of a group on this node besides Raft's own messages.
type Replica interface {
	CurrentTerm() uint64
	// Heard takes note of a heartbeat in Raft's place, and gives the log's last index, if the heartbeat says nothing that Raft does not know: it
	// follows this leader in this term and has heard of it lately. It does not block.
	Heard(from dc.NodeID, term uint64) (last uint64, ok bool)
	// Progress gives the state machine's applied index and the log's last index.
	Progress() (applied, last uint64)
	// Durable waits until what the replica has of the log up to index is on its disk; it may have taken more into memory.
	Durable(ctx context.Context, index uint64) error
	// Arriving makes entries from a leader fit for Raft; Offered tells whether the replica has all that a snapshot would bring. After each the message
	// goes to Raft, and no other of these two kinds before Raft has answered.
	Arriving(ctx context.Context, a *raft.AppendEntriesRequest) error
	Offered(ctx context.Context, s *raft.InstallSnapshotRequest) (has bool, err error)
	// Pull streams a state of the replica; out.Begin comes before the first Write. dc.Stale means that the state asked for is not here.
	Pull(ctx context.Context, p *PullRequest, out Sink) error
	// Hold keeps the state after entry at for a while. It waits until the entry is applied, or ctx ends.
	Hold(ctx context.Context, at uint64) error
	// Digest sums up the content after entry index; Compare has the group's leader compare all.
	Digest(ctx context.Context, index uint64) (*DigestReply, error)
	Compare(ctx context.Context, markOnly bool) (*CompareReply, error)
	// Rebuild has the content fetched anew, on the leader's word.
	Rebuild(ctx context.Context, r *RebuildRequest) error
}

// Transport is a node's end of all connections.
type Transport struct {
	cfg     Config
	began   time.Time      // of the pulse
	life    uint64         // of this process, at random
	sending sync.WaitGroup // common heartbeats under way

	mu    sync.RWMutex
	lanes map[dc.GroupID]*Lane
	peers map[dc.NodeID]*beats
}

// New makes a transport without groups.
func New(cfg Config) *Transport {
	return &Transport{cfg: cfg, began: time.Now(), life: rand.Uint64(), lanes: map[dc.GroupID]*Lane{}, peers: map[dc.NodeID]*beats{}}
}

// Close waits until nothing is sent any more. It comes after the lanes' Close.
func (t *Transport) Close() { t.sending.Wait() }

// Register adds the service to the node's server.
func (t *Transport) Register(s grpc.ServiceRegistrar) { RegisterRaftServer(s, service{t: t}) }

func (t *Transport) client(n dc.NodeID) (RaftClient, error) {
	cc, err := t.cfg.Dial(n)
	if err != nil {
		return nil, err
	}
	return NewRaftClient(cc), nil
}

// Confirm asks n whether its replica of g is still in term; the answer is given after the question arrived there.
func (t *Transport) Confirm(ctx context.Context, n dc.NodeID, g dc.GroupID, term uint64) (bool, error) {
	c, err := t.client(n)
	if err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	r, err := c.Confirm(ctx, &ConfirmRequest{From: uint64(t.cfg.Node), Groups: []uint64{uint64(g)}, Terms: []uint64{term}})
	if err != nil {
		return false, err
	}
	return len(r.Same) == 1 && r.Same[0], nil
}

// Progress asks how far n's replica of g is.
func (t *Transport) Progress(ctx context.Context, n dc.NodeID, g dc.GroupID) (*ProgressReply, error) {
	c, err := t.client(n)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, progressTimeout)
	defer cancel()
	return c.Progress(ctx, &ProgressRequest{From: uint64(t.cfg.Node), Group: uint64(g)})
}
