package client

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

// JobInfo describes a job.
type JobInfo struct {
	Name, Type, Phase, Why                               string
	ID                                                   uint64
	Spec                                                 []byte // empty in a listing
	Desired, Pending, Placed, Succeeded, Failed, Stopped uint32
	Version, Events                                      uint64
	Submitted, Ended                                     time.Time
	UID, GID                                             uint32
}

// Over tells whether the job has ended.
func (j JobInfo) Over() bool {
	return j.Phase == "succeeded" || j.Phase == "failed" || j.Phase == "stopped"
}

// JobTask describes a task of a job.
type JobTask struct {
	State, NodeName, Reason   string
	Job                       uint64
	Attempt, Failures, PID    uint32
	Fence                     uint64
	Node                      dc.NodeID // of the latest attempt; zero before the first
	Exit                      int32
	Placed, Started, Finished time.Time
}

// JobEvent is something that happened to a job. Task is -1 for the job itself.
type JobEvent struct {
	Number             uint64
	At                 time.Time
	What, Node, Detail string
	Task               int32
}

// JobPlan says where a spec's tasks would go.
type JobPlan struct {
	Places   []string // the node's name, by task
	Unplaced uint32
	Why      string
}

// Jobs is the client of the jobs group. It is safe for concurrent use.
type Jobs struct{ c *Client }

// NewJobs makes it.
func NewJobs(c *Client) *Jobs { return &Jobs{c: c} }

type jobCall func(ctx context.Context, cc dcpb.JobClient, h *dcpb.Header) error

func (j *Jobs) query(ctx context.Context, call jobCall) error {
	g, err := j.c.Group(dc.KindJobs)
	if err != nil {
		return err
	}
	return j.c.Query(ctx, g, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
		return call(ctx, dcpb.NewJobClient(cc), h)
	})
}

func (j *Jobs) mutate(ctx context.Context, call jobCall) error {
	g, err := j.c.Group(dc.KindJobs)
	if err != nil {
		return err
	}
	return j.c.Mutate(ctx, g, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
		return call(ctx, dcpb.NewJobClient(cc), h)
	})
}

// Submit submits a spec and gives the job's name.
func (j *Jobs) Submit(ctx context.Context, spec []byte) (name string, err error) {
	err = j.mutate(ctx, func(ctx context.Context, cc dcpb.JobClient, h *dcpb.Header) error {
		r, err := cc.Submit(ctx, &dcpb.JobSubmitRequest{Header: h, Spec: spec})
		name = r.GetName()
		return err
	})
	return name, err
}

// Plan says where a spec would be placed.
func (j *Jobs) Plan(ctx context.Context, spec []byte) (plan JobPlan, err error) {
	err = j.query(ctx, func(ctx context.Context, cc dcpb.JobClient, h *dcpb.Header) error {
		r, err := cc.Plan(ctx, &dcpb.JobPlanRequest{Header: h, Spec: spec})
		plan = JobPlan{Unplaced: r.GetUnplaced(), Why: r.GetWhy()}
		for _, p := range r.GetPlaces() {
			plan.Places = append(plan.Places, p.Node)
		}
		return err
	})
	return plan, err
}

// Control does a verb: stop, kill, restart, start, or scale (to count).
func (j *Jobs) Control(ctx context.Context, name, verb string, count int) error {
	return j.mutate(ctx, func(ctx context.Context, cc dcpb.JobClient, h *dcpb.Header) error {
		_, err := cc.Control(ctx, &dcpb.JobControlRequest{Header: h, Name: name, Verb: verb, Count: uint32(count)})
		return err
	})
}

// Forget removes an ended job; dc.Busy if it lives.
func (j *Jobs) Forget(ctx context.Context, name string) error {
	return j.mutate(ctx, func(ctx context.Context, cc dcpb.JobClient, h *dcpb.Header) error {
		_, err := cc.Forget(ctx, &dcpb.JobForgetRequest{Header: h, Name: name})
		return err
	})
}

// Job describes a job; dc.NotFound if there is none.
func (j *Jobs) Job(ctx context.Context, name string) (info JobInfo, err error) {
	err = j.query(ctx, func(ctx context.Context, cc dcpb.JobClient, h *dcpb.Header) error {
		r, err := cc.Get(ctx, &dcpb.JobGetRequest{Header: h, Name: name})
		if err == nil {
			info = jobInfo(r.Job)
		}
		return err
	})
	return info, err
}

