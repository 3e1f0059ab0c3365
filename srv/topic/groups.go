package topic

import (
	"context"
	"strings"
	"unicode/utf8"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/rpc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/topic"
)

func checkGroup(op, name string) error {
	switch {
	case name == "" || strings.ContainsAny(name, "/\x00") || name == "." || name == ".." || name == ".dc" || !utf8.ValidString(name):
		return dc.Errorf(dc.Invalid, op, name, "a consumer group cannot have this name")
	case len(name) > dc.MaxNameBytes:
		return dc.Errorf(dc.NameTooLong, op, name[:32]+"...", "name of %d bytes exceeds the limit of %d (MaxNameBytes)", len(name), dc.MaxNameBytes)
	}
	return nil
}

// CreateGroup makes a consumer group, which begins with the oldest message.
func (s *Service) CreateGroup(ctx context.Context, r *dcpb.TopicGroupRequest) (*dcpb.TopicChangeReply, error) {
	const op = "topic.mkgroup"
	if err := checkGroup(op, r.Group); err != nil {
		return nil, err
	}
	_, err := s.change(ctx, op, r.Header, &command.TopicCommand{
		Op: &command.TopicCommand_CreateGroup{CreateGroup: &command.TopicCreateGroup{Topic: r.Topic, Group: r.Group}},
	}, nil)
	return &dcpb.TopicChangeReply{}, err
}

// DropGroup removes a consumer group, with what it knows.
func (s *Service) DropGroup(ctx context.Context, r *dcpb.TopicGroupRequest) (*dcpb.TopicChangeReply, error) {
	_, err := s.change(ctx, "topic.rmgroup", r.Header, &command.TopicCommand{
		Op: &command.TopicCommand_DropGroup{DropGroup: &command.TopicDropGroup{Topic: r.Topic, Group: r.Group}},
	}, nil)
	return &dcpb.TopicChangeReply{}, err
}

// SetGroup changes settings of a consumer group.
func (s *Service) SetGroup(ctx context.Context, r *dcpb.TopicSetGroupRequest) (*dcpb.TopicChangeReply, error) {
	_, err := s.change(ctx, "topic.ctl", r.Header, &command.TopicCommand{
		Op: &command.TopicCommand_SetGroup{SetGroup: &command.TopicSetGroup{
			Topic: r.Topic, Group: r.Group, VisibilityMs: r.VisibilityMs, MaxDeliveries: r.MaxDeliveries,
			DeadLetter: r.DeadLetter, DeadLetterName: r.DeadLetterName,
		}},
	}, nil)
	return &dcpb.TopicChangeReply{}, err
}

// SeekGroup moves a consumer group; what its readers hold is theirs no longer.
func (s *Service) SeekGroup(ctx context.Context, r *dcpb.TopicSeekGroupRequest) (*dcpb.TopicChangeReply, error) {
	to := &command.TopicPosition{}
	switch at := r.To.(type) {
	case *dcpb.TopicSeekGroupRequest_Offset:
		to.At = &command.TopicPosition_Offset{Offset: at.Offset}
	case *dcpb.TopicSeekGroupRequest_TimeMs:
		to.At = &command.TopicPosition_TimeMs{TimeMs: at.TimeMs}
	case *dcpb.TopicSeekGroupRequest_Earliest:
		to.At = &command.TopicPosition_Earliest{Earliest: true}
	case *dcpb.TopicSeekGroupRequest_Latest:
		to.At = &command.TopicPosition_Latest{Latest: true}
	}
	_, err := s.change(ctx, "topic.seek", r.Header, &command.TopicCommand{
		Op: &command.TopicCommand_SeekGroup{SeekGroup: &command.TopicSeekGroup{Topic: r.Topic, Group: r.Group, To: to}},
	}, nil)
	return &dcpb.TopicChangeReply{}, err
}

// GroupStat tells how a consumer group stands.
func (s *Service) GroupStat(ctx context.Context, r *dcpb.TopicGroupRequest) (*dcpb.TopicGroupReply, error) {
	out := &dcpb.TopicGroupReply{Name: r.Group}
	err := s.view(ctx, "topic.group", r.Header, func(rd storage.Reader) error {
		g, err := topic.Group(rd, "topic.group", r.Topic, r.Group)
		if err != nil {
			return err
		}
		out.Offset, out.Next, out.Lag, out.InFlight, out.Returned = g.Offset, g.Cursor, g.Lag, g.InFlight, g.Returned
		out.Acked, out.Dead, out.CreatedMs = g.Acked, g.Dead, g.CreatedMs
		out.Expired = g.Expired
		out.VisibilityMs, out.MaxDeliveries, out.DeadLetter = g.VisibilityMs, g.MaxDeliveries, g.DeadLetterName
		return nil
	})
	return out, err
}

