package job

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/storagetest"
)

func apply(t interface{ Fatal(...any) }, r *storagetest.Run, op any) (*command.JobResult, error) {
	body, err := Command(op)
	if err != nil {
		t.Fatal(err)
	}
	out, err := r.Apply(body)
	if err != nil {
		return nil, err
	}
	res := &command.JobResult{}
	if err := proto.Unmarshal(out, res); err != nil {
		t.Fatal(err)
	}
	return res, nil
}

func must(t *testing.T, r *storagetest.Run, op any) *command.JobResult {
	t.Helper()
	res, err := apply(t, r, op)
	if err != nil {
		t.Fatalf("%T: %v", op, err)
	}
	return res
}

func view[R any](r *storagetest.Run, fn func(storage.Reader) R) (out R) {
	_ = r.View(func(rd storage.Reader) error { out = fn(rd); return nil })
	return out
}

func shape(count uint32) *command.JobShape {
	return &command.JobShape{Count: count, CpuMilli: 300, MemoryBytes: 100, Retries: 1}
}

func register(node uint64) *command.JobRegister {
	return &command.JobRegister{Node: node, Name: fmt.Sprintf("n%d", node), CpuMilli: 1000, MemoryBytes: 1000}
}

func phase(r *storagetest.Run, name string) string {
	return view(r, func(rd storage.Reader) string { return PhaseName(Job(rd, name).Phase) })
}

func TestLifeOfAJob(t *testing.T) {
	r := storagetest.New(New())
	epoch := must(t, r, register(1)).Epoch
	res := must(t, r, &command.JobSubmit{Name: "j", Shape: shape(2), Uid: 5})
	must(t, r, &command.JobPlan{Placements: []*command.JobPlacement{{Job: res.Job, Task: 0, Node: 1}, {Job: res.Job, Task: 1, Node: 1}}})
	outcome := func(task, attempt uint32, end command.JobEnd, exit int32) {
		t.Helper()
		must(t, r, &command.JobReport{Node: 1, Epoch: epoch, Outcomes: []*command.JobOutcome{{Job: res.Job, Task: task, Attempt: attempt, End: end, Exit: exit}}})
	}
	outcome(0, 1, command.JobEnd_JOB_END_NONE, 0)
	outcome(0, 1, command.JobEnd_JOB_END_EXITED, 0)
	if _, err := apply(t, r, &command.JobForget{Name: "j", Uid: 5}); !errors.Is(err, dc.Busy) {
		t.Errorf("forget a living job: %v", err)
	}
	outcome(1, 1, command.JobEnd_JOB_END_EXITED, 3)
	if got := phase(r, "j"); got != "running" {
		t.Errorf("after a failure with a retry left: %s", got)
	}
	if got := must(t, r, &command.JobPlan{Placements: []*command.JobPlacement{{Job: res.Job, Task: 1, Node: 1}}}); got.Placed != 1 {
		t.Errorf("the retry is not placed: %v", got)
	}
	outcome(1, 1, command.JobEnd_JOB_END_EXITED, 0) // an older attempt: not heard
	if got := phase(r, "j"); got != "running" {
		t.Errorf("an old report counts: %s", got)
	}
	outcome(1, 2, command.JobEnd_JOB_END_EXITED, 4)
	if got := phase(r, "j"); got != "failed" {
		t.Errorf("at the end: %s", got)
	}
	for _, c := range []struct {
		op   any
		kind dc.Kind
	}{
		{&command.JobControl{Name: "j", Verb: command.JobVerb_JOB_VERB_START, Uid: 6}, dc.NotOwner},
		{&command.JobSubmit{Name: "j", Shape: shape(1), Uid: 6}, dc.Denied},
		{&command.JobForget{Name: "j", Uid: 6}, dc.NotOwner},
		{&command.JobForget{Name: "k", Uid: 5}, dc.NotFound},
		{&command.JobReport{Node: 1, Epoch: epoch + 1}, dc.Stale},
	} {
		if _, err := apply(t, r, c.op); err == nil || dc.KindOf(err) != c.kind {
			t.Errorf("%T: got %v, want %v", c.op, err, c.kind)
		}
	}
	must(t, r, &command.JobForget{Name: "j", Uid: 5})
	if rows := view(r, func(rd storage.Reader) (keys []string) {
		for k := range rd.Scan(storage.Span{Start: []byte{'a'}, End: []byte{'s'}}) {
			if k[0] != rowNode {
				keys = append(keys, string(k))
			}
		}
		return keys
	}); len(rows) > 0 {
		t.Errorf("left behind: %q", rows)
	}
}

// TestRandomHistories gives two replicas the same commands and checks after each that the books balance: what a node is charged for is what
// is on it, within its capacity; a task is on at most one node; attempts and fences only grow; an ended job has nothing left.
func TestRandomHistories(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		one, two := storagetest.New(New()), storagetest.New(New())
		b := &books{fence: map[string]uint64{}, attempt: map[string]uint32{}}
		for range rapid.IntRange(1, 120).Draw(rt, "commands") {
			if rapid.IntRange(0, 5).Draw(rt, "wait") == 0 {
				at := one.Clock() + int64(rapid.IntRange(1, 5000).Draw(rt, "ms"))
				one.SetClock(at)
				two.SetClock(at)
			}
			op := draw(rt, one)
			_, err1 := apply(rt, one, op)
			_, err2 := apply(rt, two, op)
			if fmt.Sprint(err1) != fmt.Sprint(err2) {
				rt.Fatalf("replicas answer %v and %v", err1, err2)
			}
			if problem := view(one, b.check); problem != "" {
				rt.Fatalf("after %T %v: %s", op, op, problem)
			}
		}
		if one.Dump() != two.Dump() {
			rt.Fatal("replicas differ")
		}
	})
}

