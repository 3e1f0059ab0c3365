package client

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/rpc"
)

// CreateGroup makes a consumer group, which begins with the oldest message; dc.Exists if there is one.
func (t *Topics) CreateGroup(ctx context.Context, d Descriptor, group string) error {
	return t.group(ctx, d, group, "topic.mkgroup", func(ctx context.Context, c dcpb.TopicClient, r *dcpb.TopicGroupRequest) (*dcpb.TopicChangeReply, error) {
		return c.CreateGroup(ctx, r)
	})
}

// DropGroup removes a consumer group with its position.
func (t *Topics) DropGroup(ctx context.Context, d Descriptor, group string) error {
	return t.group(ctx, d, group, "topic.rmgroup", func(ctx context.Context, c dcpb.TopicClient, r *dcpb.TopicGroupRequest) (*dcpb.TopicChangeReply, error) {
		return c.DropGroup(ctx, r)
	})
}

func (t *Topics) group(ctx context.Context, d Descriptor, group, op string, call func(context.Context, dcpb.TopicClient, *dcpb.TopicGroupRequest) (*dcpb.TopicChangeReply, error)) error {
	_, err := topicCall(ctx, t, d, true, func(ctx context.Context, c dcpb.TopicClient, h *dcpb.Header) (*dcpb.TopicChangeReply, error) {
		return call(ctx, c, &dcpb.TopicGroupRequest{Header: h, Topic: d.ID, Group: group})
	})
	return wrap(err, op, d.Name+"/groups/"+group)
}

// Groups gives up to limit names of consumer groups in order, strictly after a name.
func (t *Topics) Groups(ctx context.Context, d Descriptor, after string, limit int) ([]string, error) {
	r, err := topicCall(ctx, t, d, false, func(ctx context.Context, c dcpb.TopicClient, h *dcpb.Header) (*dcpb.TopicGroupsReply, error) {
		return c.Groups(ctx, &dcpb.TopicGroupsRequest{Header: h, Topic: d.ID, After: after, Limit: uint32(max(limit, 0))})
	})
	return r.GetNames(), wrap(err, "topic.groups", d.Name)
}

// TopicGroup is how a consumer group stands.
type TopicGroup struct {
	Name          string
	Offset        uint64 // the first message not acknowledged
	Next          uint64 // the first never delivered
	Lag           uint64 // messages not acknowledged
	InFlight      uint64 // of those, delivered
	Returned      uint64 // of those, waiting to be delivered again
	Acked, Dead   uint64
	Expired       uint64 // removed by the topic's retention before they were acknowledged
	Visibility    time.Duration
	MaxDeliveries uint32 // 0: no limit
	DeadLetter    string // a topic
	Created       time.Time
}

// Group asks for it; dc.NotFound if there is none.
func (t *Topics) Group(ctx context.Context, d Descriptor, group string) (TopicGroup, error) {
	r, err := topicCall(ctx, t, d, false, func(ctx context.Context, c dcpb.TopicClient, h *dcpb.Header) (*dcpb.TopicGroupReply, error) {
		return c.GroupStat(ctx, &dcpb.TopicGroupRequest{Header: h, Topic: d.ID, Group: group})
	})
	if err != nil {
		return TopicGroup{}, wrap(err, "topic.group", d.Name+"/groups/"+group)
	}
	return TopicGroup{
		Name: r.Name, Offset: r.Offset, Next: r.Next, Lag: r.Lag, InFlight: r.InFlight, Returned: r.Returned, Acked: r.Acked, Dead: r.Dead, Expired: r.Expired,
		Visibility: time.Duration(r.VisibilityMs) * time.Millisecond, MaxDeliveries: r.MaxDeliveries, DeadLetter: r.DeadLetter,
		Created: time.UnixMilli(r.CreatedMs),
	}, nil
}

// TopicSettings are changes of a consumer group's settings; nil leaves one alone.
type TopicSettings struct {
	Visibility    *time.Duration
	MaxDeliveries *uint32
	DeadLetter    *string // the name of a topic; "": none
}

