package job

import (
	"bytes"
	"fmt"

	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
)

// Version is the version of the commands that this machine understands.
const Version = 1

// Events that the machine emits.
type (
	// Changed tells that a job, or a task of it, is not what it was.
	Changed struct{ Name string }
	// NodeChanged tells that a node's tasks or its lease are not what they were.
	NodeChanged struct{ Node dc.NodeID }
	// Ordered tells that tasks which run have been told to end: every node must look.
	Ordered struct{}
	// Pending tells that tasks wait for a place, or that there is new room.
	Pending struct{}
)

// Bounds of one command and of what is kept.
const (
	maxEvents   = 1000 // of one job
	forgetRows  = 500
	MaxPlan     = 1024 // placements of one plan
	MaxOutcomes = 256  // of one report
	firstDelay  = 1000 // milliseconds before a failed task is placed again; doubles with every failure
	maxDelay    = 60_000
)

// Machine is the state machine. It has no state of its own.
type Machine struct{}

var _ storage.Machine = Machine{}

// New makes one.
func New() storage.Machine { return Machine{} }

// Apply executes one encoded command.JobCommand; the result is an encoded command.JobResult.
func (Machine) Apply(tx storage.Tx, body []byte) ([]byte, error) {
	var c command.JobCommand
	if err := proto.Unmarshal(body, &c); err != nil {
		panic("job: command does not decode: " + err.Error())
	}
	if c.Version != Version {
		panic(fmt.Sprintf("job: command version %d, this program knows %d", c.Version, Version))
	}
	res, err := (&turn{tx: tx}).apply(&c)
	if err != nil {
		return nil, err
	}
	return encode(res), nil
}

// A turn is the application of one command.
type turn struct{ tx storage.Tx }

func (t *turn) apply(c *command.JobCommand) (*command.JobResult, error) {
	switch op := c.Op.(type) {
	case *command.JobCommand_Submit:
		return t.submit(op.Submit)
	case *command.JobCommand_Control:
		return t.control(op.Control)
	case *command.JobCommand_Plan:
		return t.plan(op.Plan)
	case *command.JobCommand_Report:
		return t.report(op.Report)
	case *command.JobCommand_Register:
		return t.register(op.Register)
	case *command.JobCommand_Expire:
		return t.expire(op.Expire)
	case *command.JobCommand_Drain:
		return t.drain(op.Drain)
	case *command.JobCommand_Forget:
		return t.forget(op.Forget)
	}
	panic(fmt.Sprintf("job: unknown command %T", c.Op))
}

func (t *turn) job(name string) (*command.JobRecord, bool) {
	return load(t.tx, jobKey(name), &command.JobRecord{})
}

func (t *turn) jobByID(id uint64) (*command.JobRecord, bool) {
	name, ok := t.tx.Get(key(rowID, id))
	if !ok {
		return nil, false
	}
	return t.job(string(name))
}

func (t *turn) saveJob(j *command.JobRecord) {
	t.settle(j)
	t.tx.Set(jobKey(j.Name), encode(j))
	if fresh(j) > 0 && j.Phase == command.JobPhase_JOB_PHASE_RUNNING {
		t.tx.Set(key(rowFresh, j.Id), nil)
	} else {
		t.tx.Delete(key(rowFresh, j.Id))
	}
	t.tx.Emit(Changed{Name: j.Name})
}

// fresh is how many tasks were never placed in this generation.
func fresh(j *command.JobRecord) uint32 { return j.Shape.Count - min(j.Next, j.Shape.Count) }

// settle ends a job that has no task left to run.
func (t *turn) settle(j *command.JobRecord) {
	if Ended(j.Phase) || j.Placed > 0 || j.Waiting > 0 || fresh(j) > 0 {
		return
	}
	switch {
	case j.Failed > 0:
		j.Phase = command.JobPhase_JOB_PHASE_FAILED
	case j.Stopped > 0 || j.Phase == command.JobPhase_JOB_PHASE_STOPPING:
		j.Phase = command.JobPhase_JOB_PHASE_STOPPED
	default:
		j.Phase = command.JobPhase_JOB_PHASE_SUCCEEDED
	}
	j.EndedMs, j.Want, j.Why = t.tx.Clock(), command.JobVerb_JOB_VERB_NONE, ""
	t.event(j, "ended", -1, 0, PhaseName(j.Phase))
}

