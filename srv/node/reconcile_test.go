package node

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"missingos/consensus"
	"missingos/srv/dc"
)

func voters(ids ...dc.NodeID) (m []consensus.Member) {
	for _, n := range ids {
		m = append(m, consensus.Member{Node: n, Voter: true})
	}
	return m
}

func TestPlanOfAChange(t *testing.T) {
	non := func(n dc.NodeID) consensus.Member { return consensus.Member{Node: n} }
	tests := []struct {
		name    string
		members []consensus.Member
		desired []dc.NodeID
		want    change
	}{
		{"as desired", voters(1, 2, 3), []dc.NodeID{1, 2, 3}, change{}},
		{"add", voters(1), []dc.NodeID{1, 2, 3}, change{action: addNonVoter, node: 2}},
		{"add all before promoting", append(voters(1), non(2)), []dc.NodeID{1, 2, 3}, change{action: addNonVoter, node: 3}},
		{"promote", append(voters(1), non(2), non(3)), []dc.NodeID{1, 2, 3}, change{action: promote, candidates: []dc.NodeID{2, 3}}},
		{"replace: the new one first", voters(1, 2, 3), []dc.NodeID{1, 2, 4}, change{action: addNonVoter, node: 4}},
		{"replace: promote before removing", append(voters(1, 2, 3), non(4)), []dc.NodeID{1, 2, 4}, change{action: promote, candidates: []dc.NodeID{4}}},
		{"replace: remove last", voters(1, 2, 3, 4), []dc.NodeID{1, 2, 4}, change{action: removeMember, node: 3}},
		{"a non-voter nobody wants goes at once", append(voters(1), non(5)), []dc.NodeID{1, 2}, change{action: removeMember, node: 5}},
		{"the leader itself is to go", voters(1, 2, 3, 4), []dc.NodeID{2, 3, 4}, change{action: handOver, candidates: []dc.NodeID{2, 3, 4}}},
		{"nothing is desired: an empty map", voters(1, 2, 3), nil, change{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := plan(consensus.Status{Members: tt.members}, tt.desired, 1)
			if diff := cmp.Diff(got, tt.want, cmp.AllowUnexported(change{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Whatever is desired meanwhile, steps lead there, and at no step is a voter removed while one that is desired does not vote yet.
func TestStepsLeadToWhatIsDesired(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		subset := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) dc.NodeID { return dc.NodeID(rapid.IntRange(1, 6).Draw(t, "n")) }), 1, 3, rapid.ID)
		members := map[dc.NodeID]bool{}
		for _, n := range subset.Draw(t, "members") {
			members[n] = true
		}
		var leader dc.NodeID
		for range rapid.IntRange(1, 3).Draw(t, "changes") {
			desired := subset.Draw(t, "desired")
			stop := rapid.IntRange(0, 20).Draw(t, "steps before the next change")
			for step := 0; ; step++ {
				st := consensus.Status{}
				for n, v := range members {
					st.Members = append(st.Members, consensus.Member{Node: n, Voter: v})
				}
				slices.SortFunc(st.Members, func(a, b consensus.Member) int { return int(a.Node) - int(b.Node) })
				if !members[leader] {
					leader = firstVoter(st.Members)
				}
				c := plan(st, desired, leader)
				if c.action == nothing || step == stop {
					break
				}
				if step > 40 {
					t.Fatalf("no end: %v on the way to %v", c, desired)
				}
				carryOut(t, members, desired, &leader, c)
			}
		}
	})
}

func firstVoter(members []consensus.Member) dc.NodeID {
	for _, m := range members {
		if m.Voter {
			return m.Node
		}
	}
	return 0
}

func carryOut(t *rapid.T, members map[dc.NodeID]bool, desired []dc.NodeID, leader *dc.NodeID, c change) {
	switch c.action {
	case addNonVoter:
		members[c.node] = false
	case promote:
		members[c.candidates[0]] = true
	case handOver:
		if *leader = c.candidates[0]; !members[*leader] {
			t.Fatalf("leadership goes to %s, which does not vote", *leader)
		}
	case removeMember:
		if members[c.node] {
			for _, n := range desired {
				if !members[n] {
					t.Fatalf("voter %s is removed while %s does not vote", c.node, n)
				}
			}
		}
		if c.node == *leader {
			t.Fatal("a leader removes itself")
		}
		delete(members, c.node)
	}
}