// SetGroup changes settings.
func (t *Topics) SetGroup(ctx context.Context, d Descriptor, group string, s TopicSettings) error {
	req := &dcpb.TopicSetGroupRequest{Topic: d.ID, Group: group, MaxDeliveries: s.MaxDeliveries}
	if s.Visibility != nil {
		ms := s.Visibility.Milliseconds()
		req.VisibilityMs = &ms
	}
	if s.DeadLetter != nil {
		var id uint64
		if *s.DeadLetter != "" {
			letter, err := t.Topic(ctx, *s.DeadLetter)
			if err != nil {
				return err
			}
			if letter.Group != d.Group {
				return dc.Errorf(dc.Unsupported, "topic.ctl", d.Name, "the dead-letter topic %s is kept by another raft group", letter.Name)
			}
			id = letter.ID
		}
		req.DeadLetter, req.DeadLetterName = &id, *s.DeadLetter
	}
	_, err := topicCall(ctx, t, d, true, func(ctx context.Context, c dcpb.TopicClient, h *dcpb.Header) (*dcpb.TopicChangeReply, error) {
		return c.SetGroup(ctx, &dcpb.TopicSetGroupRequest{
			Header: h, Topic: req.Topic, Group: req.Group, VisibilityMs: req.VisibilityMs, MaxDeliveries: req.MaxDeliveries,
			DeadLetter: req.DeadLetter, DeadLetterName: req.DeadLetterName,
		})
	})
	return wrap(err, "topic.ctl", d.Name+"/groups/"+group)
}

// TopicPosition is a place in a log: one of the fields.
type TopicPosition struct {
	Earliest, Latest bool
	Time             time.Time // the first message published then or later
	Offset           uint64
}

// Seek moves a consumer group. What its readers hold is theirs no longer.
func (t *Topics) Seek(ctx context.Context, d Descriptor, group string, to TopicPosition) error {
	_, err := topicCall(ctx, t, d, true, func(ctx context.Context, c dcpb.TopicClient, h *dcpb.Header) (*dcpb.TopicChangeReply, error) {
		req := &dcpb.TopicSeekGroupRequest{Header: h, Topic: d.ID, Group: group}
		switch {
		case to.Earliest:
			req.To = &dcpb.TopicSeekGroupRequest_Earliest{Earliest: true}
		case to.Latest:
			req.To = &dcpb.TopicSeekGroupRequest_Latest{Latest: true}
		case !to.Time.IsZero():
			req.To = &dcpb.TopicSeekGroupRequest_TimeMs{TimeMs: to.Time.UnixMilli()}
		default:
			req.To = &dcpb.TopicSeekGroupRequest_Offset{Offset: to.Offset}
		}
		return c.SeekGroup(ctx, req)
	})
	return wrap(err, "topic.seek", d.Name+"/groups/"+group)
}

// TopicLease names one delivery of a message.
type TopicLease struct{ Offset, Lease uint64 }

func topicLeases(ids []TopicLease) []*dcpb.TopicLease {
	out := make([]*dcpb.TopicLease, len(ids))
	for i, id := range ids {
		out[i] = &dcpb.TopicLease{Offset: id.Offset, Lease: id.Lease}
	}
	return out
}

// TopicDelivery is a message given to a reader until it is settled or its visibility timeout passes.
type TopicDelivery struct {
	ID         TopicLease
	Deliveries uint32 // this one counted
	Message    TopicMessage
}

// Take acknowledges messages (those that were lost meanwhile are passed over) and takes up to count others for a reader, without
// waiting. A reader is a number that is random and its own.
func (t *Topics) Take(ctx context.Context, d Descriptor, group string, reader uint64, count int, ack ...TopicLease) ([]TopicDelivery, error) {
	r, err := topicCall(ctx, t, d, true, func(ctx context.Context, c dcpb.TopicClient, h *dcpb.Header) (*dcpb.TopicTakeReply, error) {
		return c.Take(ctx, &dcpb.TopicTakeRequest{Header: h, Topic: d.ID, Group: group, Reader: reader, Count: uint32(count), Ack: topicLeases(ack)})
	})
	out := make([]TopicDelivery, 0, len(r.GetMessages()))
	for _, m := range r.GetMessages() {
		out = append(out, TopicDelivery{
			ID: TopicLease{Offset: m.Id.GetOffset(), Lease: m.Id.GetLease()}, Deliveries: m.Deliveries, Message: topicMessage(m.Message),
		})
	}
	return out, wrap(err, "topic.take", d.Name+"/groups/"+group)
}