// PhaseName is a phase as status shows it.
func PhaseName(p command.JobPhase) string {
	return [...]string{"running", "stopping", "succeeded", "failed", "stopped"}[p]
}

// event appends to a job's events and forgets the oldest.
func (t *turn) event(j *command.JobRecord, what string, task int32, node uint64, detail string) {
	j.Events++
	t.tx.Set(key(rowEvent, j.Id, j.Events), encode(&command.JobEvent{Number: j.Events, AtMs: t.tx.Clock(), What: what, Task: task, Node: node, Detail: detail}))
	if j.Events > maxEvents {
		t.tx.Delete(key(rowEvent, j.Id, j.Events-maxEvents))
	}
}

func (t *turn) state() *command.JobState {
	s, _ := load(t.tx, stateKey, &command.JobState{})
	return s
}

func (t *turn) submit(c *command.JobSubmit) (*command.JobResult, error) {
	s := t.state()
	name := c.Name
	if name == "" {
		name = fmt.Sprintf("job-%d", s.LastJob+1)
	}
	j, exists := t.job(name)
	if exists && c.Uid != 0 && c.Uid != j.Uid {
		return nil, dc.Errorf(dc.Denied, "job.submit", name, "the name is taken by a job of user %d", j.Uid)
	}
	if !exists {
		s.LastJob++
		t.tx.Set(stateKey, encode(s))
		j = &command.JobRecord{Name: name, Id: s.LastJob}
		t.tx.Set(key(rowID, j.Id), []byte(name))
	}
	j.Spec, j.Shape = c.Spec, c.Shape
	j.Uid, j.Gid, j.Groups = c.Uid, c.Gid, c.Groups
	j.Version++
	j.SubmittedMs = t.tx.Clock()
	t.event(j, "submitted", -1, 0, fmt.Sprintf("version %d", j.Version))
	t.anew(j)
	t.saveJob(j)
	t.tx.Emit(Pending{})
	return &command.JobResult{Name: name, Job: j.Id}, nil
}

// anew makes all tasks of a job run again: those that are placed end first, and take their turn when they have.
func (t *turn) anew(j *command.JobRecord) {
	j.Generation++
	j.Phase, j.Want, j.EndedMs, j.Why = command.JobPhase_JOB_PHASE_RUNNING, command.JobVerb_JOB_VERB_NONE, 0, ""
	j.Next, j.Succeeded, j.Failed, j.Stopped = 0, 0, 0, 0
	for _, k := range t.keys(key(rowWait, j.Id)) {
		t.tx.Delete(k)
	}
	j.Waiting = 0
	t.tx.Emit(Ordered{})
}

// keys lists the keys under a prefix.
func (t *turn) keys(prefix []byte) (all [][]byte) {
	for k := range t.tx.Scan(keysOnly(prefix)) {
		all = append(all, bytes.Clone(k))
	}
	return all
}

func keysOnly(prefix []byte) storage.Span {
	s := under(prefix)
	s.KeysOnly = true
	return s
}

func (t *turn) control(c *command.JobControl) (*command.JobResult, error) {
	const op = "job.control"
	j, ok := t.job(c.Name)
	switch {
	case !ok:
		return nil, dc.Errorf(dc.NotFound, op, c.Name, "there is no such job")
	case c.Uid != 0 && c.Uid != j.Uid:
		return nil, dc.Errorf(dc.NotOwner, op, c.Name, "the job belongs to user %d", j.Uid)
	}
	switch c.Verb {
	case command.JobVerb_JOB_VERB_STOP, command.JobVerb_JOB_VERB_KILL:
		t.stop(j, c.Verb)
	case command.JobVerb_JOB_VERB_RESTART:
		t.event(j, "restarted", -1, 0, "")
		t.anew(j)
	case command.JobVerb_JOB_VERB_START:
		if !Ended(j.Phase) {
			return &command.JobResult{Name: j.Name, Job: j.Id}, nil
		}
		t.event(j, "restarted", -1, 0, "")
		t.anew(j)
	case command.JobVerb_JOB_VERB_SCALE:
		if c.Count < j.Shape.Count {
			return nil, dc.Errorf(dc.Unsupported, op, c.Name, "a job cannot be scaled down from %d to %d tasks yet; submit it anew", j.Shape.Count, c.Count)
		}
		if Ended(j.Phase) {
			return nil, dc.Errorf(dc.Invalid, op, c.Name, "the job has ended; start it first")
		}
		j.Shape.Count = c.Count
	default:
		panic(fmt.Sprintf("job: unknown verb %v", c.Verb))
	}
	t.saveJob(j)
	t.tx.Emit(Pending{})
	return &command.JobResult{Name: j.Name, Job: j.Id}, nil
}

