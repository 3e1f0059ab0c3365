package node

import (
	"log/slog"
	"slices"
	"testing"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

func TestNewBlocksGoToNodesThatAreUpAndStay(t *testing.T) {
	d := newDirectory(1, t.TempDir(), &dcpb.MetaMap{Nodes: []*dcpb.MetaMapNode{
		{Id: 1}, {Id: 2}, {Id: 3}, {Id: 4, Drain: true}, {Id: 5, Removed: true}, {Id: 6},
	}}, slog.New(slog.DiscardHandler))
	for _, tc := range []struct {
		down []uint64
		want []dc.NodeID
	}{
		{nil, []dc.NodeID{1, 2, 3, 6}},
		{[]uint64{2}, []dc.NodeID{1, 3, 6}},
		{[]uint64{1, 2}, []dc.NodeID{1, 3, 6}},
		{[]uint64{2, 3}, []dc.NodeID{1, 2, 3, 6}},
	} {
		d.hearDown(tc.down)
		got := d.takers()
		slices.Sort(got)
		if !slices.Equal(got, tc.want) {
			t.Errorf("with %v down: %v, want %v", tc.down, got, tc.want)
		}
	}
}
