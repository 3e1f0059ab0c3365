package job

import (
	"bytes"
	"context"
	"crypto/sha256"
	"time"

	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/rpc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/job"
)

// Register opens a node's lease. What was placed there before is lost; the agent has made sure that none of it runs any more.
func (s *Service) Register(ctx context.Context, r *dcpb.JobRegisterRequest) (*dcpb.JobRegisterReply, error) {
	t, n, err := s.agent("job.register", r.Header)
	if err != nil {
		return nil, err
	}
	res, err := t.do(ctx, rpc.RequestID(r.Header), &command.JobRegister{
		Node: uint64(n), Name: r.Name, CpuMilli: r.CpuMilli, MemoryBytes: r.MemoryBytes, Labels: r.Labels,
	})
	if err != nil {
		return nil, err
	}
	t.renew(n, res.Epoch)
	return &dcpb.JobRegisterReply{Epoch: res.Epoch, LeaseMs: dc.SessionTTL.Milliseconds()}, nil
}

// Sync renews a node's lease and answers when its allocations are not what the agent has seen. dc.Stale if the lease has ended.
func (s *Service) Sync(ctx context.Context, r *dcpb.JobSyncRequest) (*dcpb.JobSyncReply, error) {
	t, n, err := s.agent("job.sync", r.Header)
	if err != nil {
		return nil, err
	}
	timeout := time.NewTimer(min(awaitFor, max(time.Duration(r.WaitMs)*time.Millisecond, 0)))
	defer timeout.Stop()
	renewed := false
	for {
		news := t.nodeNews(n)
		reply := &dcpb.JobSyncReply{}
		drain := false
		// The view is confirmed by a round that begins after the request came in: a deposed leader renews nothing.
		err := t.replica.View(ctx, func(rd storage.Reader) error {
			node := job.Node(rd, n)
			if node == nil || !node.Live || node.Epoch != r.Epoch {
				return dc.Errorf(dc.Stale, "job.sync", n.String(), "the lease under epoch %d has ended", r.Epoch)
			}
			drain = node.Draining != r.Draining
			return allocations(rd, n, reply)
		})
		if err != nil {
			return nil, err
		}
		if !renewed {
			if !t.renew(n, r.Epoch) {
				return nil, dc.Errorf(dc.Stale, "job.sync", n.String(), "the lease under epoch %d is being ended", r.Epoch)
			}
			renewed = true
		}
		if drain {
			if _, err := t.do(ctx, t.replica.NewID(), &command.JobDrain{Node: uint64(n), Drain: r.Draining}); err != nil {
				return nil, err
			}
			continue
		}
		if !bytes.Equal(reply.Version, r.Seen) {
			return reply, nil
		}
		select {
		case <-news:
		case <-timeout.C:
			return &dcpb.JobSyncReply{Version: r.Seen, Same: true}, nil
		case <-ctx.Done():
			return nil, dc.Wrap(ctx.Err(), "job.sync", n.String())
		}
	}
}

// allocations fills in what a node should run. Its version is a hash of that, so nothing has to be counted.
func allocations(rd storage.Reader, n dc.NodeID, reply *dcpb.JobSyncReply) error {
	seen := map[uint64]bool{}
	for _, a := range job.On(rd, n) {
		reply.Allocations = append(reply.Allocations, &dcpb.JobAllocation{Job: a.Job, Task: a.Task, Attempt: a.Attempt, Fence: a.Fence, Generation: a.Generation})
		if seen[a.Job] {
			continue
		}
		seen[a.Job] = true
		j := job.ByID(rd, a.Job)
		want := map[command.JobVerb]string{command.JobVerb_JOB_VERB_STOP: "stop", command.JobVerb_JOB_VERB_KILL: "kill"}[j.Want]
		reply.Jobs = append(reply.Jobs, &dcpb.JobBody{
			Id: j.Id, Name: j.Name, Spec: j.Spec, Generation: j.Generation, Want: want, Uid: j.Uid, Gid: j.Gid, Groups: j.Groups,
		})
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(reply)
	if err != nil {
		return dc.Errorf(dc.Internal, "job.sync", n.String(), "encode allocations: %w", err)
	}
	sum := sha256.Sum256(b)
	reply.Version = sum[:16]
	return nil
}

// Report takes what became of a node's tasks.
func (s *Service) Report(ctx context.Context, r *dcpb.JobReportRequest) (*dcpb.JobReportReply, error) {
	t, n, err := s.agent("job.report", r.Header)
	if err != nil {
		return nil, err
	}
	if len(r.Outcomes) > job.MaxOutcomes {
		return nil, dc.Errorf(dc.TooLarge, "job.report", n.String(), "%d outcomes exceed the limit of %d", len(r.Outcomes), job.MaxOutcomes)
	}
	c := &command.JobReport{Node: uint64(n), Epoch: r.Epoch}
	for _, o := range r.Outcomes {
		if _, ok := command.JobEnd_name[int32(o.End)]; !ok {
			return nil, dc.Errorf(dc.Invalid, "job.report", n.String(), "this node does not know an end of kind %d", o.End)
		}
		c.Outcomes = append(c.Outcomes, &command.JobOutcome{Job: o.Job, Task: o.Task, Attempt: o.Attempt, End: command.JobEnd(o.End), Exit: o.Exit, Reason: o.Reason, Pid: o.Pid})
	}
	_, err = t.do(ctx, rpc.RequestID(r.Header), c)
	return &dcpb.JobReportReply{}, err
}
