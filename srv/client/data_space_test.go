package client

import (
	"slices"
	"testing"

	"missingos/srv/dc"
)

func TestRoomForThreeCopies(t *testing.T) {
	for _, tc := range []struct {
		free []int64
		want int64
	}{
		{nil, 0},
		{[]int64{5}, 5},
		{[]int64{5, 3}, 3},
		{[]int64{9, 4, 6}, 4},
		{[]int64{6, 6, 6, 6}, 8},
		{[]int64{100, 1, 1, 1}, 1},
		{[]int64{100, 100, 3, 2}, 5},
		{[]int64{0, 0, 7, 7, 7}, 7},
		{[]int64{0, 7, 7}, 0},
	} {
		if got := roomFor(tc.free, replicas); got != tc.want {
			t.Errorf("%v: %d, want %d", tc.free, got, tc.want)
		}
	}
}

func TestNewBlocksGoToDifferentZonesAndRacks(t *testing.T) {
	where := map[dc.NodeID][2]string{1: {"a", "1"}, 2: {"a", "1"}, 3: {"a", "2"}, 4: {"b", "1"}, 5: {"b", "1"}, 6: {"b", "2"}}
	d := &Data{c: New(Config{Node: 1}), cfg: DataConfig{
		Nodes:  func() []dc.NodeID { return []dc.NodeID{1, 2, 3, 4, 5, 6} },
		Domain: func(n dc.NodeID) (zone, rack string) { return where[n][0], where[n][1] },
	}}
	for range 50 {
		nodes := d.candidates()
		zones, racks := map[string]bool{}, map[[2]string]bool{}
		for _, n := range nodes[:replicas] {
			zones[where[n][0]], racks[where[n]] = true, true
		}
		if len(zones) != 2 || len(racks) != 3 || len(nodes) != 6 {
			t.Fatalf("nodes %v: %v, %v", nodes, zones, racks)
		}
	}
	for _, n := range []dc.NodeID{4, 5, 6} {
		d.suspect.note(n, dc.NoSpace)
	}
	if nodes := d.candidates(); slices.Contains(nodes[:3], 4) || slices.Contains(nodes[:3], 5) || slices.Contains(nodes[:3], 6) {
		t.Fatalf("nodes %v: those without room must come last", nodes)
	}
}
