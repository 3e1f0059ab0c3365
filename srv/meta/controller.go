package meta

import (
	"cmp"
	"slices"

	"missingos/srv/dc"
)

// A view is what the controller decides by: desire from the group's state, facts from the heartbeats.
type view struct {
	nodes  []viewNode // by id
	groups []viewGroup
}

type viewNode struct {
	id      dc.NodeID
	removed bool
	drain   bool
	up      bool // heard of lately
	dead    bool // silent for longer than the grace
}

type viewGroup struct {
	id      dc.GroupID
	version uint64
	want    int
	desired []dc.NodeID
	leader  dc.NodeID // that reports itself as leader; 0: none
	settled bool      // its members are the desired nodes, all voters, none far behind
}

// A placement is a change of desire.
type placement struct {
	group     dc.GroupID
	ifVersion uint64
	nodes     []dc.NodeID
}

// A move hands a leadership over.
type move struct {
	group    dc.GroupID
	from, to dc.NodeID
}

// place says which groups should be elsewhere. A removed node is taken out at once; a dead one when there is another for it; a group short of
// replicas gets the nodes that are up and hold least; a group is never left without nodes. When every group is settled, one replica is moved from
// the fullest node to the emptiest if that evens them out.
func (v *view) place() []placement {
	held := map[dc.NodeID]int{}
	for _, g := range v.groups {
		for _, n := range g.desired {
			held[n]++
		}
	}
	var changes []placement
	for _, g := range v.groups {
		if nodes := v.placeGroup(g, held); !slices.Equal(nodes, g.desired) {
			changes = append(changes, placement{g.id, g.version, nodes})
		}
	}
	if len(changes) == 0 {
		if p, ok := v.rebalance(held); ok {
			changes = append(changes, p)
		}
	}
	return changes
}

func (v *view) placeGroup(g viewGroup, held map[dc.NodeID]int) []dc.NodeID {
	var keep, dead []dc.NodeID
	for _, id := range g.desired {
		switch n := v.node(id); {
		case n.removed:
		case n.dead:
			dead = append(dead, id)
		default:
			keep = append(keep, id)
		}
	}
	for len(keep) < g.want {
		id, ok := v.emptiest(held, append(keep, dead...))
		if !ok {
			break
		}
		keep = append(keep, id)
		held[id]++
	}
	for len(keep) < g.want && len(dead) > 0 { // better a dead replica than too few: it may come back
		keep, dead = append(keep, dead[0]), dead[1:]
	}
	if len(keep) == 0 {
		return g.desired
	}
	for _, id := range g.desired {
		if !slices.Contains(keep, id) {
			held[id]--
		}
	}
	slices.Sort(keep)
	return keep
}

// emptiest finds the node to hold one more replica: up, not draining, not among except.
func (v *view) emptiest(held map[dc.NodeID]int, except []dc.NodeID) (dc.NodeID, bool) {
	var best dc.NodeID
	for _, n := range v.nodes {
		if !n.open() || slices.Contains(except, n.id) {
			continue
		}
		if best == 0 || held[n.id] < held[best] {
			best = n.id
		}
	}
	return best, best != 0
}

func (n viewNode) open() bool { return n.up && !n.removed && !n.drain }

// rebalance moves one replica if every group is settled and two open nodes differ by two or more.
func (v *view) rebalance(held map[dc.NodeID]int) (placement, bool) {
	for _, g := range v.groups {
		if !g.settled {
			return placement{}, false
		}
	}
	var full dc.NodeID
	for _, n := range v.nodes {
		if n.open() && (full == 0 || held[n.id] > held[full]) {
			full = n.id
		}
	}
	for _, g := range byDisturbance(v.groups, full) {
		if !slices.Contains(g.desired, full) {
			continue
		}
		to, ok := v.emptiest(held, g.desired)
		if !ok || held[to]+2 > held[full] {
			continue
		}
		nodes := append(slices.DeleteFunc(slices.Clone(g.desired), func(n dc.NodeID) bool { return n == full }), to)
		slices.Sort(nodes)
		return placement{g.id, g.version, nodes}, true
	}
	return placement{}, false
}

// byDisturbance orders groups by how little it disturbs to take their replica off node n: first those that it does not lead, the meta group last.
func byDisturbance(groups []viewGroup, n dc.NodeID) []viewGroup {
	cost := func(g viewGroup) int {
		switch {
		case g.id == dc.MetaGroup:
			return 2
		case g.leader == n:
			return 1
		}
		return 0
	}
	sorted := slices.Clone(groups)
	slices.SortStableFunc(sorted, func(a, b viewGroup) int { return cmp.Compare(cost(a), cost(b)) })
	return sorted
}

// spread gives one leadership to hand over, if that evens out how many the nodes lead, or empties a draining node. The meta group's own only moves
// for the latter: who leads it has to hear of every node anew.
func (v *view) spread() (move, bool) {
	leads := map[dc.NodeID]int{}
	for _, g := range v.groups {
		leads[g.leader]++
	}
	for _, g := range v.groups {
		if g.leader == 0 || !g.settled {
			continue
		}
		var open []dc.NodeID
		for _, id := range g.desired {
			if id != g.leader && v.node(id).open() {
				open = append(open, id)
			}
		}
		if len(open) == 0 {
			continue
		}
		to := slices.MinFunc(open, func(a, b dc.NodeID) int { return cmp.Compare(leads[a], leads[b]) })
		uneven := leads[to]+2 <= leads[g.leader] && g.id != dc.MetaGroup
		if uneven || v.node(g.leader).drain {
			return move{g.id, g.leader, to}, true
		}
	}
	return move{}, false
}

func (v *view) node(id dc.NodeID) viewNode {
	i, ok := slices.BinarySearchFunc(v.nodes, id, func(n viewNode, id dc.NodeID) int { return cmp.Compare(n.id, id) })
	if !ok {
		return viewNode{id: id, removed: true}
	}
	return v.nodes[i]
}
