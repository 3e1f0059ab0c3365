package meta

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

// five are nodes a to e in zones 1, 1, 2, 2, 3, all up.
func five() []viewNode {
	nodes := []viewNode{
		{id: 1, name: "a", zone: "1"}, {id: 2, name: "b", zone: "1"}, {id: 3, name: "c", zone: "2"}, {id: 4, name: "d", zone: "2"}, {id: 5, name: "e", zone: "3"},
	}
	for i := range nodes {
		nodes[i].up = true
	}
	return nodes
}

func TestMovesThatAreRefusedAndWhy(t *testing.T) {
	settled := viewGroup{id: 5, name: "kv/0", version: 7, want: 3, desired: ids(1, 3, 5), leader: 1, settled: true}
	tests := []struct {
		name   string
		change func(*view)
		req    *dcpb.MetaMoveGroupRequest
		want   dc.Kind
		says   string
	}{
		{"a change is under way", func(v *view) { v.groups[0].settled = false }, &dcpb.MetaMoveGroupRequest{From: "a", To: "b"}, dc.Busy, "one change at a time"},
		{"nobody leads", func(v *view) { v.groups[0].leader = 0 }, &dcpb.MetaMoveGroupRequest{From: "a", To: "b"}, dc.Unavailable, "nobody leads it"},
		{"a worse spread", nil, &dcpb.MetaMoveGroupRequest{From: "a", To: "d"}, dc.Invalid, `c and d share rack "" of zone "2"`},
		{"down", func(v *view) { v.nodes[1].up = false }, &dcpb.MetaMoveGroupRequest{From: "a", To: "b"}, dc.Unavailable, "b is down"},
		{"drains", func(v *view) { v.nodes[1].drain = true }, &dcpb.MetaMoveGroupRequest{From: "a", To: "b"}, dc.Busy, "dcctl node undrain b"},
		{"full", func(v *view) { v.nodes[1].full = true }, &dcpb.MetaMoveGroupRequest{From: "a", To: "b"}, dc.NoSpace, "reserve"},
		{"removed", func(v *view) { v.nodes[1].removed = true }, &dcpb.MetaMoveGroupRequest{From: "a", To: "b"}, dc.NotFound, "no node b"},
		{"to lead without a replica", nil, &dcpb.MetaMoveGroupRequest{Leader: "b"}, dc.Invalid, "it is on a, c, e"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := &view{nodes: five(), groups: []viewGroup{settled}}
			if tt.change != nil {
				tt.change(v)
			}
			tt.req.Moved = "kv/0"
			if _, err := v.moveGroup(tt.req); !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v, want %v that says %q", err, tt.want, tt.says)
			}
		})
	}
	v := &view{nodes: five(), groups: []viewGroup{settled}}
	for _, req := range []*dcpb.MetaMoveGroupRequest{
		{Moved: "kv/0", From: "a", To: "b", Leader: "n2"}, {Moved: "g5", From: "n1", To: "d", Force: true},
	} {
		op, err := v.moveGroup(req)
		if err != nil || op.IfVersion != 7 || !op.GetPinned() || len(op.Nodes) != 3 || slices.Contains(op.Nodes, 1) {
			t.Errorf("%v: got %v, %v", req, op, err)
		}
	}
}

func TestAPinnedGroupMovesOnlyForNeed(t *testing.T) {
	pinned := viewGroup{id: 5, want: 3, desired: ids(1, 2, 3), leader: 1, settled: true, pinned: true}
	v := &view{nodes: five(), groups: []viewGroup{pinned}}
	if got := v.place(); len(got) > 0 {
		t.Errorf("a pinned group is moved for its spread: %v", got)
	}
	v.nodes[1].drain = true
	if got := v.place(); len(got) != 1 || !slices.Equal(got[0].nodes, ids(1, 3, 5)) {
		t.Errorf("a pinned group leaves a draining node as %v, want 1 3 5", got)
	}
	v.groups[0].pinned, v.nodes[1].drain = false, false // who leads it stays
	if got := v.place(); len(got) != 1 || !slices.Equal(got[0].nodes, ids(1, 3, 5)) {
		t.Errorf("a group in two of three zones goes to %v, want 1 3 5", got)
	}
}

func TestReasons(t *testing.T) {
	v := &view{nodes: five()}
	v.nodes[0].drain, v.nodes[1].up, v.nodes[2].dead, v.nodes[2].up, v.nodes[3].removed, v.nodes[4].drain = true, false, true, false, true, true
	got := v.reasons(viewGroup{id: 5, want: 4, desired: ids(1, 2, 3), leader: 1, pinned: true, prefer: 2}, nil)
	want := []string{
		"3 of 4 replicas: no other node is up, not draining and with room",
		"a drains, and no other node is open to take its replica",
		"b is not heard of; it is replaced when it has been silent for the grace (--dead-after)",
		"c is dead, and no other node is open to replace it",
		`a and b share rack "" of zone "1"`,
		"placed by `dcctl group move`, b to lead: not moved but for need; --auto gives it back",
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Error(diff)
	}
}
