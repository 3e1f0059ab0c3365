package job

import (
	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
)

// Job reads a job by name; nil if there is none.
func Job(r storage.Reader, name string) *command.JobRecord {
	if j, ok := load(r, jobKey(name), &command.JobRecord{}); ok {
		return j
	}
	return nil
}

// ByID reads a job by id; nil if there is none.
func ByID(r storage.Reader, id uint64) *command.JobRecord {
	name, ok := r.Get(key(rowID, id))
	if !ok {
		return nil
	}
	return Job(r, string(name))
}

// List gives up to limit jobs in name order after a name.
func List(r storage.Reader, after string, limit int) []*command.JobRecord {
	span := under([]byte{rowJob})
	if after != "" {
		span.Start = append(jobKey(after), 0)
	}
	var out []*command.JobRecord
	for _, v := range r.Scan(span) {
		j := &command.JobRecord{}
		decode(v, j)
		if out = append(out, j); len(out) == limit {
			break
		}
	}
	return out
}

// Task reads a task; one that was never placed is pending. Nil if the job has no such task.
func Task(r storage.Reader, j *command.JobRecord, index uint32) *command.JobTask {
	if index >= j.Shape.Count {
		return nil
	}
	t, _ := load(r, key(rowTask, j.Id, uint64(index)), &command.JobTask{})
	if !onNode(t) && (t.Attempt == 0 || t.Generation < j.Generation) {
		t.State = command.JobTaskState_JOB_TASK_STATE_PENDING
		if Ended(j.Phase) || j.Want != command.JobVerb_JOB_VERB_NONE {
			t.State = command.JobTaskState_JOB_TASK_STATE_STOPPED
		}
	}
	return t
}

// Events gives up to limit events of a job after a number.
func Events(r storage.Reader, j *command.JobRecord, after uint64, limit int) []*command.JobEvent {
	span := under(key(rowEvent, j.Id))
	span.Start = key(rowEvent, j.Id, after+1)
	var out []*command.JobEvent
	for _, v := range r.Scan(span) {
		e := &command.JobEvent{}
		decode(v, e)
		if out = append(out, e); len(out) == limit {
			break
		}
	}
	return out
}

// Node reads a node; nil if it never registered.
func Node(r storage.Reader, id dc.NodeID) *command.JobNode {
	if n, ok := load(r, key(rowNode, uint64(id)), &command.JobNode{}); ok {
		return n
	}
	return nil
}

// Nodes lists the nodes that ever registered.
func Nodes(r storage.Reader) []*command.JobNode {
	var out []*command.JobNode
	for _, v := range r.Scan(under([]byte{rowNode})) {
		n := &command.JobNode{}
		decode(v, n)
		out = append(out, n)
	}
	return out
}

// An Allocation is a task on a node.
type Allocation struct {
	Job  uint64
	Task uint32
	*command.JobTask
}

// On lists the allocations of a node.
func On(r storage.Reader, id dc.NodeID) []Allocation {
	var out []Allocation
	for k := range r.Scan(keysOnly(key(rowOn, uint64(id)))) {
		job, index := last(k, 2), last(k, 1)
		t, _ := load(r, key(rowTask, job, index), &command.JobTask{})
		out = append(out, Allocation{Job: job, Task: uint32(index), JobTask: t})
	}
	return out
}

// A Waiting job has tasks that want a place.
type Waiting struct {
	Job   *command.JobRecord
	Tasks []uint32
	// Failed are nodes where a waiting task of the job failed last.
	Failed map[uint64]bool
}

// Wanting lists up to limit tasks that may be placed at the given time, by job, and the time at which the next one that must still wait may be.
func Wanting(r storage.Reader, nowMs int64, limit int) (jobs []Waiting, nextMs int64) {
	byJob := map[uint64]int{}
	n := 0
	find := func(id uint64) *Waiting {
		if i, ok := byJob[id]; ok {
			return &jobs[i]
		}
		j := ByID(r, id)
		if j == nil || j.Phase != command.JobPhase_JOB_PHASE_RUNNING {
			return nil
		}
		byJob[id] = len(jobs)
		jobs = append(jobs, Waiting{Job: j, Failed: map[uint64]bool{}})
		return &jobs[len(jobs)-1]
	}
	for k, v := range r.Scan(under([]byte{rowWait})) {
		if n >= limit {
			break
		}
		row := &command.JobTask{}
		decode(v, row)
		if row.NotBeforeMs > nowMs {
			if nextMs == 0 || row.NotBeforeMs < nextMs {
				nextMs = row.NotBeforeMs
			}
			continue
		}
		if w := find(last(k, 2)); w != nil {
			w.Tasks = append(w.Tasks, uint32(last(k, 1)))
			if row.Failures > 0 {
				w.Failed[row.Node] = true
			}
			n++
		}
	}
	for k := range r.Scan(keysOnly([]byte{rowFresh})) {
		w := find(last(k, 1))
		for i := uint32(0); w != nil && n < limit && w.Job.Next+i < w.Job.Shape.Count; i++ {
			w.Tasks = append(w.Tasks, w.Job.Next+i)
			n++
		}
		if n >= limit {
			break
		}
	}
	return jobs, nextMs
}