// Wait blocks until there may be a message to take, ctx ends, or the group is gone (dc.NotFound).
func (t *Topics) Wait(ctx context.Context, d Descriptor, group string, reader uint64) error {
	ready := errors.New("ready")
	err := resume(ctx, "topic.wait", d.Name+"/groups/"+group, func() (told bool, stopped, err error) {
		err = t.c.Stream(ctx, d.Group, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
			ctx, cancel := context.WithTimeout(ctx, topicSilence)
			defer cancel()
			st, err := dcpb.NewTopicClient(cc).Wait(ctx, &dcpb.TopicWaitRequest{Header: h, Topic: d.ID, Group: group, Reader: reader})
			if err != nil {
				return err
			}
			msg, err := st.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return rpc.FromStatus(err)
			}
			told = true
			if msg.Ready {
				stopped = ready
			}
			return nil
		})
		return told, stopped, err
	})
	if errors.Is(err, ready) {
		return nil
	}
	if errors.Is(err, dc.NotFound) {
		t.heal(ctx, d)
	}
	return err
}

// TopicOutcome is how a delivery ended.
type TopicOutcome int

// The outcomes.
const (
	TopicAck    TopicOutcome = iota // done with; dc.Stale if it was lost
	TopicNack                       // to be given to another; dc.Stale if it was lost
	TopicUnread                     // never seen by the reader: to be given to another, and not counted as a delivery
)

// Settle ends deliveries, all or none.
func (t *Topics) Settle(ctx context.Context, d Descriptor, group string, outcome TopicOutcome, ids ...TopicLease) error {
	wire := map[TopicOutcome]dcpb.TopicSettleRequest_Outcome{
		TopicAck: dcpb.TopicSettleRequest_OUTCOME_ACK, TopicNack: dcpb.TopicSettleRequest_OUTCOME_NACK, TopicUnread: dcpb.TopicSettleRequest_OUTCOME_UNREAD,
	}[outcome]
	_, err := topicCall(ctx, t, d, true, func(ctx context.Context, c dcpb.TopicClient, h *dcpb.Header) (*dcpb.TopicChangeReply, error) {
		return c.Settle(ctx, &dcpb.TopicSettleRequest{Header: h, Topic: d.ID, Group: group, Ids: topicLeases(ids), Outcome: wire})
	})
	return wrap(err, "topic.settle", d.Name+"/groups/"+group)
}

// TopicMember is a reader of a consumer group.
type TopicMember struct {
	Reader  uint64
	Node    dc.NodeID
	PID     uint32
	Command string
	Leased  int // messages it holds
	Waiting bool
	Since   time.Time
}

// Members lists the readers that hold messages or wait for some.
func (t *Topics) Members(ctx context.Context, d Descriptor, group string) ([]TopicMember, error) {
	r, err := topicCall(ctx, t, d, false, func(ctx context.Context, c dcpb.TopicClient, h *dcpb.Header) (*dcpb.TopicMembersReply, error) {
		return c.Members(ctx, &dcpb.TopicGroupRequest{Header: h, Topic: d.ID, Group: group})
	})
	var out []TopicMember
	for _, m := range r.GetMembers() {
		out = append(out, TopicMember{
			Reader: m.Reader, Node: dc.NodeID(m.Node), PID: m.Pid, Command: m.Command, Leased: int(m.Leased), Waiting: m.Waiting, Since: time.UnixMilli(m.SinceMs),
		})
	}
	return out, wrap(err, "topic.members", d.Name+"/groups/"+group)
}