// List gives up to limit (at most dc.MaxScanPage) jobs in name order after a name.
func (j *Jobs) List(ctx context.Context, after string, limit int) (jobs []JobInfo, err error) {
	err = j.query(ctx, func(ctx context.Context, cc dcpb.JobClient, h *dcpb.Header) error {
		r, err := cc.List(ctx, &dcpb.JobListRequest{Header: h, After: after, Limit: uint32(limit)})
		jobs = nil
		for _, i := range r.GetJobs() {
			jobs = append(jobs, jobInfo(i))
		}
		return err
	})
	return jobs, err
}

// Task describes a task.
func (j *Jobs) Task(ctx context.Context, name string, index int) (task JobTask, err error) {
	err = j.query(ctx, func(ctx context.Context, cc dcpb.JobClient, h *dcpb.Header) error {
		r, err := cc.Task(ctx, &dcpb.JobTaskRequest{Header: h, Name: name, Task: uint32(index)})
		if err == nil {
			t := r.Task
			task = JobTask{
				State: t.State, NodeName: t.NodeName, Reason: t.Reason, Job: t.Job, Attempt: t.Attempt, Failures: t.Failures, PID: t.Pid, Fence: t.Fence, Node: dc.NodeID(t.Node),
				Exit: t.Exit, Placed: unixMs(t.PlacedMs), Started: unixMs(t.StartedMs), Finished: unixMs(t.EndedMs),
			}
		}
		return err
	})
	return task, err
}

// Await answers when the job has other events than seen (JobInfo.Events), when it has ended, or after about two seconds.
func (j *Jobs) Await(ctx context.Context, name string, seen uint64) (info JobInfo, err error) {
	err = j.query(ctx, func(ctx context.Context, cc dcpb.JobClient, h *dcpb.Header) error {
		r, err := cc.Await(ctx, &dcpb.JobAwaitRequest{Header: h, Name: name, Seen: seen})
		if err == nil {
			info = jobInfo(r.Job)
		}
		return err
	})
	return info, err
}

// Events gives some events of a job after a number; none if there are no later ones.
func (j *Jobs) Events(ctx context.Context, name string, after uint64) (events []JobEvent, err error) {
	err = j.query(ctx, func(ctx context.Context, cc dcpb.JobClient, h *dcpb.Header) error {
		r, err := cc.Events(ctx, &dcpb.JobEventsRequest{Header: h, Name: name, After: after})
		events = nil
		for _, e := range r.GetEvents() {
			events = append(events, JobEvent{Number: e.Number, At: unixMs(e.AtMs), What: e.What, Node: e.Node, Detail: e.Detail, Task: e.Task})
		}
		return err
	})
	return events, err
}

// Output reads a task's output from the node that ran the attempt: data from an offset, and how large the output is so far.
func (j *Jobs) Output(ctx context.Context, t JobTask, index int, stream string, offset int64, limit int) (data []byte, size int64, err error) {
	if t.Node == 0 {
		return nil, 0, nil
	}
	ctx, cancel := withDefaultDeadline(ctx)
	defer cancel()
	err = j.c.OnNode(ctx, t.Node, func(ctx context.Context, cc grpc.ClientConnInterface, h *dcpb.Header) error {
		r, err := dcpb.NewTaskOutputClient(cc).Read(ctx, &dcpb.TaskReadRequest{
			Header: h, Job: t.Job, Task: uint32(index), Attempt: t.Attempt, Stream: stream, Offset: offset, Limit: int32(limit),
		})
		data, size = r.GetData(), r.GetSize()
		return err
	})
	return data, size, err
}

func jobInfo(i *dcpb.JobInfo) JobInfo {
	return JobInfo{
		Name: i.Name, Type: i.Type, Phase: i.Phase, Why: i.Why, ID: i.Id, Spec: i.Spec, Desired: i.Desired, Pending: i.Pending, Placed: i.Placed, Succeeded: i.Succeeded,
		Failed: i.Failed, Stopped: i.Stopped, Version: i.Version, Events: i.Events, Submitted: unixMs(i.SubmittedMs), Ended: unixMs(i.EndedMs), UID: i.Uid, GID: i.Gid,
	}
}

// unixMs keeps zero as the zero time.
func unixMs(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}
