package topic

import (
	"time"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/rpc"
	"missingos/storage"
	"missingos/storage/machine/topic"
)

const (
	lifeSign  = 10 * time.Second // a follower hears something at least so often
	lookAgain = 2 * time.Second  // a reader looks whether there is a message, woken or not
	waitLimit = 20 * time.Second // a Wait answers after this, whatever happened
	sendBytes = 128 * dc.KiB     // one message of Follow
)

// Follow sends a log from a byte on, and then what is appended. It ends when this node stops leading; the client resumes elsewhere.
func (s *Service) Follow(r *dcpb.TopicFollowRequest, out dcpb.Topic_FollowServer) error {
	const op = "topic.follow"
	t, h, err := s.stream(op, r.Header)
	if err != nil {
		return err
	}
	defer h.leave()
	h.follow(r.Topic)
	defer h.unfollow(r.Topic)
	if err := out.Send(&dcpb.TopicFollowReply{}); err != nil {
		return err
	}
	tick := time.NewTicker(lifeSign)
	defer tick.Stop()
	for at := r.At; ; {
		grown := h.grown(r.Topic)
		var data []byte
		// What this replica has applied is committed; a leader that was deposed only shows less of it.
		err := t.replica.Local(func(rd storage.Reader) error {
			st, err := topic.State(rd, op, r.Topic)
			if err == nil {
				err = checkKept(op, st, at)
			}
			if err == nil {
				data = topic.Bytes(rd, r.Topic, at, sendBytes)
			}
			return err
		})
		if err != nil {
			return err
		}
		if len(data) > 0 {
			if err := out.Send(&dcpb.TopicFollowReply{Data: data}); err != nil {
				return err
			}
			at += uint64(len(data))
			continue
		}
		select {
		case <-grown:
		case <-tick.C:
			if err := out.Send(&dcpb.TopicFollowReply{}); err != nil {
				return err
			}
		case <-t.over:
			return t.ended(op)
		case <-out.Context().Done():
			return out.Context().Err()
		}
	}
}

// stream admits a request that will wait. The caller must leave the hub.
func (s *Service) stream(op string, header *dcpb.Header) (*term, *hub, error) {
	t, _, err := s.admit(op, header)
	if err != nil {
		return nil, nil, err
	}
	h := s.hub(dc.GroupID(header.Group))
	if !h.enter(dc.MaxTopicWaiters) {
		return nil, nil, dc.Errorf(dc.Busy, op, "", "%d readers wait for topics of group %s, the limit (MaxTopicWaiters)", dc.MaxTopicWaiters, dc.GroupID(header.Group))
	}
	return t, h, nil
}

func (t *term) ended(op string) error {
	return dc.Errorf(dc.NotLeader, op, "", "this node no longer leads group %s", t.replica.Group())
}

// Wait answers when there may be a message for one more reader of a group, or after some seconds.
func (s *Service) Wait(r *dcpb.TopicWaitRequest, out dcpb.Topic_WaitServer) error {
	const op = "topic.wait"
	t, h, err := s.stream(op, r.Header)
	if err != nil {
		return err
	}
	defer h.leave()
	p := rpc.Principal(r.Header)
	w := &waiter{
		who:  &dcpb.TopicMember{Reader: r.Reader, Node: uint64(p.Node), Pid: p.PID, Command: p.Command, SinceMs: t.replica.Clock()},
		wake: make(chan struct{}),
	}
	h.queue(r.Topic, r.Group, w)
	defer h.unqueue(r.Topic, r.Group, w)
	limit := time.NewTimer(waitLimit)
	defer limit.Stop()
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		ready := false
		err := t.replica.Local(func(rd storage.Reader) error {
			g, err := topic.Group(rd, op, r.Topic, r.Group)
			ready = err == nil && g.Ready
			return err
		})
		if err != nil {
			return err
		}
		if ready {
			return out.Send(&dcpb.TopicWaitReply{Ready: true})
		}
		select {
		case <-w.wake:
			return out.Send(&dcpb.TopicWaitReply{Ready: true})
		case <-limit.C:
			return out.Send(&dcpb.TopicWaitReply{})
		case <-tick.C:
		case <-t.over:
			return t.ended(op)
		case <-out.Context().Done():
			return out.Context().Err()
		}
	}
}
