package data

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"missingos/srv/data/lease"
	"missingos/srv/dc"
	"missingos/srv/dc/file"
	"missingos/srv/dcpb"
	"missingos/srv/replica"
	"missingos/srv/rpc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/data"
)

// A Deleter tells a node to delete blocks. client.Data is one.
type Deleter interface {
	DeleteBlocks(ctx context.Context, node dc.NodeID, ids []file.BlockID) error
}

// Config is what the metadata service needs.
type Config struct {
	Replicas replica.Replicas
	Deleter  Deleter
	// Full says dc.Unsupported while some node of the cluster cannot apply commands of version 2. Default: all can.
	Full func() error
	// Locks says dc.Unsupported while some node of the cluster knows no locks across nodes. Default: all do.
	Locks func() error
	// LockExpiry is how long a mount that has locks may be silent before they are given to others. Default file.LockExpiry.
	LockExpiry time.Duration
	// Grace is how long a new leader purges nothing, and how long a silent session keeps its files open. Default file.OpenGrace.
	Grace time.Duration
	// Lease is how long leases on files last unless they are renewed. Default lease.TTL.
	Lease time.Duration
	// Leases says dc.Unsupported while some node of the cluster would not respect leases as a leader. Default: all do.
	Leases func() error
	Care   CareConfig
	Log    *slog.Logger // default: discard
}

// Service serves the data groups that this node leads.
type Service struct {
	dcpb.UnimplementedDataServer
	cfg Config

	mu     sync.Mutex
	opens  map[dc.GroupID]*opens
	terms  map[dc.GroupID]*term // of the groups this node leads
	tables map[dc.GroupID]*lease.Table
}

var _ dcpb.DataServer = (*Service)(nil)

// New makes the service. Its [Service.Kind] runs it; Deleter may be set later by [Service.SetDeleter], before the node serves.
func New(cfg Config) *Service {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Grace == 0 {
		cfg.Grace = file.OpenGrace
	}
	if cfg.LockExpiry == 0 {
		cfg.LockExpiry = file.LockExpiry
	}
	return &Service{cfg: cfg, opens: map[dc.GroupID]*opens{}, terms: map[dc.GroupID]*term{}, tables: map[dc.GroupID]*lease.Table{}}
}

// SetReplicas and SetDeleter complete a Config whose parts are made from the service itself. They must be called before it serves.
func (s *Service) SetReplicas(r replica.Replicas) { s.cfg.Replicas = r }

// SetDeleter says how nodes are told to delete blocks; see [Service.SetReplicas].
func (s *Service) SetDeleter(d Deleter) { s.cfg.Deleter = d }

// SetCare says how blocks are cared for; see [Service.SetReplicas].
func (s *Service) SetCare(c CareConfig) { s.cfg.Care = c }

// Kind says how a node runs data groups.
func (s *Service) Kind() replica.Kind {
	return replica.Kind{
		Name:     dc.KindData,
		Machine:  data.New,
		Lead:     s.lead,
		Applied:  s.applied,
		Applying: s.applying,
		Register: func(r grpc.ServiceRegistrar) { dcpb.RegisterDataServer(r, s) },
	}
}

func (s *Service) applied(g dc.GroupID, _ dc.Index, events []any) {
	s.appliedTo(g, events)
	s.mu.Lock()
	t := s.terms[g]
	s.mu.Unlock()
	if t == nil {
		return
	}
	t.applied.Add(1)
	if !slices.ContainsFunc(events, func(e any) bool { _, ok := e.(data.Orphaned); return ok }) {
		return
	}
	select {
	case t.kick <- struct{}{}:
	default:
	}
}

// admit finds the replica that a request is for, and who asks. It is the one place where requests to the metadata service are
// admitted: a caller must name the node it speaks from; what it may do with an inode the machine decides by the inode's mode.
func (s *Service) admit(op string, h *dcpb.Header) (replica.Replica, *command.DataCaller, error) {
	p := rpc.Principal(h)
	if p.Node == 0 {
		return nil, nil, dc.Errorf(dc.Denied, op, "", "the request names no node")
	}
	r, err := s.cfg.Replicas.Leading(dc.GroupID(h.GetGroup()))
	if err != nil {
		return nil, nil, err
	}
	if !s.leases(r.Group()).Leading() {
		return nil, nil, dc.Errorf(dc.Unavailable, op, "", "this node is about to lead the group")
	}
	return r, &command.DataCaller{Uid: p.UID, Gid: p.GID, Groups: p.Groups}, nil
}

