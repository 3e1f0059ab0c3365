package node

import (
	"log/slog"
	"testing"

	"missingos/srv/dc"
	"missingos/srv/dcpb"
)

func TestAFeatureWaitsForAllNodes(t *testing.T) {
	for _, tc := range []struct {
		versions []string
		refused  bool
	}{
		{versions: []string{"0.2.0", "0.2.1", "1.0.0"}},
		{versions: []string{"0.2.0", "0.1.9", "0.2.0"}, refused: true},
		{versions: []string{"0.2.0", "0.1.0-rc1"}, refused: true},
		{versions: []string{"dev", "v0.2.0", ""}},
		{versions: []string{"0.10.0"}},
	} {
		m := &dcpb.MetaMap{}
		for i, v := range tc.versions {
			m.Nodes = append(m.Nodes, &dcpb.MetaMapNode{Id: uint64(i + 1), Version: v})
		}
		m.Nodes = append(m.Nodes, &dcpb.MetaMapNode{Id: 99, Version: "0.0.1", Removed: true})
		d := newDirectory(1, t.TempDir(), m, slog.New(slog.DiscardHandler))
		if err := d.allows(fencedWrites); (dc.KindOf(err) == dc.Unsupported) != tc.refused || (err != nil) != tc.refused {
			t.Errorf("%q: %v", tc.versions, err)
		}
	}
}
