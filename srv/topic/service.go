package topic

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
	"missingos/storage/machine/topic"
)

// Descriptors is where a topic's name and id are kept; *client.Meta is one.
type Descriptors interface {
	RemoveDescriptor(ctx context.Context, kind string, id uint64) error
}

// Config is what the service needs.
type Config struct {
	Log         *slog.Logger // default: discard
	Descriptors Descriptors  // told when a dropped topic is swept; nil: nobody is
	Retention   func() error // says why no topic can be told yet how much to keep; default: every one can
}

// Service serves the topic groups that this node leads.
type Service struct {
	dcpb.UnimplementedTopicServer
	cfg Config

	mu    sync.Mutex
	hubs  map[dc.GroupID]*hub
	terms map[dc.GroupID]*term // groups that this node leads now
}

var _ dcpb.TopicServer = (*Service)(nil)

// New makes the service. It does nothing until its Kind is given to a node.
func New(cfg Config) *Service {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Retention == nil {
		cfg.Retention = func() error { return nil }
	}
	return &Service{cfg: cfg, hubs: map[dc.GroupID]*hub{}, terms: map[dc.GroupID]*term{}}
}

// Kind says how a node runs topic groups.
func (s *Service) Kind() replica.Kind {
	return replica.Kind{
		Name:     dc.KindTopic,
		Machine:  topic.New,
		Lead:     s.lead,
		Applied:  s.applied,
		Register: func(r grpc.ServiceRegistrar) { dcpb.RegisterTopicServer(r, s) },
	}
}

func (s *Service) hub(g dc.GroupID) *hub {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.hubs[g]
	if h == nil {
		h = &hub{topics: map[uint64]*audience{}}
		s.hubs[g] = h
	}
	return h
}

func (s *Service) term(g dc.GroupID) *term {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.terms[g]
}

// applied feeds the hub, and the term on the leader. It runs on the apply path.
func (s *Service) applied(g dc.GroupID, _ dc.Index, events []any) {
	if len(events) == 0 {
		return
	}
	h, t := s.hub(g), s.term(g)
	for _, ev := range events {
		h.observe(ev)
		if t != nil {
			t.observe(ev)
		}
	}
}

// admit finds the term that a request is for and tells who asks. It is the one place where requests to the topic service are
// authorised: a caller must name the node it speaks from; every principal may publish, read and consume every topic.
func (s *Service) admit(op string, h *dcpb.Header) (*term, dc.Principal, error) {
	p := rpc.Principal(h)
	if p.Node == 0 {
		return nil, p, dc.Errorf(dc.Denied, op, "", "the request names no node")
	}
	t := s.term(dc.GroupID(h.GetGroup()))
	if t == nil {
		return nil, p, dc.Errorf(dc.NotLeader, op, "", "this node does not lead group %s", dc.GroupID(h.GetGroup()))
	}
	return t, p, nil
}

// change admits a request, replicates c under the request's id and decodes the answer into out, if not nil.
func (s *Service) change(ctx context.Context, op string, h *dcpb.Header, c *command.TopicCommand, out proto.Message) (*term, error) {
	t, _, err := s.admit(op, h)
	if err != nil {
		return nil, err
	}
	return t, t.do(ctx, rpc.RequestID(h), c, out)
}

// view admits a request and runs fn on a linearizable view.
func (s *Service) view(ctx context.Context, op string, h *dcpb.Header, fn func(storage.Reader) error) error {
	t, _, err := s.admit(op, h)
	if err != nil {
		return err
	}
	return t.replica.View(ctx, fn)
}

// do replicates one command.
func (t *term) do(ctx context.Context, id dc.RequestID, c *command.TopicCommand, out proto.Message) error {
	c.Version = topic.Version
	body, err := proto.Marshal(c)
	if err != nil {
		return dc.Errorf(dc.Invalid, "topic", "", "encode: %w", err)
	}
	if len(body) > dc.MaxCommandBytes {
		return dc.Errorf(dc.TooLarge, "topic", "", "a command of %d bytes exceeds the limit of %d (MaxCommandBytes)", len(body), dc.MaxCommandBytes)
	}
	if c.GetPublish() == nil {
		ctx = replica.Freeing(ctx) // only messages make the log grow: readers go on when the disk has reached its reserve
	}
	answer, err := t.replica.Propose(ctx, id, body)
	if err != nil || out == nil {
		return err
	}
	if err := proto.Unmarshal(answer, out); err != nil {
		return dc.Errorf(dc.Internal, "topic", "", "decode answer: %w", err)
	}
	return nil
}

