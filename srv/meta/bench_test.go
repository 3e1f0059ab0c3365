package meta

import (
	"testing"

	"missingos/srv/dc"
)

// BenchmarkLookAtManyGroups is what the controller does twice a second when nothing is to be done: 1,000 groups on 50 nodes in 5 zones.
func BenchmarkLookAtManyGroups(b *testing.B) {
	v := &view{}
	for n := range 50 {
		v.nodes = append(v.nodes, viewNode{id: dc.NodeID(n + 1), up: true, zone: string(rune('a' + n%5))})
	}
	for g := range 1000 {
		first := g*3%50 + 1
		group := viewGroup{id: dc.GroupID(g + 2), want: 3, settled: true}
		for i := range 3 {
			group.desired = with(group.desired, dc.NodeID((first+i-1)%50+1))
		}
		group.leader = group.desired[g%3]
		v.groups = append(v.groups, group)
	}
	b.ReportAllocs()
	for b.Loop() {
		v.place()
		v.spread()
	}
}