// stop ends a job: tasks that wait do not run any more, tasks that run are told to end.
func (t *turn) stop(j *command.JobRecord, verb command.JobVerb) {
	if Ended(j.Phase) {
		return
	}
	t.event(j, "stopped", -1, 0, "")
	j.Stopped += fresh(j) + j.Waiting
	j.Next = j.Shape.Count
	for _, k := range t.keys(key(rowWait, j.Id)) {
		t.tx.Delete(k)
		index := last(k, 1)
		if task, ok := load(t.tx, key(rowTask, j.Id, index), &command.JobTask{}); ok {
			task.State, task.EndedMs = command.JobTaskState_JOB_TASK_STATE_STOPPED, t.tx.Clock()
			t.tx.Set(key(rowTask, j.Id, index), encode(task))
		}
	}
	j.Waiting, j.Why = 0, ""
	j.Phase, j.Want = command.JobPhase_JOB_PHASE_STOPPING, verb
	t.tx.Emit(Ordered{})
}

func (t *turn) forget(c *command.JobForget) (*command.JobResult, error) {
	const op = "job.forget"
	j, ok := t.job(c.Name)
	switch {
	case !ok:
		return nil, dc.Errorf(dc.NotFound, op, c.Name, "there is no such job")
	case c.Uid != 0 && c.Uid != j.Uid:
		return nil, dc.Errorf(dc.NotOwner, op, c.Name, "the job belongs to user %d", j.Uid)
	case !Ended(j.Phase):
		return nil, dc.Errorf(dc.Busy, op, c.Name, "the job is alive; echo stop > ctl first (removing never stops a job)")
	}
	var rows [][]byte
	for _, prefix := range [][]byte{key(rowTask, j.Id), key(rowEvent, j.Id)} {
		for k := range t.tx.Scan(keysOnly(prefix)) {
			if len(rows) == forgetRows {
				break
			}
			rows = append(rows, bytes.Clone(k))
		}
	}
	for _, k := range rows {
		t.tx.Delete(k)
	}
	if len(rows) == forgetRows {
		return &command.JobResult{More: true}, nil
	}
	t.tx.Delete(jobKey(j.Name))
	t.tx.Delete(key(rowID, j.Id))
	t.tx.Emit(Changed{Name: j.Name})
	return &command.JobResult{}, nil
}

// Command wraps one operation into a command of this version and encodes it.
func Command(op any) ([]byte, error) {
	c := &command.JobCommand{Version: Version}
	switch op := op.(type) {
	case *command.JobSubmit:
		c.Op = &command.JobCommand_Submit{Submit: op}
	case *command.JobControl:
		c.Op = &command.JobCommand_Control{Control: op}
	case *command.JobPlan:
		c.Op = &command.JobCommand_Plan{Plan: op}
	case *command.JobReport:
		c.Op = &command.JobCommand_Report{Report: op}
	case *command.JobRegister:
		c.Op = &command.JobCommand_Register{Register: op}
	case *command.JobExpire:
		c.Op = &command.JobCommand_Expire{Expire: op}
	case *command.JobDrain:
		c.Op = &command.JobCommand_Drain{Drain: op}
	case *command.JobForget:
		c.Op = &command.JobCommand_Forget{Forget: op}
	default:
		panic(fmt.Sprintf("job: %T is no command", op))
	}
	return proto.Marshal(c)
}
