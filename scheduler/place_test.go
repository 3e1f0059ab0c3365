package scheduler

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"missingos/scheduler/jobspec"
	"missingos/srv/dc"
)

func node(id dc.NodeID, milli int, mem int64) Node {
	return Node{
		ID: id, Name: fmt.Sprintf("n%d", id), Labels: map[string]string{"node": fmt.Sprintf("n%d", id), "arch": "amd64"}, Ready: true,
		CPUMilli: milli, Memory: mem, FreeMilli: milli, FreeBytes: mem,
	}
}

func places(p Plan) map[string]dc.NodeID {
	m := map[string]dc.NodeID{}
	for _, x := range p.Placements {
		m[fmt.Sprintf("%s/%d", x.Job, x.Task)] = x.Node
	}
	return m
}

func TestGolden(t *testing.T) {
	three := []Node{node(1, 1000, 1000), node(2, 1000, 1000), node(3, 1000, 1000)}
	down := []Node{node(1, 1000, 1000), node(2, 1000, 1000), node(3, 1000, 1000)}
	down[0].Ready = false
	half := []Node{node(1, 1000, 1000), node(2, 1000, 1000), node(3, 1000, 1000)}
	half[1].FreeMilli = 500
	tests := []struct {
		name  string
		asks  []Ask
		nodes []Node
		want  map[string]dc.NodeID
		why   string
	}{
		{"spreads over equal nodes", []Ask{{Job: "a", Tasks: []int{0, 1, 2}, CPUMilli: 100, MemoryBytes: 1}}, three, map[string]dc.NodeID{"a/0": 1, "a/1": 2, "a/2": 3}, ""},
		{"fills the fuller node", []Ask{{Job: "a", Tasks: []int{0}, CPUMilli: 100, MemoryBytes: 1}}, half, map[string]dc.NodeID{"a/0": 2}, ""},
		{"avoids a node that failed", []Ask{{Job: "a", Tasks: []int{0}, CPUMilli: 100, Avoid: map[dc.NodeID]bool{2: true}}}, half, map[string]dc.NodeID{"a/0": 1}, ""},
		{"a node that is down gets nothing", []Ask{{Job: "a", Tasks: []int{0, 1, 2}, CPUMilli: 100}}, down, map[string]dc.NodeID{"a/0": 2, "a/1": 3, "a/2": 2}, ""},
		{"constraints hold", []Ask{{Job: "a", Tasks: []int{0, 1}, CPUMilli: 100, Constraints: []jobspec.Constraint{{Label: "node", Op: jobspec.Equal, Value: "n3"}}}}, three, map[string]dc.NodeID{"a/0": 3, "a/1": 3}, ""},
		{
			"priority first",
			[]Ask{{Job: "low", Tasks: []int{0}, CPUMilli: 1000, Priority: 1}, {Job: "high", Tasks: []int{0, 1, 2}, CPUMilli: 1000, Priority: 9}},
			three,
			map[string]dc.NodeID{"high/0": 1, "high/1": 2, "high/2": 3},
			"3 of 3 nodes lack cpu (1 wanted)",
		},
		{"too large", []Ask{{Job: "a", Tasks: []int{0}, CPUMilli: 100, MemoryBytes: 5 << 20}}, three, map[string]dc.NodeID{}, "3 of 3 nodes lack memory (5 MiB wanted)"},
		{"no nodes", []Ask{{Job: "a", Tasks: []int{0}}}, nil, map[string]dc.NodeID{}, "there are no nodes"},
		{
			"why counts",
			[]Ask{{Job: "a", Tasks: []int{0}, CPUMilli: 1, Constraints: []jobspec.Constraint{{Label: "gpu", Op: jobspec.Equal, Value: "yes"}}}},
			down,
			map[string]dc.NodeID{},
			"1 of 3 nodes are down or draining, 2 of 3 nodes do not satisfy the constraints",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Process(tt.asks, tt.nodes)
			if diff := cmp.Diff(places(got), tt.want); diff != "" {
				t.Error(diff)
			}
			why := ""
			if len(got.Unplaced) > 0 {
				why = got.Unplaced[0].Text
			}
			if why != tt.why {
				t.Errorf("why %q, want %q", why, tt.why)
			}
		})
	}
}

// TestPlansKeepTheRules: never over capacity, no task twice, every task placed or explained, the same input gives the same plan, and a
// task is left out only if no node could take it.
func TestPlansKeepTheRules(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var nodes []Node
		for i := range rapid.IntRange(0, 8).Draw(rt, "nodes") {
			n := node(dc.NodeID(i+1), rapid.IntRange(0, 4000).Draw(rt, "cpu"), int64(rapid.IntRange(0, 4000).Draw(rt, "mem")))
			n.Ready = rapid.Bool().Draw(rt, "ready")
			nodes = append(nodes, n)
		}
		var asks []Ask
		for i := range rapid.IntRange(0, 5).Draw(rt, "jobs") {
			a := Ask{Job: fmt.Sprint("j", i), CPUMilli: rapid.IntRange(1, 2000).Draw(rt, "milli"), MemoryBytes: int64(rapid.IntRange(1, 2000).Draw(rt, "bytes")), Priority: rapid.IntRange(0, 3).Draw(rt, "priority")}
			for k := range rapid.IntRange(0, 6).Draw(rt, "tasks") {
				a.Tasks = append(a.Tasks, k)
			}
			asks = append(asks, a)
		}
		plan := Process(asks, nodes)
		if diff := cmp.Diff(Process(asks, nodes), plan); diff != "" {
			rt.Fatal(diff)
		}
		milli, bytes := map[dc.NodeID]int{}, map[dc.NodeID]int64{}
		left := map[string]int{}
		byName := map[string]Ask{}
		for _, a := range asks {
			left[a.Job], byName[a.Job] = len(a.Tasks), a
		}
		seen := map[string]bool{}
		for _, p := range plan.Placements {
			k := fmt.Sprint(p.Job, "/", p.Task)
			if seen[k] {
				rt.Fatalf("%s is placed twice", k)
			}
			seen[k] = true
			milli[p.Node] += byName[p.Job].CPUMilli
			bytes[p.Node] += byName[p.Job].MemoryBytes
			left[p.Job]--
		}
		for _, u := range plan.Unplaced {
			left[u.Job] -= u.Tasks
			a := byName[u.Job]
			for _, n := range nodes {
				if n.Ready && n.FreeMilli-milli[n.ID] >= a.CPUMilli && n.FreeBytes-bytes[n.ID] >= a.MemoryBytes {
					rt.Fatalf("%s is unplaced (%s) though %s has room", u.Job, u.Text, n.Name)
				}
			}
		}
		for _, n := range nodes {
			if milli[n.ID] > n.FreeMilli || bytes[n.ID] > n.FreeBytes || !n.Ready && milli[n.ID] > 0 {
				rt.Fatalf("node %s is over its capacity, or was not ready", n.Name)
			}
		}
		for job, n := range left {
			if n != 0 {
				rt.Fatalf("%s: %d tasks neither placed nor explained", job, n)
			}
		}
	})
}

func BenchmarkProcess(b *testing.B) {
	var nodes []Node
	for i := range 1000 {
		nodes = append(nodes, node(dc.NodeID(i+1), 32000, 64<<30))
	}
	tasks := make([]int, 1000)
	for i := range tasks {
		tasks[i] = i
	}
	asks := []Ask{{Job: "a", Tasks: tasks, CPUMilli: 100, MemoryBytes: 1 << 20}}
	b.ReportAllocs()
	for b.Loop() {
		Process(asks, nodes)
	}
}
