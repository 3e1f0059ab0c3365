package scheduler

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"missingos/scheduler/jobspec"
	"missingos/srv/dc"
)

// A Node is a machine as the scheduler sees it. Free is what is not given to tasks yet.
type Node struct {
	ID        dc.NodeID
	Name      string
	Labels    map[string]string // with "node" and "arch"
	Ready     bool              // has a live lease and is not draining
	CPUMilli  int               // in all
	Memory    int64             // bytes, in all
	FreeMilli int
	FreeBytes int64
}

// An Ask is the tasks of one job that want a place.
type Ask struct {
	Job         string
	Tasks       []int // in order
	CPUMilli    int   // each
	MemoryBytes int64 // each
	Constraints []jobspec.Constraint
	Priority    int
	// Avoid are nodes where a task of this job has failed lately; they are taken only if there is no other.
	Avoid map[dc.NodeID]bool
}

// A Placement puts one task on one node.
type Placement struct {
	Job  string
	Task int
	Node dc.NodeID
}

// A Reason tells why Tasks tasks of a job are not placed.
type Reason struct {
	Job   string
	Tasks int
	Text  string
}

// A Plan is what Process proposes.
type Plan struct {
	Placements []Placement
	Unplaced   []Reason
}

// Process places the tasks of asks, highest priority first, on nodes: those that are ready, satisfy the constraints and have room. Among them it
// fills up the fullest (best fit by the scarcer of CPU and memory), so that large tasks find room later; a job's tasks spread over equally
// full nodes. It changes the Free fields of its own copy of nodes only.
func Process(asks []Ask, nodes []Node) Plan {
	free := slices.Clone(nodes)
	slices.SortFunc(free, func(a, b Node) int { return cmp.Compare(a.ID, b.ID) })
	order := slices.Clone(asks)
	slices.SortStableFunc(order, func(a, b Ask) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.Job, b.Job))
	})
	var plan Plan
	for _, ask := range order {
		placeJob(&plan, ask, free)
	}
	return plan
}

func placeJob(plan *Plan, ask Ask, free []Node) {
	feasible := make([]bool, len(free)) // constraints do not change from task to task
	for i := range free {
		feasible[i] = free[i].Ready && matches(ask.Constraints, free[i].Labels)
	}
	mine := make([]int, len(free))
	for i, task := range ask.Tasks {
		best := -1
		for j := range free {
			if !feasible[j] || free[j].FreeMilli < ask.CPUMilli || free[j].FreeBytes < ask.MemoryBytes {
				continue
			}
			if best < 0 || better(ask, &free[j], mine[j], &free[best], mine[best]) {
				best = j
			}
		}
		if best < 0 {
			plan.Unplaced = append(plan.Unplaced, Reason{Job: ask.Job, Tasks: len(ask.Tasks) - i, Text: why(ask, free, feasible)})
			return
		}
		free[best].FreeMilli -= ask.CPUMilli
		free[best].FreeBytes -= ask.MemoryBytes
		mine[best]++
		plan.Placements = append(plan.Placements, Placement{Job: ask.Job, Task: task, Node: free[best].ID})
	}
}

func matches(constraints []jobspec.Constraint, labels map[string]string) bool {
	return !slices.ContainsFunc(constraints, func(c jobspec.Constraint) bool { return !c.Matches(labels) })
}

// spreadSteps is how coarsely fullness is compared: within a step nodes count as equally full, and the job spreads.
const spreadSteps = 4

// better tells whether node a, where the job has nA tasks, is a better place than b.
func better(ask Ask, a *Node, nA int, b *Node, nB int) bool {
	return cmp.Or(
		compareBool(ask.Avoid[b.ID], ask.Avoid[a.ID]), // avoided ones last
		cmp.Compare(fullness(a), fullness(b)),         // the fuller first, by steps
		cmp.Compare(nB, nA),                           // fewer of this job first
		cmp.Compare(b.ID, a.ID),
	) > 0
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// fullness is the used share of the scarcer resource, in steps.
func fullness(n *Node) int {
	used := 0
	if n.CPUMilli > 0 {
		used = (n.CPUMilli - n.FreeMilli) * spreadSteps / n.CPUMilli
	}
	if n.Memory > 0 {
		used = max(used, int((n.Memory-n.FreeBytes)*spreadSteps/n.Memory))
	}
	return used
}

// why says what an ask lacks, on how many nodes.
func why(ask Ask, free []Node, feasible []bool) string {
	if len(free) == 0 {
		return "there are no nodes"
	}
	down, unlike, cpu, memory := 0, 0, 0, 0
	for i, n := range free {
		switch {
		case !n.Ready:
			down++
		case !feasible[i]:
			unlike++
		case n.FreeMilli < ask.CPUMilli:
			cpu++
		default:
			memory++
		}
	}
	var parts []string
	add := func(n int, text string) {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d of %d nodes %s", n, len(free), text))
		}
	}
	add(down, "are down or draining")
	add(unlike, "do not satisfy the constraints")
	add(cpu, fmt.Sprintf("lack cpu (%g wanted)", float64(ask.CPUMilli)/1000))
	add(memory, fmt.Sprintf("lack memory (%d MiB wanted)", ask.MemoryBytes/dc.MiB))
	return strings.Join(parts, ", ")
}
