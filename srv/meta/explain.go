package meta

import (
	"fmt"
	"slices"
	"strings"

	"missingos/srv/dc"
)

// name is what people call a node.
func (v *view) name(id dc.NodeID) string {
	if n := v.node(id); n.name != "" {
		return n.name
	}
	return id.String()
}

func (v *view) names(ids []dc.NodeID) string {
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = v.name(id)
	}
	return strings.Join(names, ", ")
}

// reasons explains why a group is as it is where that is not what one would expect.
func (v *view) reasons(g viewGroup, held map[dc.NodeID]int) []string {
	var all []string
	say := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	if g.leader == 0 {
		say("no node says that it leads the group: nothing can change, and it serves nobody, until one does")
	}
	if want := v.want(g); len(g.desired) < want {
		say("%d of %d replicas: no other node is up, not draining and with room", len(g.desired), want)
	}
	for _, id := range g.desired {
		n := v.node(id)
		other := false
		if n.dead || n.drain {
			_, other = v.best(without(g.desired, id), held, id)
		}
		switch {
		case n.dead && !other:
			say("%s is dead, and no other node is open to replace it", n.name)
		case !n.up && !n.dead:
			say("%s is not heard of; it is replaced when it has been silent for the grace (--dead-after)", n.name)
		case n.drain && !other:
			say("%s drains, and no other node is open to take its replica", n.name)
		case n.drain && !g.settled:
			say("%s drains: its replica moves when all others are level", n.name)
		}
	}
	if s := v.shared(g.desired); s != (sharing{}) && v.labelled() {
		say("%s", v.sharedText(g))
	}
	switch {
	case g.pinned && g.prefer != 0:
		say("placed by `dcctl group move`, %s to lead: not moved but for need; --auto gives it back", v.name(g.prefer))
	case g.pinned:
		say("placed by `dcctl group move`: not moved but for need; --auto gives it back")
	case g.prefer != 0:
		say("%s is to lead by `dcctl group move`; --auto gives it back", v.name(g.prefer))
	}
	return all
}

// labelled tells whether the nodes differ in zone or rack at all.
func (v *view) labelled() bool {
	return slices.ContainsFunc(v.nodes, func(n viewNode) bool {
		return !n.removed && (n.zone != v.nodes[0].zone || n.rack != v.nodes[0].rack)
	})
}

// sharedText says which replicas one failure takes together.
func (v *view) sharedText(g viewGroup) string {
	var pairs []string
	for i, a := range g.desired {
		for _, b := range g.desired[:i] {
			x, y := v.node(b), v.node(a)
			switch {
			case x.zone != y.zone:
			case x.rack == y.rack:
				pairs = append(pairs, fmt.Sprintf("%s and %s share rack %q of zone %q", x.name, y.name, x.rack, x.zone))
			default:
				pairs = append(pairs, fmt.Sprintf("%s and %s share zone %q", x.name, y.name, x.zone))
			}
		}
	}
	return strings.Join(pairs, "; ")
}
