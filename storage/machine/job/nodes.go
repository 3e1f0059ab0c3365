package job

import (
	"fmt"

	"missingos/srv/dc"
	"missingos/storage/command"
)

func (t *turn) node(id uint64) (*command.JobNode, bool) {
	return load(t.tx, key(rowNode, id), &command.JobNode{})
}

func (t *turn) saveNode(n *command.JobNode) {
	t.tx.Set(key(rowNode, n.Id), encode(n))
	t.tx.Emit(NodeChanged{Node: dc.NodeID(n.Id)})
}

// register opens a lease under a new epoch.
func (t *turn) register(c *command.JobRegister) (*command.JobResult, error) {
	n, _ := t.node(c.Node)
	t.lose(n, "its node started anew")
	n.Id, n.Name, n.CpuMilli, n.MemoryBytes, n.Labels = c.Node, c.Name, c.CpuMilli, c.MemoryBytes, c.Labels
	n.Epoch++
	n.Live = true
	t.saveNode(n)
	t.tx.Emit(Pending{})
	return &command.JobResult{Epoch: n.Epoch}, nil
}

// expire ends a lease: what is placed on the node is lost, and waits for another place.
func (t *turn) expire(c *command.JobExpire) (*command.JobResult, error) {
	n, ok := t.node(c.Node)
	if !ok || !n.Live || n.Epoch != c.Epoch {
		return &command.JobResult{}, nil // it has renewed, or is known to be gone
	}
	n.Live = false
	t.lose(n, "its node was lost")
	t.saveNode(n)
	t.tx.Emit(Pending{})
	return &command.JobResult{}, nil
}

func (t *turn) drain(c *command.JobDrain) (*command.JobResult, error) {
	n, ok := t.node(c.Node)
	if !ok || n.Draining == c.Drain {
		return &command.JobResult{}, nil
	}
	n.Draining = c.Drain
	t.saveNode(n)
	t.tx.Emit(Pending{})
	return &command.JobResult{}, nil
}

// lose takes every task off a node. A lost node is not the task's failure.
func (t *turn) lose(n *command.JobNode, reason string) {
	if n.Id == 0 {
		return
	}
	type place struct{ job, task uint64 }
	var places []place
	for _, k := range t.keys(key(rowOn, n.Id)) {
		places = append(places, place{last(k, 2), last(k, 1)})
	}
	for _, p := range places {
		j, ok := t.jobByID(p.job)
		if !ok {
			panic(fmt.Sprintf("job: task %d of unknown job %d is on node %d", p.task, p.job, n.Id))
		}
		task, _ := load(t.tx, key(rowTask, p.job, p.task), &command.JobTask{})
		t.leave(j, task, p.task, n)
		t.event(j, "lost", int32(p.task), n.Id, reason)
		t.again(j, task, p.task, reason, 0)
		t.saveJob(j)
	}
}

// leave takes a task off its node.
func (t *turn) leave(j *command.JobRecord, task *command.JobTask, index uint64, n *command.JobNode) {
	t.tx.Delete(key(rowOn, task.Node, j.Id, index))
	n.UsedMilli -= min(n.UsedMilli, task.CpuMilli)
	n.UsedBytes -= min(n.UsedBytes, task.MemoryBytes)
	j.Placed--
	task.EndedMs, task.Pid = t.tx.Clock(), 0
}

// again lets a task that has left its node wait for another place, or ends it if its job is being stopped or has been
// renewed past it.
func (t *turn) again(j *command.JobRecord, task *command.JobTask, index uint64, reason string, delay int64) {
	task.Reason = reason
	switch {
	case j.Want != command.JobVerb_JOB_VERB_NONE:
		task.State = command.JobTaskState_JOB_TASK_STATE_STOPPED
		j.Stopped++
	case task.Generation < j.Generation:
		// The job was restarted or updated: its tasks are fresh again. This one may be past the new count.
		task.State = command.JobTaskState_JOB_TASK_STATE_PENDING
		if index < uint64(j.Next) { // it was passed over while it was still running
			t.wait(j, task, index, 0)
		}
	default:
		t.wait(j, task, index, delay)
	}
	t.tx.Set(key(rowTask, j.Id, index), encode(task))
}

func (t *turn) wait(j *command.JobRecord, task *command.JobTask, index uint64, delay int64) {
	task.State = command.JobTaskState_JOB_TASK_STATE_PENDING
	task.NotBeforeMs = t.tx.Clock() + delay
	t.tx.Set(key(rowWait, j.Id, index), encode(&command.JobTask{NotBeforeMs: task.NotBeforeMs, Node: task.Node, Failures: task.Failures}))
	j.Waiting++
}

// plan places tasks. A placement that does not hold any more is passed over: its task still waits, and the next plan sees why.
func (t *turn) plan(c *command.JobPlan) (*command.JobResult, error) {
	res := &command.JobResult{}
	nodes := map[uint64]*command.JobNode{}
	var touched []uint64
	s := t.state()
	for _, p := range c.Placements {
		n := nodes[p.Node]
		if n == nil {
			if n, _ = t.node(p.Node); n == nil {
				continue
			}
			nodes[p.Node] = n
			touched = append(touched, p.Node)
		}
		if j, ok := t.jobByID(p.Job); ok && t.place(j, uint64(p.Task), n, s) {
			t.saveJob(j)
			res.Placed++
		}
	}
	if res.Placed > 0 {
		t.tx.Set(stateKey, encode(s))
	}
	for _, id := range touched {
		if nodes[id].Id != 0 {
			t.saveNode(nodes[id])
		}
	}
	for _, w := range c.Whys {
		if j, ok := t.jobByID(w.Job); ok && j.Why != w.Text && !Ended(j.Phase) {
			j.Why = w.Text
			t.saveJob(j)
		}
	}
	return res, nil
}

