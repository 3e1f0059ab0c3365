package meta

import (
	"cmp"
	"slices"

	"missingos/srv/dc"
)

// The labels that say what fails together.
const (
	zoneLabel = "zone"
	rackLabel = "rack"
)

// sharing counts the pairs of a group's replicas that one failure takes: those in one zone, and those in one rack of it. Nodes without a label are in
// one zone, or rack, together. Pairs rather than domains, so that five replicas in three zones come out as 2, 2, 1.
type sharing struct{ zones, racks int }

func (s sharing) less(o sharing) bool {
	return s.zones < o.zones || s.zones == o.zones && s.racks < o.racks
}

func (s sharing) compare(o sharing) int {
	return cmp.Or(cmp.Compare(s.zones, o.zones), cmp.Compare(s.racks, o.racks))
}

// shared counts for a whole group.
func (v *view) shared(nodes []dc.NodeID) sharing {
	var s sharing
	for i, id := range nodes {
		more := v.sharedWith(v.node(id), nodes[:i])
		s.zones, s.racks = s.zones+more.zones, s.racks+more.racks
	}
	return s
}

// sharedWith counts the pairs that one node makes with others.
func (v *view) sharedWith(n viewNode, others []dc.NodeID) sharing {
	var s sharing
	for _, id := range others {
		if o := v.node(id); o.zone == n.zone {
			s.zones++
			if o.rack == n.rack {
				s.racks++
			}
		}
	}
	return s
}

// best finds the node to hold a replica beside others: open, not full, none of except; that shares least, then that holds least.
func (v *view) best(others []dc.NodeID, held map[dc.NodeID]int, except ...dc.NodeID) (dc.NodeID, bool) {
	return v.bestOf(others, held, except, false)
}

func (v *view) bestOf(others []dc.NodeID, held map[dc.NodeID]int, except []dc.NodeID, full bool) (dc.NodeID, bool) {
	var best dc.NodeID
	var least sharing
	for _, n := range v.nodes {
		if !n.open() || n.full && !full || slices.Contains(others, n.id) || slices.Contains(except, n.id) {
			continue
		}
		s := v.sharedWith(n, others)
		if best == 0 || cmp.Or(s.compare(least), cmp.Compare(held[n.id], held[best])) < 0 {
			best, least = n.id, s
		}
	}
	return best, best != 0
}

// worst finds the node that a group with too many replicas leaves: one that drains or is not up, then the one that shares most, then the fullest, and
// its leader only among equals; the one that is to lead it last of all that are open.
func (v *view) worst(g viewGroup, held map[dc.NodeID]int) dc.NodeID {
	return slices.MaxFunc(g.desired, func(a, b dc.NodeID) int {
		rest := func(id dc.NodeID) sharing { return v.sharedWith(v.node(id), without(g.desired, id)) }
		return cmp.Or(
			cmp.Compare(btoi(!v.node(a).open()), btoi(!v.node(b).open())),
			cmp.Compare(btoi(a != g.prefer), btoi(b != g.prefer)),
			rest(a).compare(rest(b)),
			cmp.Compare(held[a], held[b]),
			cmp.Compare(btoi(a != g.leader), btoi(b != g.leader)),
		)
	})
}

// without and with give a new sorted list.
func without(nodes []dc.NodeID, n dc.NodeID) []dc.NodeID {
	return slices.DeleteFunc(slices.Clone(nodes), func(o dc.NodeID) bool { return o == n })
}

func with(nodes []dc.NodeID, n dc.NodeID) []dc.NodeID {
	more := append(slices.Clone(nodes), n)
	slices.Sort(more)
	return more
}
