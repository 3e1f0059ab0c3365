package meta

import (
	"cmp"
	"slices"

	"missingos/srv/dc"
)

const (
	// maxChanging is how many groups may be on the move in the whole cluster at a time: each copies its state to another node.
	maxChanging = 8
	// maxHandOvers is how many leaderships the controller hands over in one look.
	maxHandOvers = 8
	// metaVoters is how many replicas the meta group has when there are as many nodes; with fewer it has what its record wants.
	metaVoters = 5
)

// A view is what the controller decides by: desire from the group's state, facts from the heartbeats.
type view struct {
	nodes  []viewNode // by id
	groups []viewGroup
}

type viewNode struct {
	id           dc.NodeID
	name         string
	removed      bool
	drain        bool
	decommission bool
	up           bool // heard of lately
	dead         bool // silent for longer than the grace
	full         bool // its disk has reached its reserve
	zone, rack   string
}

type viewGroup struct {
	id       dc.GroupID
	name     string
	version  uint64
	want     int
	desired  []dc.NodeID
	leader   dc.NodeID // that reports itself as leader; 0: none
	settled  bool      // its members are the desired nodes, all voters, none far behind
	changing bool      // its members are not the desired nodes, and it waits for no node that is down to be so
	resting  bool      // its leadership has been handed over just now
	heir     dc.NodeID // to whom, while resting
	pinned   bool      // placed by a person
	prefer   dc.NodeID // that should lead
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

// place says which groups should be elsewhere. First what must be: a removed node is taken out at once, a dead one when there is another for it, a
// group short of replicas gets nodes; a group is never left without nodes. Then what is better, one replica a group at a time and only for groups
// that are settled: replicas leave draining nodes, groups that are larger than they should be shrink, replicas spread over zones and racks, nodes hold
// equally many. Each of these steps lowers, in this order, the number of replicas on draining nodes, of surplus replicas, of pairs that share a
// zone or rack, and the sum of squares of what nodes hold, and raises none before it: so it ends, and then nothing moves.
func (v *view) place() []placement {
	held := v.held()
	changing := 0
	for _, g := range v.groups {
		if g.changing {
			changing++
		}
	}
	var changes []placement
	touched := map[dc.GroupID]bool{}
	change := func(g viewGroup, nodes []dc.NodeID) {
		if !g.changing {
			changing++
		}
		count(held, g.desired, -1)
		count(held, nodes, +1)
		touched[g.id] = true
		changes = append(changes, placement{g.id, g.version, nodes})
	}
	for _, g := range v.groups {
		if changing >= maxChanging && !g.changing {
			continue
		}
		if nodes := v.need(g, held); !slices.Equal(nodes, g.desired) {
			change(g, nodes)
		}
	}
	for _, g := range v.groups {
		if changing >= maxChanging {
			return changes
		}
		if nodes, ok := v.better(g, held); ok && !touched[g.id] {
			change(g, nodes)
		}
	}
	for changing < maxChanging {
		g, nodes, ok := v.even(held, touched)
		if !ok {
			break
		}
		change(g, nodes)
	}
	return changes
}

func (v *view) held() map[dc.NodeID]int {
	held := map[dc.NodeID]int{}
	for _, g := range v.groups {
		count(held, g.desired, +1)
	}
	return held
}

func count(held map[dc.NodeID]int, nodes []dc.NodeID, by int) {
	for _, n := range nodes {
		held[n] += by
	}
}

// need gives the nodes that a group must be on: those that it is on without removed ones, and without dead ones as far as there are others for them.
func (v *view) need(g viewGroup, held map[dc.NodeID]int) []dc.NodeID {
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
	want := v.want(g)
	for len(keep) < want {
		id, ok := v.best(keep, held, dead...)
		if !ok {
			id, ok = v.bestOf(keep, held, dead, true) // rather on a full node than too few: its group stops growing
		}
		if !ok {
			break
		}
		keep = append(keep, id)
	}
	for len(keep) < want && len(dead) > 0 { // better a dead replica than too few: it may come back
		keep, dead = append(keep, dead[0]), dead[1:]
	}
	if len(keep) == 0 {
		return g.desired
	}
	slices.Sort(keep)
	return keep
}

// want is how many replicas a group should have.
func (v *view) want(g viewGroup) int {
	if g.id != dc.MetaGroup || g.want >= metaVoters {
		return g.want
	}
	there := 0
	for _, n := range v.nodes {
		if !n.removed && !n.drain && !n.dead && (n.up || slices.Contains(g.desired, n.id)) {
			there++
		}
	}
	if there >= metaVoters {
		return metaVoters
	}
	return g.want
}

// better gives the nodes of a settled group after one step of improvement that does not depend on other groups.
func (v *view) better(g viewGroup, held map[dc.NodeID]int) ([]dc.NodeID, bool) {
	if !g.settled {
		return nil, false
	}
	if len(g.desired) > v.want(g) {
		return without(g.desired, v.worst(g, held)), true
	}
	for _, id := range g.desired {
		if !v.node(id).drain {
			continue
		}
		rest := without(g.desired, id)
		if to, ok := v.best(rest, held, id); ok {
			return with(rest, to), true
		}
	}
	if g.pinned {
		return nil, false
	}
	return v.respread(g, held)
}

// respread exchanges the one replica that lowers most how many pairs share a zone or rack.
func (v *view) respread(g viewGroup, held map[dc.NodeID]int) ([]dc.NodeID, bool) {
	now := v.shared(g.desired)
	if now == (sharing{}) {
		return nil, false
	}
	var best []dc.NodeID
	least := now
	for _, id := range byLeader(g) {
		if id == g.prefer {
			continue
		}
		rest := without(g.desired, id)
		to, ok := v.best(rest, held, id)
		if !ok {
			continue
		}
		if nodes := with(rest, to); v.shared(nodes).less(least) {
			best, least = nodes, v.shared(nodes)
		}
	}
	return best, best != nil
}

// byLeader lists a group's nodes with its leader last: what costs nobody a hand-over is tried first.
func byLeader(g viewGroup) []dc.NodeID {
	nodes := slices.Clone(g.desired)
	slices.SortStableFunc(nodes, func(a, b dc.NodeID) int {
		return cmp.Compare(btoi(a == g.leader), btoi(b == g.leader))
	})
	return nodes
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// even finds the one replica to move from a node to another that holds at least two fewer: the largest difference first, then what disturbs least.
func (v *view) even(held map[dc.NodeID]int, touched map[dc.GroupID]bool) (viewGroup, []dc.NodeID, bool) {
	var open []viewNode
	low, high := 0, 0
	for _, n := range v.nodes {
		if !n.open() {
			continue
		}
		if h := held[n.id]; len(open) == 0 {
			low, high = h, h
		} else {
			low, high = min(low, h), max(high, h)
		}
		open = append(open, n)
	}
	if high-low < 2 {
		return viewGroup{}, nil, false
	}
	var best struct {
		group viewGroup
		nodes []dc.NodeID
		diff  int
	}
	for _, g := range v.groups {
		if !g.settled || g.pinned || touched[g.id] {
			continue
		}
		now := v.shared(g.desired)
		for _, from := range g.desired {
			if !v.node(from).open() || from == g.prefer {
				continue
			}
			for _, to := range open {
				diff := held[from] - held[to.id]
				if diff < 2 || diff < best.diff || to.full || slices.Contains(g.desired, to.id) {
					continue
				}
				if diff == best.diff && disturbance(g, from) >= disturbance(best.group, lost(best.group.desired, best.nodes)) {
					continue
				}
				if nodes := with(without(g.desired, from), to.id); !now.less(v.shared(nodes)) {
					best.group, best.nodes, best.diff = g, nodes, diff
				}
			}
		}
	}
	return best.group, best.nodes, best.nodes != nil
}

// disturbance tells how much it disturbs to take a group's replica off node n: least if n does not lead it; the meta group most.
func disturbance(g viewGroup, n dc.NodeID) int {
	switch {
	case g.id == dc.MetaGroup:
		return 2
	case g.leader == n:
		return 1
	}
	return 0
}

// lost is the node of before that is not in after.
func lost(before, after []dc.NodeID) dc.NodeID {
	for _, n := range before {
		if !slices.Contains(after, n) {
			return n
		}
	}
	return 0
}

// spread gives leaderships to hand over: to the node that is to lead a group by a person's word, off draining nodes, and to even out how many each node
// leads. The meta group's own is not moved for evenness: who leads it has to hear of every node anew.
func (v *view) spread() []move {
	leads := map[dc.NodeID]int{}
	for _, g := range v.groups {
		if g.resting {
			leads[g.heir]++ // the heartbeats have not told of it yet
			continue
		}
		leads[g.leader]++
	}
	var moves []move
	for _, g := range v.groups {
		if len(moves) == maxHandOvers {
			break
		}
		if to, ok := v.heir(g, leads); ok {
			leads[g.leader]--
			leads[to]++
			moves = append(moves, move{g.id, g.leader, to})
		}
	}
	return moves
}

// heir finds who should lead a group instead of its leader.
func (v *view) heir(g viewGroup, leads map[dc.NodeID]int) (dc.NodeID, bool) {
	drain := v.node(g.leader).drain
	if g.leader == 0 || g.resting || !g.settled && !drain {
		return 0, false
	}
	var open []dc.NodeID
	for _, id := range g.desired {
		if id != g.leader && v.node(id).open() {
			open = append(open, id)
		}
	}
	if len(open) == 0 {
		return 0, false
	}
	if g.prefer != 0 && v.node(g.prefer).open() {
		return g.prefer, slices.Contains(open, g.prefer)
	}
	to := slices.MinFunc(open, func(a, b dc.NodeID) int { return cmp.Compare(leads[a], leads[b]) })
	uneven := leads[to]+2 <= leads[g.leader] && g.id != dc.MetaGroup
	return to, uneven || drain
}

func (v *view) node(id dc.NodeID) viewNode {
	i, ok := slices.BinarySearchFunc(v.nodes, id, func(n viewNode, id dc.NodeID) int { return cmp.Compare(n.id, id) })
	if !ok {
		return viewNode{id: id, removed: true}
	}
	return v.nodes[i]
}

// open tells whether the node may lead and hold more.
func (n viewNode) open() bool { return n.up && !n.removed && !n.drain }