// place puts one waiting task on a node if that still holds.
func (t *turn) place(j *command.JobRecord, index uint64, n *command.JobNode, s *command.JobState) bool {
	if j.Phase != command.JobPhase_JOB_PHASE_RUNNING || !n.Live || n.Draining ||
		n.UsedMilli+j.Shape.CpuMilli > n.CpuMilli || n.UsedBytes+j.Shape.MemoryBytes > n.MemoryBytes {
		return false
	}
	task, known := load(t.tx, key(rowTask, j.Id, index), &command.JobTask{})
	_, waits := t.tx.Get(key(rowWait, j.Id, index))
	switch {
	case waits:
		t.tx.Delete(key(rowWait, j.Id, index))
		j.Waiting--
	case index != uint64(j.Next) || index >= uint64(j.Shape.Count):
		return false
	case known && onNode(task):
		// Still running for an older generation: it takes its turn when it has ended.
		j.Next++
		return true
	default:
		j.Next++
	}
	if !known || task.Generation < j.Generation {
		task.Failures = 0
	}
	s.LastFence++
	*task = command.JobTask{
		State: command.JobTaskState_JOB_TASK_STATE_PLACED, Attempt: task.Attempt + 1, Fence: s.LastFence, Node: n.Id, Generation: j.Generation,
		Failures: task.Failures, PlacedMs: t.tx.Clock(), CpuMilli: j.Shape.CpuMilli, MemoryBytes: j.Shape.MemoryBytes,
	}
	n.UsedMilli += task.CpuMilli
	n.UsedBytes += task.MemoryBytes
	j.Placed++
	t.tx.Set(key(rowTask, j.Id, index), encode(task))
	t.tx.Set(key(rowOn, n.Id, j.Id, index), nil)
	t.event(j, "placed", int32(index), n.Id, fmt.Sprintf("attempt %d", task.Attempt))
	return true
}

func onNode(t *command.JobTask) bool {
	return t.State == command.JobTaskState_JOB_TASK_STATE_PLACED || t.State == command.JobTaskState_JOB_TASK_STATE_RUNNING
}

// report takes what a node says of its tasks. What it says of an attempt that is not its any more is passed over.
func (t *turn) report(c *command.JobReport) (*command.JobResult, error) {
	n, ok := t.node(c.Node)
	if !ok || !n.Live || n.Epoch != c.Epoch {
		return nil, dc.Errorf(dc.Stale, "job.report", "", "the lease of node n%d under epoch %d has ended", c.Node, c.Epoch)
	}
	freed := false
	for _, o := range c.Outcomes {
		freed = t.outcome(n, o) || freed
	}
	t.saveNode(n)
	if freed {
		t.tx.Emit(Pending{})
	}
	return &command.JobResult{Epoch: n.Epoch}, nil
}

// outcome applies one outcome and tells whether the task has left the node.
func (t *turn) outcome(n *command.JobNode, o *command.JobOutcome) bool {
	index := uint64(o.Task)
	j, ok := t.jobByID(o.Job)
	if !ok {
		return false
	}
	task, _ := load(t.tx, key(rowTask, o.Job, index), &command.JobTask{})
	if task.Node != n.Id || task.Attempt != o.Attempt || !onNode(task) {
		return false
	}
	if o.End == command.JobEnd_JOB_END_NONE {
		task.State, task.Pid, task.StartedMs = command.JobTaskState_JOB_TASK_STATE_RUNNING, o.Pid, t.tx.Clock()
		task.Reason = o.Reason // what of its limits is not enforced there
		t.tx.Set(key(rowTask, o.Job, index), encode(task))
		t.event(j, "started", int32(index), n.Id, fmt.Sprintf("pid %d", o.Pid))
		t.saveJob(j)
		return false
	}
	t.leave(j, task, index, n)
	task.Exit = o.Exit
	t.ended(j, task, index, o)
	t.saveJob(j)
	return true
}

// ended decides what becomes of a task whose attempt is over.
func (t *turn) ended(j *command.JobRecord, task *command.JobTask, index uint64, o *command.JobOutcome) {
	detail := fmt.Sprintf("exit %d", o.Exit)
	if o.Reason != "" {
		detail += ": " + o.Reason
	}
	t.event(j, "exited", int32(index), task.Node, detail)
	current := task.Generation == j.Generation && j.Want == command.JobVerb_JOB_VERB_NONE
	switch {
	case o.End == command.JobEnd_JOB_END_MOVED, !current:
		t.again(j, task, index, o.Reason, 0)
	case j.Shape.Service:
		task.Failures++
		t.again(j, task, index, o.Reason, delay(task.Failures))
	case o.End == command.JobEnd_JOB_END_EXITED && o.Exit == 0:
		task.State, task.Reason = command.JobTaskState_JOB_TASK_STATE_SUCCEEDED, o.Reason
		j.Succeeded++
		t.tx.Set(key(rowTask, j.Id, index), encode(task))
	case task.Failures < j.Shape.Retries:
		task.Failures++
		t.event(j, "retried", int32(index), 0, fmt.Sprintf("failure %d of %d", task.Failures, j.Shape.Retries+1))
		t.again(j, task, index, o.Reason, delay(task.Failures))
	default:
		task.Failures++
		task.State, task.Reason = command.JobTaskState_JOB_TASK_STATE_FAILED, o.Reason
		j.Failed++
		t.tx.Set(key(rowTask, j.Id, index), encode(task))
	}
}

// delay is how long a task that has failed n times waits, milliseconds.
func delay(n uint32) int64 {
	return min(int64(firstDelay)<<min(n-1, 10), maxDelay)
}
