package job

import (
	"context"
	"time"

	"missingos/scheduler"
	"missingos/scheduler/jobspec"
	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/srv/rpc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/machine/job"
)

// awaitFor is how long an Await or Sync holds its answer back when nothing changes.
const awaitFor = 2 * time.Second

// Submit takes a spec.
func (s *Service) Submit(ctx context.Context, r *dcpb.JobSubmitRequest) (*dcpb.JobSubmitReply, error) {
	spec, err := jobspec.Parse(r.Spec)
	if err != nil {
		return nil, err
	}
	t, p, err := s.admit("job.submit", r.Header)
	if err != nil {
		return nil, err
	}
	res, err := t.do(ctx, rpc.RequestID(r.Header), &command.JobSubmit{
		Name: spec.Name, Spec: spec.Canonical(), Uid: p.UID, Gid: p.GID, Groups: p.Groups, Shape: &command.JobShape{
			Service: spec.Type == jobspec.Service, Count: uint32(spec.Count), CpuMilli: uint32(spec.CPUMilli), MemoryBytes: spec.MemoryBytes,
			Retries: uint32(spec.Retries), Priority: int32(spec.Priority),
		},
	})
	if err != nil {
		return nil, err
	}
	return &dcpb.JobSubmitReply{Name: res.Name}, nil
}

// Plan says where a spec would be placed now.
func (s *Service) Plan(ctx context.Context, r *dcpb.JobPlanRequest) (*dcpb.JobPlanReply, error) {
	spec, err := jobspec.Parse(r.Spec)
	if err != nil {
		return nil, err
	}
	var nodes []*command.JobNode
	err = s.view(ctx, "job.plan", r.Header, func(rd storage.Reader) error {
		nodes = job.Nodes(rd)
		return nil
	})
	if err != nil {
		return nil, err
	}
	a := ask(spec.Name, spec)
	for i := range spec.Count {
		a.Tasks = append(a.Tasks, i)
	}
	names := map[dc.NodeID]string{}
	for _, n := range nodes {
		names[dc.NodeID(n.Id)] = n.Name
	}
	plan := scheduler.Process([]scheduler.Ask{a}, snapshot(nodes))
	reply := &dcpb.JobPlanReply{}
	for _, p := range plan.Placements {
		reply.Places = append(reply.Places, &dcpb.JobPlace{Task: uint32(p.Task), Node: names[p.Node]})
	}
	for _, u := range plan.Unplaced {
		reply.Unplaced, reply.Why = uint32(u.Tasks), u.Text
	}
	return reply, nil
}

var verbs = map[string]command.JobVerb{
	"stop": command.JobVerb_JOB_VERB_STOP, "kill": command.JobVerb_JOB_VERB_KILL, "restart": command.JobVerb_JOB_VERB_RESTART,
	"start": command.JobVerb_JOB_VERB_START, "scale": command.JobVerb_JOB_VERB_SCALE,
}

// Control stops, kills, restarts, starts or scales a job.
func (s *Service) Control(ctx context.Context, r *dcpb.JobControlRequest) (*dcpb.JobControlReply, error) {
	verb, ok := verbs[r.Verb]
	if !ok {
		return nil, dc.Errorf(dc.Invalid, "job.control", r.Name, "unknown verb %q", r.Verb)
	}
	if verb == command.JobVerb_JOB_VERB_SCALE && (r.Count < 1 || r.Count > jobspec.MaxTasks) {
		return nil, dc.Errorf(dc.Invalid, "job.control", r.Name, "scale %d: from 1 to %d (MaxTasks)", r.Count, jobspec.MaxTasks)
	}
	t, p, err := s.admit("job.control", r.Header)
	if err != nil {
		return nil, err
	}
	_, err = t.do(ctx, rpc.RequestID(r.Header), &command.JobControl{Name: r.Name, Verb: verb, Count: r.Count, Uid: p.UID})
	return &dcpb.JobControlReply{}, err
}

// Forget removes an ended job.
func (s *Service) Forget(ctx context.Context, r *dcpb.JobForgetRequest) (*dcpb.JobForgetReply, error) {
	t, p, err := s.admit("job.forget", r.Header)
	if err != nil {
		return nil, err
	}
	id := rpc.RequestID(r.Header)
	for {
		res, err := t.do(ctx, id, &command.JobForget{Name: r.Name, Uid: p.UID})
		if err != nil {
			return nil, err
		}
		if !res.More {
			return &dcpb.JobForgetReply{}, nil
		}
		id = t.replica.NewID()
	}
}