// draw makes a command, most often one that has an effect on the present state.
func draw(t *rapid.T, r *storagetest.Run) any {
	name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name")
	node := rapid.Uint64Range(1, 3).Draw(t, "node")
	var rec *command.JobNode
	var on []Allocation
	var wanting []Waiting
	_ = r.View(func(rd storage.Reader) error {
		rec, on = Node(rd, dc.NodeID(node)), On(rd, dc.NodeID(node))
		wanting, _ = Wanting(rd, r.Clock(), 20)
		return nil
	})
	epoch := rec.GetEpoch() - uint64(rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(t, "stale"))
	switch rapid.IntRange(0, 11).Draw(t, "op") {
	case 0, 1:
		s := shape(rapid.Uint32Range(1, 5).Draw(t, "count"))
		s.Service = rapid.Bool().Draw(t, "service")
		return &command.JobSubmit{Name: name, Shape: s}
	case 2:
		verb := command.JobVerb(rapid.IntRange(1, 5).Draw(t, "verb"))
		return &command.JobControl{Name: name, Verb: verb, Count: rapid.Uint32Range(1, 8).Draw(t, "scale")}
	case 3:
		return register(node)
	case 4:
		return &command.JobExpire{Node: node, Epoch: epoch}
	case 5:
		return &command.JobDrain{Node: node, Drain: rapid.Bool().Draw(t, "drain")}
	case 6:
		return &command.JobForget{Name: name}
	case 7, 8, 9:
		plan := &command.JobPlan{}
		for _, w := range wanting {
			for _, task := range w.Tasks {
				plan.Placements = append(plan.Placements, &command.JobPlacement{Job: w.Job.Id, Task: task, Node: rapid.Uint64Range(1, 3).Draw(t, "on")})
			}
		}
		for range rapid.IntRange(0, 1).Draw(t, "nonsense") {
			plan.Placements = append(plan.Placements, &command.JobPlacement{
				Job: rapid.Uint64Range(1, 3).Draw(t, "job"), Task: rapid.Uint32Range(0, 6).Draw(t, "task"), Node: node,
			})
		}
		return plan
	}
	report := &command.JobReport{Node: node, Epoch: epoch}
	for _, a := range on {
		if rapid.Bool().Draw(t, "report") {
			report.Outcomes = append(report.Outcomes, &command.JobOutcome{
				Job: a.Job, Task: a.Task, Attempt: a.Attempt, End: command.JobEnd(rapid.IntRange(0, 4).Draw(t, "end")), Exit: int32(rapid.IntRange(0, 1).Draw(t, "exit")),
			})
		}
	}
	return report
}

// books remember what may only grow.
type books struct {
	fence   map[string]uint64
	attempt map[string]uint32
}

func (b *books) check(rd storage.Reader) string {
	where := map[string]uint64{}
	for _, n := range Nodes(rd) {
		var milli uint32
		var bytes int64
		for _, a := range On(rd, dc.NodeID(n.Id)) {
			id := fmt.Sprintf("%d.%d", a.Job, a.Task)
			if where[id] != 0 {
				return fmt.Sprintf("%s is on nodes %d and %d", id, where[id], n.Id)
			}
			where[id] = n.Id
			if a.Node != n.Id || !onNode(a.JobTask) {
				return fmt.Sprintf("%s is listed on node %d, but is %v", id, n.Id, a.JobTask)
			}
			if a.Attempt < b.attempt[id] || a.Attempt > b.attempt[id] && a.Fence <= b.fence[id] || a.Fence < b.fence[id] {
				return fmt.Sprintf("%s goes from attempt %d fence %d to %v", id, b.attempt[id], b.fence[id], a.JobTask)
			}
			b.attempt[id], b.fence[id] = a.Attempt, a.Fence
			milli += a.CpuMilli
			bytes += a.MemoryBytes
			if !n.Live {
				return fmt.Sprintf("%s is on node %d, which is lost", id, n.Id)
			}
		}
		if milli != n.UsedMilli || bytes != n.UsedBytes || milli > n.CpuMilli || bytes > n.MemoryBytes {
			return fmt.Sprintf("node %v has tasks of %d, %d", n, milli, bytes)
		}
	}
	for _, j := range List(rd, "", 10) {
		placed, waiting := uint32(0), uint32(0)
		for k := range rd.Scan(keysOnly(key(rowTask, j.Id))) {
			if where[fmt.Sprintf("%d.%d", j.Id, last(k, 1))] != 0 {
				placed++
			}
		}
		for range rd.Scan(keysOnly(key(rowWait, j.Id))) {
			waiting++
		}
		switch {
		case placed != j.Placed || waiting != j.Waiting:
			return fmt.Sprintf("%v has %d placed and %d waiting", j, placed, waiting)
		case Ended(j.Phase) && (placed > 0 || waiting > 0):
			return fmt.Sprintf("%v has ended with %d placed and %d waiting", j, placed, waiting)
		case !Ended(j.Phase) && j.Phase != command.JobPhase_JOB_PHASE_STOPPING && placed+waiting+fresh(j) == 0:
			return fmt.Sprintf("%v has nothing left and has not ended", j)
		}
	}
	if jobs := List(rd, "", 10); !slices.IsSortedFunc(jobs, func(a, b *command.JobRecord) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	}) {
		return "jobs are listed out of order"
	}
	return ""
}
