package kv

import (
	"context"
	"log/slog"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/replica"
	"missingos/srv/rpc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/kv"
)

// Descriptors is what the service needs of meta: to forget a table whose rows are gone. client.Meta is one.
type Descriptors interface {
	RemoveDescriptor(ctx context.Context, kind string, id uint64) error
}

// Config is what the service needs. Replicas is required.
type Config struct {
	Replicas replica.Replicas
	// Descriptors, if set, is told when a dropped table has been swept.
	Descriptors Descriptors
	// Expiry says why no row can have a time to live yet; default: every row can.
	Expiry func() error
	// Ranges says why no table can be split yet; default: every one can.
	Ranges func() error
	Log    *slog.Logger
}

// Service serves the kv groups that this node leads.
type Service struct {
	dcpb.UnimplementedKVServer
	cfg Config

	mu    sync.Mutex
	terms map[dc.GroupID]*term // of the groups that this node leads
}

var _ dcpb.KVServer = (*Service)(nil)

// New makes the service. It does nothing until its Kind is given to a node.
func New(cfg Config) *Service {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Expiry == nil {
		cfg.Expiry = func() error { return nil }
	}
	if cfg.Ranges == nil {
		cfg.Ranges = func() error { return nil }
	}
	return &Service{cfg: cfg, terms: map[dc.GroupID]*term{}}
}

// Kind says how a node runs kv groups.
func (s *Service) Kind() replica.Kind {
	return replica.Kind{
		Name:     dc.KindKV,
		Machine:  kv.New,
		Lead:     s.lead,
		Applied:  s.applied,
		Register: func(r grpc.ServiceRegistrar) { dcpb.RegisterKVServer(r, s) },
	}
}

// admit finds the replica that a request is for and tells who asks. It is the one place where requests to the kv service are authorised: a
// caller must name the node it speaks from; which rows a user may open is decided by the kernel at the mount, from the modes that rows and tables show.
func (s *Service) admit(op string, h *dcpb.Header) (replica.Replica, dc.Principal, error) {
	p := rpc.Principal(h)
	if p.Node == 0 {
		return nil, p, dc.Errorf(dc.Denied, op, "", "the request names no node")
	}
	r, err := s.cfg.Replicas.Leading(dc.GroupID(h.GetGroup()))
	return r, p, err
}

// change admits a request, replicates op, and answers with what became of the row.
func (s *Service) change(ctx context.Context, name string, h *dcpb.Header, op any) (*dcpb.KVChangeReply, error) {
	r, _, err := s.admit(name, h)
	if err != nil {
		return nil, err
	}
	res, err := propose(ctx, r, rpc.RequestID(h), op)
	if err != nil {
		return nil, err
	}
	reply := &dcpb.KVChangeReply{Revision: res.Revision}
	if res.Row != nil {
		reply.Row = rowInfo(nil, res.Row)
	}
	return reply, nil
}

// frees tells whether a command makes room, so that it is accepted when the disk has reached its reserve.
func frees(op any) bool {
	switch op.(type) {
	case *command.KVRemove, *command.KVDrop, *command.KVSweep, *command.KVExpire:
		return true
	}
	return false
}

func propose(ctx context.Context, r replica.Replica, id dc.RequestID, op any) (*command.KVResult, error) {
	if frees(op) {
		ctx = replica.Freeing(ctx)
	}
	body, err := kv.Command(op)
	if err != nil {
		return nil, dc.Errorf(dc.Internal, "kv", "", "encode %T: %w", op, err)
	}
	out, err := r.Propose(ctx, id, body)
	if err != nil {
		return nil, err
	}
	res := &command.KVResult{}
	if err := proto.Unmarshal(out, res); err != nil {
		return nil, dc.Errorf(dc.Internal, "kv", "", "decode result of %T: %w", op, err)
	}
	return res, nil
}

// view admits a request and runs fn on a linearizable view of a table that was not dropped.
func (s *Service) view(ctx context.Context, name string, h *dcpb.Header, table uint64, fn func(storage.Reader) error) error {
	r, _, err := s.admit(name, h)
	if err != nil {
		return err
	}
	return r.View(ctx, func(rd storage.Reader) error {
		if err := kv.Open(rd, name, table); err != nil {
			return err
		}
		return fn(rd)
	})
}

func rowInfo(key []byte, r *command.KVRow) *dcpb.KVRowInfo {
	return &dcpb.KVRowInfo{
		Key: key, Dir: r.Dir, Size: r.Size, Revision: r.Revision, Created: r.Created, MtimeMs: r.MtimeMs, Mode: r.Mode, Uid: r.Uid, Gid: r.Gid, ExpiresMs: r.ExpiresMs,
	}
}

func owner(p dc.Principal, mode uint32) *command.KVOwner {
	return &command.KVOwner{Uid: p.UID, Gid: p.GID, Mode: mode & 0o7777}
}
