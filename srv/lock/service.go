package lock

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
	"missingos/storage/machine/lock"
)

// Config is what the service needs.
type Config struct {
	Log *slog.Logger // default: discard
}

// cacheBytes: there is one lock group, and it is read and written a row at a time.
const cacheBytes = 16 * dc.MiB

// Service serves the lock groups that this node leads.
type Service struct {
	dcpb.UnimplementedLockServer
	log *slog.Logger

	mu     sync.Mutex
	hubs   map[dc.GroupID]*hub
	terms  map[dc.GroupID]*term           // groups that this node leads now
	copies map[dc.GroupID]replica.Replica // all that it has a copy of
}

var _ dcpb.LockServer = (*Service)(nil)

// New makes the service. It does nothing until its Kind is given to a node.
func New(cfg Config) *Service {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Service{log: cfg.Log, hubs: map[dc.GroupID]*hub{}, terms: map[dc.GroupID]*term{}, copies: map[dc.GroupID]replica.Replica{}}
}

// Kind says how a node runs lock groups.
func (s *Service) Kind() replica.Kind {
	return replica.Kind{
		Name:       dc.KindLock,
		Machine:    lock.New,
		CacheBytes: cacheBytes,
		Opened:     s.opened,
		Lead:       s.lead,
		Applied:    s.applied,
		Register:   func(r grpc.ServiceRegistrar) { dcpb.RegisterLockServer(r, s) },
	}
}

func (s *Service) opened(r replica.Replica) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.copies[r.Group()] = r
}

func (s *Service) hub(g dc.GroupID) *hub {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.hubs[g]
	if h == nil {
		h = newHub()
		s.hubs[g] = h
	}
	return h
}

func (s *Service) term(g dc.GroupID) *term {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.terms[g]
}

// applied feeds the hub on every replica, and the leases and waiters on the leader. It runs on the apply path.
func (s *Service) applied(g dc.GroupID, _ dc.Index, events []any) {
	h, t := s.hub(g), s.term(g)
	for _, ev := range events {
		if rev, ok := ev.(*command.LockHistory); ok {
			h.append(rev)
		}
		if t != nil {
			t.observe(ev)
		}
	}
}

// admit finds the term that a request is for and tells who asks. It is the one place where requests to the lock service are authorised:
// a caller must name the node it speaks from; every principal may read, change and lock every path.
func (s *Service) admit(op string, h *dcpb.Header) (*term, dc.Principal, error) {
	p := rpc.Principal(h)
	if err := admitted(op, p); err != nil {
		return nil, p, err
	}
	t := s.term(dc.GroupID(h.GetGroup()))
	if t == nil {
		return nil, p, dc.Errorf(dc.NotLeader, op, "", "this node does not lead group %s", dc.GroupID(h.GetGroup()))
	}
	return t, p, nil
}

// admitted tells whether a caller may do anything here.
func admitted(op string, p dc.Principal) error {
	if p.Node == 0 {
		return dc.Errorf(dc.Denied, op, "", "the request names no node")
	}
	return nil
}

// do replicates one command and decodes its result.
func (t *term) do(ctx context.Context, id dc.RequestID, op any) (*command.LockResult, error) {
	body, err := proto.Marshal(lock.Command(op))
	if err != nil {
		return nil, dc.Errorf(dc.Internal, "lock", "", "encode %T: %w", op, err)
	}
	out, err := t.replica.Propose(ctx, id, body)
	if err != nil {
		return nil, err
	}
	res := &command.LockResult{}
	if err := proto.Unmarshal(out, res); err != nil {
		return nil, dc.Errorf(dc.Internal, "lock", "", "decode result of %T: %w", op, err)
	}
	return res, nil
}

// change admits a request, replicates op, and answers with what became of it.
func (s *Service) change(ctx context.Context, name string, h *dcpb.Header, op any) (*dcpb.LockChangeReply, error) {
	t, _, err := s.admit(name, h)
	if err != nil {
		return nil, err
	}
	res, err := t.do(ctx, rpc.RequestID(h), op)
	if err != nil {
		return nil, err
	}
	out := &dcpb.LockChangeReply{Revision: res.Revision, Version: res.Version, More: res.More}
	if res.File != nil {
		out.File = fileInfo(res.File)
	}
	return out, nil
}

// look runs fn on a linearizable view, or, if the caller said that it may be stale, on what this node has, as of revision at unless that is 0.
func (s *Service) look(ctx context.Context, name string, h *dcpb.Header, at uint64, stale bool, fn func(storage.Reader) error) error {
	checked := func(rd storage.Reader) error {
		if at != 0 {
			if err := lock.Past(rd, dc.Revision(at)); err != nil {
				return err
			}
		}
		return fn(rd)
	}
	if !stale {
		return s.view(ctx, name, h, checked)
	}
	if err := admitted(name, rpc.Principal(h)); err != nil {
		return err
	}
	s.mu.Lock()
	r := s.copies[dc.GroupID(h.GetGroup())]
	s.mu.Unlock()
	if r == nil {
		return dc.Errorf(dc.NotLeader, name, "", "this node has no copy of group %s", dc.GroupID(h.GetGroup()))
	}
	return r.Local(checked)
}

// view admits a request and runs fn on a linearizable view.
func (s *Service) view(ctx context.Context, name string, h *dcpb.Header, fn func(storage.Reader) error) error {
	t, _, err := s.admit(name, h)
	if err != nil {
		return err
	}
	return t.replica.View(ctx, fn)
}