// Groups lists a topic's consumer groups.
func (s *Service) Groups(ctx context.Context, r *dcpb.TopicGroupsRequest) (*dcpb.TopicGroupsReply, error) {
	out := &dcpb.TopicGroupsReply{}
	err := s.view(ctx, "topic.groups", r.Header, func(rd storage.Reader) error {
		_, err := topic.State(rd, "topic.groups", r.Topic)
		if err == nil {
			out.Names = topic.Groups(rd, r.Topic, r.After, int(min(r.Limit, dc.MaxScanPage)))
		}
		return err
	})
	return out, err
}

func leases(ids []*dcpb.TopicLease) []*command.TopicLeaseID {
	out := make([]*command.TopicLeaseID, len(ids))
	for i, id := range ids {
		out[i] = &command.TopicLeaseID{Offset: id.GetOffset(), Lease: id.GetLease()}
	}
	return out
}

// Take acknowledges messages and leases others, as many as there are up to the number asked for. It does not wait.
func (s *Service) Take(ctx context.Context, r *dcpb.TopicTakeRequest) (*dcpb.TopicTakeReply, error) {
	const op = "topic.take"
	p := rpc.Principal(r.Header)
	var taken command.TopicTaken
	t, err := s.change(ctx, op, r.Header, &command.TopicCommand{Op: &command.TopicCommand_Take{Take: &command.TopicTake{
		Topic: r.Topic, Group: r.Group, Ack: leases(r.Ack), Count: r.Count,
		Reader: &command.TopicReader{Reader: r.Reader, Node: uint64(p.Node), Pid: p.PID, Command: p.Command},
	}}}, &taken)
	if err != nil {
		return nil, err
	}
	out := &dcpb.TopicTakeReply{}
	err = t.replica.Local(func(rd storage.Reader) error {
		for _, d := range taken.Deliveries {
			topic.Messages(rd, r.Topic, d.Id.Offset, func(m topic.Message) bool {
				if m.Offset != d.Id.Offset {
					return false // the retention has just removed it
				}
				out.Messages = append(out.Messages, &dcpb.TopicDelivered{
					Id: &dcpb.TopicLease{Offset: d.Id.Offset, Lease: d.Id.Lease}, Deliveries: d.Deliveries, Message: messageInfo(m),
				})
				return false
			})
		}
		return nil
	})
	return out, err
}

// Settle ends deliveries.
func (s *Service) Settle(ctx context.Context, r *dcpb.TopicSettleRequest) (*dcpb.TopicChangeReply, error) {
	var outcome command.TopicOutcome
	switch r.Outcome {
	case dcpb.TopicSettleRequest_OUTCOME_ACK:
		outcome = command.TopicOutcome_TOPIC_OUTCOME_ACK
	case dcpb.TopicSettleRequest_OUTCOME_NACK:
		outcome = command.TopicOutcome_TOPIC_OUTCOME_NACK
	case dcpb.TopicSettleRequest_OUTCOME_UNREAD:
		outcome = command.TopicOutcome_TOPIC_OUTCOME_UNREAD
	default:
		return nil, dc.Errorf(dc.Invalid, "topic.settle", r.Group, "unknown outcome %v", r.Outcome)
	}
	_, err := s.change(ctx, "topic.settle", r.Header, &command.TopicCommand{Op: &command.TopicCommand_Settle{Settle: &command.TopicSettle{
		Topic: r.Topic, Group: r.Group, Ids: leases(r.Ids), Outcome: outcome,
	}}}, nil)
	return &dcpb.TopicChangeReply{}, err
}

// Members lists the readers that hold messages or wait for some.
func (s *Service) Members(ctx context.Context, r *dcpb.TopicGroupRequest) (*dcpb.TopicMembersReply, error) {
	byReader := map[uint64]*dcpb.TopicMember{}
	out := &dcpb.TopicMembersReply{}
	add := func(m *dcpb.TopicMember) *dcpb.TopicMember {
		if have := byReader[m.Reader]; have != nil {
			return have
		}
		byReader[m.Reader] = m
		out.Members = append(out.Members, m)
		return m
	}
	err := s.view(ctx, "topic.members", r.Header, func(rd storage.Reader) error {
		g, err := topic.Group(rd, "topic.members", r.Topic, r.Group)
		if err != nil {
			return err
		}
		topic.Flights(rd, r.Topic, g.Epoch, func(_ uint64, f *command.TopicFlight) bool {
			m := add(&dcpb.TopicMember{
				Reader: f.Reader.GetReader(), Node: f.Reader.GetNode(), Pid: f.Reader.GetPid(), Command: f.Reader.GetCommand(), SinceMs: f.SinceMs,
			})
			m.Leased++
			return len(out.Members) < dc.MaxScanPage
		})
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, w := range s.hub(dc.GroupID(r.Header.GetGroup())).waiting(r.Topic, r.Group) {
		add(w).Waiting = true
	}
	return out, nil
}