// view admits a read, runs fn on a linearizable view, and waits until what it saw may be seen by all: fn says what the answer is about. The grant for the answer,
// of a caller who wants one, is nil if there was an error.
func (s *Service) view(ctx context.Context, op string, h *dcpb.Header, fn func(storage.Reader, *command.DataCaller, *look) error) (*dcpb.DataGrant, error) {
	r, who, err := s.admit(op, h)
	if err != nil {
		return nil, err
	}
	l := s.look(h)
	err = r.View(ctx, func(rd storage.Reader) error { return fn(rd, who, l) })
	if wait := l.table.Settle(ctx, l.inos...); wait != nil {
		return nil, wait
	}
	if err != nil {
		return nil, err
	}
	return l.grant(), nil
}

// change admits a mutation, replicates it and answers with what became of the inode.
func (s *Service) change(ctx context.Context, op string, h *dcpb.Header, now int64, c *command.DataCommand) (*dcpb.DataAttrReply, error) {
	r, who, err := s.admit(op, h)
	if err != nil {
		return nil, err
	}
	if c.Version, err = s.version(c); err != nil {
		return nil, err
	}
	c.Caller, c.Now = who, now
	res, err := s.settled(ctx, r, h, c, rpc.RequestID(h))
	if err != nil {
		return nil, err
	}
	out := reply(res)
	s.fresh(ctx, r, h, out)
	return out, nil
}

// version is the version to propose c with: the newest that all nodes of the cluster know, or an error if c needs a newer one.
func (s *Service) version(c *command.DataCommand) (uint32, error) {
	if s.cfg.Full == nil {
		return data.Version, nil
	}
	err := s.cfg.Full()
	if err == nil {
		return data.Version, nil
	}
	if data.Needs(c) > 1 {
		return 0, err
	}
	return 1, nil
}

// frees tells whether a command makes room, so that it is accepted when the disk has reached its reserve.
func frees(c *command.DataCommand) bool {
	switch op := c.Op.(type) {
	case *command.DataCommand_Unlink, *command.DataCommand_RemoveXattr, *command.DataCommand_Purge, *command.DataCommand_Forget, *command.DataCommand_Relocate,
		*command.DataCommand_LockEpoch, *command.DataCommand_LockSession:
		return true
	case *command.DataCommand_SetAttr:
		return op.SetAttr.Size != nil && *op.SetAttr.Size == 0
	}
	return false
}

func propose(ctx context.Context, r replica.Replica, id dc.RequestID, c *command.DataCommand) (*command.DataResult, error) {
	if frees(c) {
		ctx = replica.Freeing(ctx)
	}
	body, err := proto.Marshal(c)
	if err != nil {
		return nil, dc.Errorf(dc.Internal, "data", "", "encode %T: %w", c.Op, err)
	}
	if len(body) > dc.MaxCommandBytes {
		return nil, dc.Errorf(dc.TooLarge, "data", "", "a command of %d bytes exceeds the limit of %d", len(body), dc.MaxCommandBytes)
	}
	out, err := r.Propose(ctx, id, body)
	if err != nil {
		return nil, err
	}
	res := &command.DataResult{}
	if err := proto.Unmarshal(out, res); err != nil {
		return nil, dc.Errorf(dc.Internal, "data", "", "decode result of %T: %w", c.Op, err)
	}
	return res, nil
}

func reply(res *command.DataResult) *dcpb.DataAttrReply {
	return &dcpb.DataAttrReply{Attr: attr(res.Inode), Existed: res.Existed, Offset: res.Offset, Gone: res.Gone}
}

func attr(in *command.DataInode) *dcpb.DataAttr {
	if in == nil {
		return nil
	}
	return &dcpb.DataAttr{
		Ino: in.Ino, Mode: in.Mode, Nlink: in.Nlink, Uid: in.Uid, Gid: in.Gid, Rdev: in.Rdev, Size: in.Size, Allocated: in.Allocated,
		Atime: in.Atime, Mtime: in.Mtime, Ctime: in.Ctime, Btime: in.Btime, Parent: in.Parent, Version: in.Version,
		Acl: data.HasACL(in), Xattrs: in.XattrBytes > 0,
	}
}
