package meta

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/replica"
	"missingos/srv/rpc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/meta"
)

// Config is what the service needs.
type Config struct {
	// Local gives this node's replica of the meta group, whether it leads or not; false if it has none. Watch reads it.
	Local func() (replica.Replica, bool)
	// Known gives the map as this node knows it without a replica, for nodes that have lost touch. Optional.
	Known func() *dcpb.MetaMap
	// DeadAfter is how long a node may be silent before its replicas are placed elsewhere. Default 5 minutes.
	DeadAfter time.Duration
	Log       *slog.Logger // default: discard
}

const (
	defaultDeadAfter = 5 * time.Minute
	// downAfter is how long a node may be silent before it counts as down: nothing new is placed there, and status says so.
	downAfter = 5 * time.Second
	// defaultTokenLife and maxTokenLife bound join tokens.
	defaultTokenLife = time.Hour
	maxTokenLife     = 30 * 24 * time.Hour
)

// Service serves the meta group on the nodes that hold it.
type Service struct {
	dcpb.UnimplementedMetaServer
	cfg Config
	hub *hub

	mu   sync.Mutex
	term *term // while this node leads
}

var _ dcpb.MetaServer = (*Service)(nil)

// New makes the service. It does nothing until its Kind is given to a node.
func New(cfg Config) *Service {
	if cfg.DeadAfter == 0 {
		cfg.DeadAfter = defaultDeadAfter
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Service{cfg: cfg, hub: newHub()}
}

// Kind says how a node runs the meta group.
func (s *Service) Kind() replica.Kind {
	return replica.Kind{
		Name:     dc.KindMeta,
		Machine:  meta.New,
		Lead:     s.lead,
		Applied:  func(_ dc.GroupID, _ dc.Index, events []any) { s.hub.publish(events) },
		Register: func(r grpc.ServiceRegistrar) { dcpb.RegisterMetaServer(r, s) },
	}
}

// leading gives the term of this node as leader.
func (s *Service) leading(op string) (*term, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.term == nil {
		return nil, dc.Errorf(dc.NotLeader, op, "", "this node does not lead the meta group")
	}
	return s.term, nil
}

// admit finds the term that a request is for and tells who asks. It is the one place where requests to meta are authorised: what concerns the
// cluster as a whole is for root (the daemons and the admin socket speak as root), descriptors are for everybody.
func (s *Service) admit(op string, h *dcpb.Header, root bool) (*term, dc.Principal, error) {
	p := rpc.Principal(h)
	if p.Node == 0 {
		return nil, p, dc.Errorf(dc.Denied, op, "", "the request names no node")
	}
	if root && p.UID != 0 {
		return nil, p, dc.Errorf(dc.Denied, op, "", "this is for root, not for uid %d", p.UID)
	}
	t, err := s.leading(op)
	return t, p, err
}

// made tells whether the cluster has its first records. Before, nothing is proposed: that they are not there yet would be the answer for good to
// whoever asks again under the same request id.
func (t *term) made() error {
	if t.isMade.Load() {
		return nil
	}
	err := t.replica.Local(func(r storage.Reader) error {
		if _, ok := meta.Cluster(r); !ok {
			return dc.Errorf(dc.Unavailable, "meta", "", "the cluster is still being made")
		}
		return nil
	})
	if err == nil {
		t.isMade.Store(true)
	}
	return err
}

// do replicates one command and decodes its result.
func (t *term) do(ctx context.Context, id dc.RequestID, c *command.MetaCommand) (*command.MetaResult, error) {
	if err := t.made(); err != nil {
		return nil, err
	}
	c.Version = meta.Version
	body, err := proto.Marshal(c)
	if err != nil {
		return nil, dc.Errorf(dc.Internal, "meta", "", "encode %T: %w", c.Op, err)
	}
	out, err := t.replica.Propose(ctx, id, body)
	if err != nil {
		return nil, err
	}
	res := &command.MetaResult{}
	if err := proto.Unmarshal(out, res); err != nil {
		return nil, dc.Errorf(dc.Internal, "meta", "", "decode result of %T: %w", c.Op, err)
	}
	return res, nil
}

// findNode reads the node that a person names by name or id. Of several with one name only one can be active.
func findNode(r storage.Reader, name string) (*command.MetaNode, error) {
	if id, err := dc.ParseNodeID(name); err == nil {
		if n, ok := meta.Node(r, id); ok {
			return n, nil
		}
	}
	var found *command.MetaNode
	for n := range meta.Nodes(r) {
		if n.Name == name && (found == nil || n.State == command.MetaNode_STATE_ACTIVE) {
			found = n
		}
	}
	if found == nil {
		return nil, dc.Errorf(dc.NotFound, "find node", name, "there is no node of that name (see `dcctl node ls`)")
	}
	return found, nil
}

// BootstrapReplica is what Bootstrap needs of the new meta group.
type BootstrapReplica interface {
	Propose(ctx context.Context, id dc.RequestID, body []byte) ([]byte, error)
	NewID() dc.RequestID
}

// Bootstrap writes the first records of a cluster: its authority, its first node and its groups, each to be made by that node. It may be repeated.
func Bootstrap(ctx context.Context, r BootstrapReplica, init *command.MetaInit) error {
	init.Groups = nil
	for i, g := range []struct{ name, kind string }{
		{"meta", dc.KindMeta},
		{"lock", dc.KindLock},
		{"jobs", dc.KindJobs},
		{"data/0", dc.KindData},
		{"kv/0", dc.KindKV},
		{"topic/0", dc.KindTopic},
	} {
		group := &command.MetaGroup{Id: uint64(dc.MetaGroup) + uint64(i), Name: g.name, Kind: g.kind, Want: replicasWanted, Nodes: []uint64{init.Node.Id}}
		if g.kind != dc.KindMeta {
			group.Bootstrap = init.Node.Id
		}
		init.Groups = append(init.Groups, group)
	}
	body, err := proto.Marshal(&command.MetaCommand{Version: meta.Version, Op: &command.MetaCommand_Init{Init: init}})
	if err != nil {
		return dc.Wrap(err, "bootstrap", init.Cluster)
	}
	_, err = r.Propose(ctx, r.NewID(), body)
	return err
}

// replicasWanted is how many replicas a group gets when there are nodes for them.
const replicasWanted = 3
