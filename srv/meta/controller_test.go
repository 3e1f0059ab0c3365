package meta

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"missingos/srv/dc"
)

func ids(n ...dc.NodeID) []dc.NodeID { return n }

func up(id dc.NodeID) viewNode { return viewNode{id: id, up: true} }

func TestPlace(t *testing.T) {
	dead := viewNode{id: 3, dead: true}
	silent := viewNode{id: 3}
	removed := viewNode{id: 3, removed: true}
	draining := viewNode{id: 4, up: true, drain: true}
	tests := []struct {
		name    string
		nodes   []viewNode
		desired []dc.NodeID
		want    []dc.NodeID
	}{
		{"one node", []viewNode{up(1)}, ids(1), ids(1)},
		{"a second joins", []viewNode{up(1), up(2)}, ids(1), ids(1, 2)},
		{"three at once", []viewNode{up(1), up(2), up(3)}, ids(1), ids(1, 2, 3)},
		{"admitted but never started", []viewNode{up(1), up(2), silent}, ids(1, 2), ids(1, 2)},
		{"silent within its grace stays", []viewNode{up(1), up(2), silent, up(4)}, ids(1, 2, 3), ids(1, 2, 3)},
		{"dead, and there is another", []viewNode{up(1), up(2), dead, up(4)}, ids(1, 2, 3), ids(1, 2, 4)},
		{"dead, and there is none", []viewNode{up(1), up(2), dead}, ids(1, 2, 3), ids(1, 2, 3)},
		{"dead, and the other drains", []viewNode{up(1), up(2), dead, draining}, ids(1, 2, 3), ids(1, 2, 3)},
		{"removed, and there is another", []viewNode{up(1), up(2), removed, up(4)}, ids(1, 2, 3), ids(1, 2, 4)},
		{"removed, and there is none", []viewNode{up(1), up(2), removed}, ids(1, 2, 3), ids(1, 2)},
		{"the only one is removed", []viewNode{removed}, ids(3), ids(3)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := &view{nodes: tt.nodes, groups: []viewGroup{{id: 5, version: 9, want: 3, desired: tt.desired}}}
			got := tt.desired
			for _, p := range v.place() {
				if p.group != 5 || p.ifVersion != 9 {
					t.Errorf("placement of group %s version %d, want g5, 9", p.group, p.ifVersion)
				}
				got = p.nodes
			}
			if diff := cmp.Diff(got, tt.want); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestSpread(t *testing.T) {
	group := func(id dc.GroupID, leader dc.NodeID, desired ...dc.NodeID) viewGroup {
		return viewGroup{id: id, leader: leader, settled: true, desired: desired}
	}
	drained := viewNode{id: 1, up: true, drain: true}
	tests := []struct {
		name   string
		nodes  []viewNode
		groups []viewGroup
		want   move
	}{
		{"even", []viewNode{up(1), up(2)}, []viewGroup{group(1, 1, 1, 2), group(2, 2, 1, 2), group(3, 1, 1, 2)}, move{}},
		{"one leads all", []viewNode{up(1), up(2)}, []viewGroup{group(1, 1, 1, 2), group(2, 1, 1, 2)}, move{2, 1, 2}},
		{"a draining node leads", []viewNode{drained, up(2), up(3)}, []viewGroup{group(1, 1, 1, 2, 3), group(2, 3, 1, 2, 3), group(3, 2, 1, 2, 3)}, move{1, 1, 2}},
		{"not to a node that is down", []viewNode{up(1), {id: 2}}, []viewGroup{group(1, 1, 1, 2), group(2, 1, 1, 2)}, move{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, _ := (&view{nodes: tt.nodes, groups: tt.groups}).spread()
			if got != tt.want {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
	unsettled := group(1, 1, 1, 2)
	unsettled.settled = false
	if m, ok := (&view{nodes: []viewNode{up(1), up(2)}, groups: []viewGroup{unsettled, group(2, 1, 1, 2), group(3, 2, 1, 2)}}).spread(); ok {
		t.Errorf("moved %+v while a group is not settled", m)
	}
}

// carryOut does what the groups' leaders would do.
func (v *view) carryOut(changes []placement) {
	for _, p := range changes {
		for i := range v.groups {
			if g := &v.groups[i]; g.id == p.group {
				g.desired, g.version = p.nodes, g.version+1
				if !slices.Contains(g.desired, g.leader) {
					g.leader = g.desired[0]
				}
			}
		}
	}
}

// Whatever nodes come and go, the controller comes to rest, and then every group is where it should be and the load is even.
func TestControllerComesToRest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := &view{nodes: []viewNode{up(1)}}
		for g := range rapid.IntRange(1, 8).Draw(t, "groups") {
			v.groups = append(v.groups, viewGroup{id: dc.GroupID(g + 1), want: 3, desired: ids(1), leader: 1, settled: true})
		}
		for range rapid.IntRange(1, 10).Draw(t, "events") {
			i := rapid.IntRange(0, len(v.nodes)-1).Draw(t, "node")
			switch n := &v.nodes[i]; rapid.IntRange(0, 4).Draw(t, "event") {
			case 0, 1:
				v.nodes = append(v.nodes, up(dc.NodeID(len(v.nodes)+1)))
			case 2:
				if n.up && len(v.nodes) > 1 {
					n.up, n.dead = false, true
				} else {
					n.up, n.dead = true, false
				}
			case 3:
				n.drain = !n.drain
			case 4:
				if len(v.nodes) > 1 && slices.ContainsFunc(v.nodes, func(o viewNode) bool { return o.id != n.id && o.open() }) {
					n.removed = true
				}
			}
			rest(t, v)
		}
	})
}

func rest(t *rapid.T, v *view) {
	for step := 0; ; step++ {
		changes := v.place()
		if len(changes) == 0 {
			break
		}
		if step > 200 {
			t.Fatalf("no rest: %+v", changes)
		}
		v.carryOut(changes)
	}
	open, held := 0, map[dc.NodeID]int{}
	for _, n := range v.nodes {
		if n.open() {
			open++
		}
	}
	for _, g := range v.groups {
		alive := 0
		for _, id := range g.desired {
			held[id]++
			if n := v.node(id); !n.removed && !n.dead {
				alive++
			}
			if v.node(id).removed && open > 0 {
				t.Fatalf("group %s is on removed node %s: %v", g.id, id, g.desired)
			}
		}
		if len(g.desired) > 3 || alive < min(3, open) {
			t.Fatalf("group %s is on %v, of which %d live; %d nodes are open", g.id, g.desired, alive, open)
		}
	}
	low, high := 1<<30, 0
	for _, n := range v.nodes {
		if n.open() {
			low, high = min(low, held[n.id]), max(high, held[n.id])
		}
	}
	if open > 0 && high-low > 1 {
		t.Fatalf("uneven: %s", fmt.Sprint(held))
	}
	for step := 0; ; step++ {
		m, ok := v.spread()
		if !ok {
			return
		}
		if step > 100 {
			t.Fatalf("leaderships never rest: %+v", m)
		}
		for i := range v.groups {
			if v.groups[i].id == m.group {
				v.groups[i].leader = m.to
			}
		}
	}
}
