package job

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
	"missingos/storage/machine/job"
)

// Config is what the service needs. Replicas is required.
type Config struct {
	Replicas replica.Replicas
	Log      *slog.Logger
}

// Service serves the jobs group when this node leads it.
type Service struct {
	dcpb.UnimplementedJobServer
	cfg Config

	mu    sync.Mutex
	terms map[dc.GroupID]*term
}

var _ dcpb.JobServer = (*Service)(nil)

// New makes the service. It does nothing until its Kind is given to a node.
func New(cfg Config) *Service {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Service{cfg: cfg, terms: map[dc.GroupID]*term{}}
}

// Kind says how a node runs the jobs group.
func (s *Service) Kind() replica.Kind {
	return replica.Kind{
		Name:     dc.KindJobs,
		Machine:  job.New,
		Lead:     s.lead,
		Applied:  s.applied,
		Register: func(r grpc.ServiceRegistrar) { dcpb.RegisterJobServer(r, s) },
	}
}

func (s *Service) term(g dc.GroupID) *term {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.terms[g]
}

// applied wakes who waits for what has changed. It runs on the apply path.
func (s *Service) applied(g dc.GroupID, _ dc.Index, events []any) {
	t := s.term(g)
	if t == nil {
		return
	}
	for _, e := range events {
		switch e := e.(type) {
		case job.Changed:
			t.wakeJob(e.Name)
		case job.NodeChanged:
			t.wakeNode(e.Node)
		case job.Ordered:
			t.wakeNodes()
		case job.Pending:
			t.wakePlacer()
		}
	}
}

// admit finds the term that a request is for and tells who asks. It is the one place where requests to the job service are authorised: a
// caller must name the node it speaks from; whose job it is, the state machine checks.
func (s *Service) admit(op string, h *dcpb.Header) (*term, dc.Principal, error) {
	p := rpc.Principal(h)
	if p.Node == 0 {
		return nil, p, dc.Errorf(dc.Denied, op, "", "the request names no node")
	}
	r, err := s.cfg.Replicas.Leading(dc.GroupID(h.GetGroup()))
	if err != nil {
		return nil, p, err
	}
	t := s.term(r.Group())
	if t == nil {
		return nil, p, dc.Errorf(dc.NotLeader, op, "", "this node does not lead the jobs group yet")
	}
	return t, p, nil
}

// agent admits a request of a node's agent, which speaks for nobody but its node.
func (s *Service) agent(op string, h *dcpb.Header) (*term, dc.NodeID, error) {
	t, p, err := s.admit(op, h)
	if err == nil && p.UID != 0 {
		err = dc.Errorf(dc.Denied, op, "", "only a node's daemon may do that")
	}
	return t, p.Node, err
}

// do replicates one command and decodes its result.
func (t *term) do(ctx context.Context, id dc.RequestID, op any) (*command.JobResult, error) {
	body, err := job.Command(op)
	if err != nil {
		return nil, dc.Errorf(dc.Internal, "job", "", "encode %T: %w", op, err)
	}
	out, err := t.replica.Propose(ctx, id, body)
	if err != nil {
		return nil, err
	}
	res := &command.JobResult{}
	if err := proto.Unmarshal(out, res); err != nil {
		return nil, dc.Errorf(dc.Internal, "job", "", "decode result of %T: %w", op, err)
	}
	return res, nil
}

// view admits a request and runs fn on a linearizable view.
func (s *Service) view(ctx context.Context, op string, h *dcpb.Header, fn func(storage.Reader) error) error {
	t, _, err := s.admit(op, h)
	if err != nil {
		return err
	}
	return t.replica.View(ctx, fn)
}
