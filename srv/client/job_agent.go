package client

import (
	"context"
	"time"

	"missingos/scheduler/agent"
	"missingos/srv/dcpb"
)

// Agent is the side of [Jobs] that a node's agent uses.
type Agent struct{ jobs *Jobs }

var _ agent.Leader = Agent{}

// Agent gives the agent's side.
func (j *Jobs) Agent() Agent { return Agent{j} }

// Register opens this node's lease and tells its epoch and length.
func (a Agent) Register(ctx context.Context, o agent.Offer) (epoch uint64, lease time.Duration, err error) {
	err = a.jobs.mutate(ctx, func(ctx context.Context, cc dcpb.JobClient, h *dcpb.Header) error {
		r, err := cc.Register(ctx, &dcpb.JobRegisterRequest{Header: h, Name: o.Name, CpuMilli: uint32(o.CPUMilli), MemoryBytes: o.MemoryBytes, Labels: o.Labels})
		epoch, lease = r.GetEpoch(), time.Duration(r.GetLeaseMs())*time.Millisecond
		return err
	})
	return epoch, lease, err
}

// Sync renews the lease and gives what the node should run, or Same if that is what was seen.
func (a Agent) Sync(ctx context.Context, epoch uint64, seen []byte, draining bool, wait time.Duration) (agent.Orders, error) {
	var o agent.Orders
	err := a.jobs.query(ctx, func(ctx context.Context, cc dcpb.JobClient, h *dcpb.Header) error {
		r, err := cc.Sync(ctx, &dcpb.JobSyncRequest{Header: h, Epoch: epoch, Seen: seen, Draining: draining, WaitMs: wait.Milliseconds()})
		if err != nil {
			return err
		}
		o = orders(r)
		return nil
	})
	return o, err
}

func orders(r *dcpb.JobSyncReply) agent.Orders {
	o := agent.Orders{Version: r.Version, Same: r.Same}
	jobs := map[uint64]*dcpb.JobBody{}
	for _, j := range r.Jobs {
		jobs[j.Id] = j
	}
	for _, x := range r.Allocations {
		j := jobs[x.Job]
		o.Allocations = append(o.Allocations, agent.Allocation{
			ID:  agent.ID{Job: x.Job, Task: x.Task, Attempt: x.Attempt},
			Job: j.GetName(), Fence: x.Fence, Spec: j.GetSpec(), Want: j.GetWant(), Outdated: x.Generation < j.GetGeneration(),
			UID: j.GetUid(), GID: j.GetGid(), Groups: j.GetGroups(),
		})
	}
	return o
}

// Report tells what became of tasks.
func (a Agent) Report(ctx context.Context, epoch uint64, outcomes []agent.Outcome) error {
	list := make([]*dcpb.JobOutcome, len(outcomes))
	for i, o := range outcomes {
		list[i] = &dcpb.JobOutcome{Job: o.Job, Task: o.Task, Attempt: o.Attempt, End: uint32(o.End), Exit: int32(o.Exit), Reason: o.Reason, Pid: uint32(o.PID)}
	}
	return a.jobs.mutate(ctx, func(ctx context.Context, cc dcpb.JobClient, h *dcpb.Header) error {
		_, err := cc.Report(ctx, &dcpb.JobReportRequest{Header: h, Epoch: epoch, Outcomes: list})
		return err
	})
}
