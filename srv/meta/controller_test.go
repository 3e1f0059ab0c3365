package meta

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

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
	preferred := func(id dc.GroupID, leader, prefer dc.NodeID, desired ...dc.NodeID) viewGroup {
		g := group(id, leader, desired...)
		g.prefer = prefer
		return g
	}
	drained := viewNode{id: 1, up: true, drain: true}
	tests := []struct {
		name   string
		nodes  []viewNode
		groups []viewGroup
		want   []move
	}{
		{"even", []viewNode{up(1), up(2)}, []viewGroup{group(1, 1, 1, 2), group(2, 2, 1, 2), group(3, 1, 1, 2)}, nil},
		{"one leads all", []viewNode{up(1), up(2)}, []viewGroup{group(1, 1, 1, 2), group(2, 1, 1, 2)}, []move{{2, 1, 2}}},
		{"a draining node leads", []viewNode{drained, up(2), up(3)}, []viewGroup{group(1, 1, 1, 2, 3), group(2, 3, 1, 2, 3), group(3, 2, 1, 2, 3)}, []move{{1, 1, 2}}},
		{"who is to lead", []viewNode{up(1), up(2)}, []viewGroup{preferred(2, 1, 2, 1, 2), group(3, 2, 1, 2)}, []move{{2, 1, 2}, {3, 2, 1}}},
		{"who is to lead does", []viewNode{up(1), up(2)}, []viewGroup{preferred(2, 1, 1, 1, 2), preferred(3, 1, 1, 1, 2)}, nil},
		{"who is to lead is down", []viewNode{up(1), {id: 2}}, []viewGroup{preferred(2, 1, 2, 1, 2)}, nil},
		{"handed over just now", []viewNode{drained, up(2)}, []viewGroup{{id: 2, leader: 1, settled: true, resting: true, desired: ids(1, 2)}}, nil},
		{"those under way count as done", []viewNode{up(1), up(2)}, []viewGroup{
			{id: 2, leader: 1, settled: true, resting: true, heir: 2, desired: ids(1, 2)},
			{id: 3, leader: 1, settled: true, resting: true, heir: 2, desired: ids(1, 2)},
			group(4, 1, 1, 2), group(5, 1, 1, 2),
		}, nil},
		{"draining while another replica is down", []viewNode{drained, up(2), {id: 3}}, []viewGroup{{id: 2, leader: 1, desired: ids(1, 2, 3)}}, []move{{2, 1, 2}}},
		{"not to a node that is down", []viewNode{up(1), {id: 2}}, []viewGroup{group(1, 1, 1, 2), group(2, 1, 1, 2)}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := (&view{nodes: tt.nodes, groups: tt.groups}).spread()
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
	unsettled := group(1, 1, 1, 2)
	unsettled.settled = false
	if m := (&view{nodes: []viewNode{up(1), up(2)}, groups: []viewGroup{unsettled, group(2, 1, 1, 2), group(3, 2, 1, 2)}}).spread(); len(m) > 0 {
		t.Errorf("moved %+v while a group is not settled", m)
	}
}