func info(j *command.JobRecord) *dcpb.JobInfo {
	kind := jobspec.Batch
	if j.Shape.Service {
		kind = jobspec.Service
	}
	return &dcpb.JobInfo{
		Name: j.Name, Id: j.Id, Spec: j.Spec, Type: kind, Phase: job.PhaseName(j.Phase), Desired: j.Shape.Count,
		Pending: j.Shape.Count - min(j.Shape.Count, j.Placed+j.Succeeded+j.Failed+j.Stopped), Placed: j.Placed, Succeeded: j.Succeeded, Failed: j.Failed,
		Stopped: j.Stopped, Version: j.Version, SubmittedMs: j.SubmittedMs, EndedMs: j.EndedMs, Why: j.Why, Events: j.Events, Uid: j.Uid, Gid: j.Gid,
	}
}

func find(rd storage.Reader, op, name string) (*command.JobRecord, error) {
	if j := job.Job(rd, name); j != nil {
		return j, nil
	}
	return nil, dc.Errorf(dc.NotFound, op, name, "there is no such job")
}

// Get describes a job.
func (s *Service) Get(ctx context.Context, r *dcpb.JobGetRequest) (*dcpb.JobGetReply, error) {
	reply := &dcpb.JobGetReply{}
	return reply, s.view(ctx, "job.get", r.Header, func(rd storage.Reader) error {
		j, err := find(rd, "job.get", r.Name)
		if err == nil {
			reply.Job = info(j)
		}
		return err
	})
}

// List gives a page of jobs, without their specs.
func (s *Service) List(ctx context.Context, r *dcpb.JobListRequest) (*dcpb.JobListReply, error) {
	limit := int(r.Limit)
	if limit <= 0 || limit > dc.MaxScanPage {
		limit = dc.MaxScanPage
	}
	reply := &dcpb.JobListReply{}
	return reply, s.view(ctx, "job.list", r.Header, func(rd storage.Reader) error {
		for _, j := range job.List(rd, r.After, limit) {
			i := info(j)
			i.Spec = nil
			reply.Jobs = append(reply.Jobs, i)
		}
		return nil
	})
}

var stateNames = [...]string{"pending", "placed", "running", "succeeded", "failed", "stopped"}

// Task describes a task.
func (s *Service) Task(ctx context.Context, r *dcpb.JobTaskRequest) (*dcpb.JobTaskReply, error) {
	reply := &dcpb.JobTaskReply{}
	return reply, s.view(ctx, "job.task", r.Header, func(rd storage.Reader) error {
		j, err := find(rd, "job.task", r.Name)
		if err != nil {
			return err
		}
		t := job.Task(rd, j, r.Task)
		if t == nil {
			return dc.Errorf(dc.NotFound, "job.task", r.Name, "the job has %d tasks", j.Shape.Count)
		}
		name := ""
		if n := job.Node(rd, dc.NodeID(t.Node)); n != nil {
			name = n.Name
		}
		reply.Task = &dcpb.JobTaskInfo{
			State: stateNames[t.State], Attempt: t.Attempt, Fence: t.Fence, Node: t.Node, NodeName: name, Failures: t.Failures, Exit: t.Exit, Reason: t.Reason,
			Pid: t.Pid, PlacedMs: t.PlacedMs, StartedMs: t.StartedMs, EndedMs: t.EndedMs, Job: j.Id,
		}
		return nil
	})
}

// Await answers when a job has other events than the caller has seen.
func (s *Service) Await(ctx context.Context, r *dcpb.JobAwaitRequest) (*dcpb.JobAwaitReply, error) {
	t, _, err := s.admit("job.await", r.Header)
	if err != nil {
		return nil, err
	}
	timeout := time.NewTimer(awaitFor)
	defer timeout.Stop()
	for {
		news := t.jobNews(r.Name)
		var j *command.JobRecord
		err := t.replica.View(ctx, func(rd storage.Reader) (err error) {
			j, err = find(rd, "job.await", r.Name)
			return err
		})
		if err != nil {
			return nil, err
		}
		if j.Events != r.Seen || job.Ended(j.Phase) {
			return &dcpb.JobAwaitReply{Job: info(j)}, nil
		}
		select {
		case <-news:
		case <-timeout.C:
			return &dcpb.JobAwaitReply{Job: info(j)}, nil
		case <-ctx.Done():
			return nil, dc.Wrap(ctx.Err(), "job.await", r.Name)
		}
	}
}

// eventsPage is how many events an answer holds.
const eventsPage = 256

// Events gives a job's events after a number.
func (s *Service) Events(ctx context.Context, r *dcpb.JobEventsRequest) (*dcpb.JobEventsReply, error) {
	reply := &dcpb.JobEventsReply{}
	return reply, s.view(ctx, "job.events", r.Header, func(rd storage.Reader) error {
		j, err := find(rd, "job.events", r.Name)
		if err != nil {
			return err
		}
		for _, e := range job.Events(rd, j, r.After, eventsPage) {
			name := ""
			if n := job.Node(rd, dc.NodeID(e.Node)); n != nil {
				name = n.Name
			}
			reply.Events = append(reply.Events, &dcpb.JobEventInfo{Number: e.Number, AtMs: e.AtMs, What: e.What, Task: e.Task, Node: name, Detail: e.Detail})
		}
		return nil
	})
}