// Publish appends messages.
func (s *Service) Publish(ctx context.Context, r *dcpb.TopicPublishRequest) (*dcpb.TopicPublishReply, error) {
	const op = "topic.publish"
	if err := topic.CheckLines(op, r.Lines); err != nil {
		return nil, err
	}
	var done command.TopicPublished
	_, err := s.change(ctx, op, r.Header, &command.TopicCommand{
		Op: &command.TopicCommand_Publish{Publish: &command.TopicPublish{Topic: r.Topic, Lines: r.Lines}},
	}, &done)
	return &dcpb.TopicPublishReply{First: done.First, Count: done.Count, End: done.End}, err
}

// Stat tells how long a log is.
func (s *Service) Stat(ctx context.Context, r *dcpb.TopicStatRequest) (*dcpb.TopicStatReply, error) {
	out := &dcpb.TopicStatReply{}
	err := s.view(ctx, "topic.stat", r.Header, func(rd storage.Reader) error {
		st, err := topic.State(rd, "topic.stat", r.Topic)
		if err == nil {
			out.NextOffset, out.Bytes, out.Groups, out.LastMs = st.NextOffset, st.NextByte, st.Groups, st.LastMs
			out.FirstOffset, out.FirstByte, out.RetentionMs, out.RetentionBytes = st.FirstOffset, st.FirstByte, st.RetentionMs, st.RetentionBytes
		}
		return err
	})
	return out, err
}

// readBytes bounds one answer of Read, Fetch and Follow.
const readBytes = 1 * dc.MiB

// Read reads a log like a file.
func (s *Service) Read(ctx context.Context, r *dcpb.TopicReadRequest) (*dcpb.TopicReadReply, error) {
	out := &dcpb.TopicReadReply{}
	err := s.view(ctx, "topic.read", r.Header, func(rd storage.Reader) error {
		st, err := topic.State(rd, "topic.read", r.Topic)
		if err == nil {
			err = checkKept("topic.read", st, r.At)
		}
		if err == nil {
			out.Data = topic.Bytes(rd, r.Topic, r.At, int(min(r.Max, readBytes)))
		}
		return err
	})
	return out, err
}

// Fetch reads messages by offset.
func (s *Service) Fetch(ctx context.Context, r *dcpb.TopicFetchRequest) (*dcpb.TopicFetchReply, error) {
	out := &dcpb.TopicFetchReply{}
	err := s.view(ctx, "topic.fetch", r.Header, func(rd storage.Reader) error {
		if _, err := topic.State(rd, "topic.fetch", r.Topic); err != nil {
			return err
		}
		left := readBytes
		topic.Messages(rd, r.Topic, r.Offset, func(m topic.Message) bool {
			out.Messages = append(out.Messages, messageInfo(m))
			left -= len(m.Value)
			return len(out.Messages) < int(min(r.Max, dc.MaxScanPage)) && left > 0
		})
		return nil
	})
	return out, err
}

func messageInfo(m topic.Message) *dcpb.TopicMessage {
	return &dcpb.TopicMessage{Offset: m.Offset, TimeMs: m.TimeMs, Value: append([]byte(nil), m.Value...)}
}

// Find gives the offset of the first message published at a time or later.
func (s *Service) Find(ctx context.Context, r *dcpb.TopicFindRequest) (*dcpb.TopicFindReply, error) {
	out := &dcpb.TopicFindReply{}
	err := s.view(ctx, "topic.find", r.Header, func(rd storage.Reader) error {
		st, err := topic.State(rd, "topic.find", r.Topic)
		if err == nil {
			out.Offset = topic.Find(rd, r.Topic, st, r.TimeMs)
		}
		return err
	})
	return out, err
}

// Drop ends a topic.
func (s *Service) Drop(ctx context.Context, r *dcpb.TopicDropRequest) (*dcpb.TopicChangeReply, error) {
	_, err := s.change(ctx, "topic.drop", r.Header, &command.TopicCommand{
		Op: &command.TopicCommand_Drop{Drop: &command.TopicDrop{Topic: r.Topic, OnlyIfEmpty: r.OnlyIfEmpty}},
	}, nil)
	return &dcpb.TopicChangeReply{}, err
}
