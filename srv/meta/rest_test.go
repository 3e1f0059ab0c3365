package meta

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"missingos/srv/dc"
)

// A world is a cluster in which the groups' leaders carry out what the controller desires, one step at a time.
type world struct {
	view
	members map[dc.GroupID][]dc.NodeID // voters
}

func newWorld(groups int) *world {
	w := &world{view: view{nodes: []viewNode{up(1)}}, members: map[dc.GroupID][]dc.NodeID{}}
	for i := range groups {
		id := dc.GroupID(i + 1)
		w.groups = append(w.groups, viewGroup{id: id, want: 3, desired: ids(1), leader: 1, settled: true})
		w.members[id] = ids(1)
	}
	return w
}

func (w *world) alive(nodes []dc.NodeID) int {
	alive := 0
	for _, id := range nodes {
		if n := w.node(id); n.up {
			alive++
		}
	}
	return alive
}

func (w *world) majority(g dc.GroupID) bool { return w.alive(w.members[g])*2 > len(w.members[g]) }

// step lets one group's leader take its next step: promote what is desired and up, then remove what is not, never below a majority of living voters.
func (w *world) step(g *viewGroup) {
	if !w.majority(g.id) {
		g.leader, g.settled, g.changing = 0, false, false
		return
	}
	defer w.facts(g)
	for _, n := range g.desired {
		if !slices.Contains(w.members[g.id], n) {
			if w.node(n).up {
				w.members[g.id] = with(w.members[g.id], n)
			}
			return
		}
	}
	for _, n := range w.members[g.id] {
		if rest := without(w.members[g.id], n); !slices.Contains(g.desired, n) && w.alive(rest)*2 > len(rest) {
			w.members[g.id] = rest
			return
		}
	}
}

func (w *world) facts(g *viewGroup) {
	m := w.members[g.id]
	if !slices.Contains(m, g.leader) || !w.node(g.leader).up {
		g.leader = m[slices.IndexFunc(m, func(n dc.NodeID) bool { return w.node(n).up })]
	}
	same := slices.Equal(m, g.desired)
	waits := slices.ContainsFunc(g.desired, func(n dc.NodeID) bool { return !slices.Contains(m, n) && !w.node(n).up })
	g.changing, g.settled = !same && !waits, same && w.alive(m) == len(m)
}

func (w *world) place(t *rapid.T) int {
	changes := w.view.place()
	seen := map[dc.GroupID]bool{}
	for _, p := range changes {
		if seen[p.group] {
			t.Fatalf("two changes of group %s: %v", p.group, changes)
		}
		seen[p.group] = true
		g := &w.groups[p.group-1]
		if p.ifVersion != g.version || len(p.nodes) == 0 || !slices.IsSorted(p.nodes) || len(slices.Compact(slices.Clone(p.nodes))) != len(p.nodes) {
			t.Fatalf("placement %+v of %+v", p, g)
		}
		g.desired, g.version = p.nodes, g.version+1
		if w.majority(g.id) {
			w.facts(g)
		}
	}
	changing := 0
	for _, g := range w.groups {
		changing += btoi(g.changing)
	}
	if changing > maxChanging {
		t.Fatalf("%d groups change at a time", changing)
	}
	return len(changes)
}

// Whatever nodes come, go, drain and are relabelled, and whenever in the midst of moves: a change never costs a group its majority, the controller comes
// to rest, then everything is spread and even, and stays where it is.
func TestControllerComesToRest(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(rapid.IntRange(1, 12).Draw(t, "groups"))
		for range rapid.IntRange(1, 12).Draw(t, "events") {
			w.event(t)
			for range rapid.IntRange(0, 20).Draw(t, "steps") { // the next event may come in the midst
				w.place(t)
				w.move(t)
			}
		}
		w.rest(t)
	})
}

// move takes one step of a group, and checks that it does no harm.
func (w *world) move(t *rapid.T) {
	g := &w.groups[rapid.IntRange(0, len(w.groups)-1).Draw(t, "moving")]
	had := w.majority(g.id)
	w.step(g)
	if had && !w.majority(g.id) {
		t.Fatalf("a step cost group %s its majority: %v", g.id, w.members[g.id])
	}
}

func (w *world) event(t *rapid.T) {
	n := &w.nodes[rapid.IntRange(0, len(w.nodes)-1).Draw(t, "node")]
	others := slices.ContainsFunc(w.nodes, func(o viewNode) bool { return o.id != n.id && o.open() })
	switch rapid.IntRange(0, 6).Draw(t, "event") {
	case 0, 1:
		w.nodes = append(w.nodes, up(dc.NodeID(len(w.nodes)+1)))
	case 2: // silent; not yet dead
		if w.bearable(n.id) {
			n.up = false
		}
	case 3: // dead, or back
		if n.up = !n.removed && (n.dead || !n.up && !n.removed); !n.up && !n.removed {
			n.up = !w.bearable(n.id)
		}
		n.dead = !n.up
	case 4:
		n.drain = !n.drain
	case 5:
		if others && !n.up && w.bearable(n.id) {
			n.removed = true
		}
	case 6:
		n.zone = rapid.SampledFrom([]string{"", "a", "b", "c"}).Draw(t, "zone")
		n.rack = rapid.SampledFrom([]string{"", "r", "s"}).Draw(t, "rack")
	}
	for i := range w.groups {
		if g := &w.groups[i]; w.majority(g.id) {
			w.facts(g)
		}
	}
}

// bearable tells whether every group keeps its majority without a node: what takes it is no fault of a change.
func (w *world) bearable(id dc.NodeID) bool {
	i := slices.IndexFunc(w.nodes, func(n viewNode) bool { return n.id == id })
	was := w.nodes[i].up
	w.nodes[i].up = false
	ok := true
	for _, g := range w.groups {
		ok = ok && w.majority(g.id)
	}
	w.nodes[i].up = was
	return ok
}

func (w *world) rest(t *rapid.T) {
	for i := range w.nodes { // who is silent comes back or is dead in the end
		if n := &w.nodes[i]; !n.up && !n.removed {
			n.dead = true
		}
	}
	for round := 0; ; round++ {
		moved := w.place(t) > 0
		for i := range w.groups {
			before := slices.Clone(w.members[w.groups[i].id])
			w.step(&w.groups[i])
			moved = moved || !slices.Equal(before, w.members[w.groups[i].id])
		}
		if !moved {
			break
		}
		if round > 400 {
			t.Fatalf("no rest: %+v", w.view.place())
		}
	}
	w.checkPlaces(t)
	w.checkEven(t)
	for round := 0; ; round++ {
		moves := w.spread()
		if len(moves) == 0 {
			break
		}
		if round > 100 {
			t.Fatalf("leaderships never rest: %+v", moves)
		}
		for _, m := range moves {
			w.groups[m.group-1].leader = m.to
		}
	}
	if again := w.view.place(); len(again) > 0 {
		t.Fatalf("after the leaderships replicas move again: %+v", again)
	}
}

func (w *world) open() (nodes []dc.NodeID) {
	for _, n := range w.nodes {
		if n.open() {
			nodes = append(nodes, n.id)
		}
	}
	return nodes
}

func (w *world) checkPlaces(t *rapid.T) {
	open := w.open()
	for _, g := range w.groups {
		if !w.majority(g.id) {
			t.Fatalf("group %s has lost its majority: %v", g.id, w.members[g.id])
		}
		want := w.want(g)
		if len(g.desired) > want || w.alive(g.desired) < min(want, len(open)) {
			t.Fatalf("group %s is on %v; %v are open, %d wanted", g.id, g.desired, open, want)
		}
		for _, id := range g.desired {
			n := w.node(id)
			_, other := w.best(without(g.desired, id), w.held(), id)
			if n.removed || other && g.settled && (n.drain || n.dead) {
				t.Fatalf("group %s is on %s, %+v; %v are open", g.id, id, n, open)
			}
		}
		if !g.settled || want != 3 || len(open) < 3 {
			continue
		}
		zones := map[string]bool{}
		for _, id := range open {
			zones[w.node(id).zone] = true
		}
		used := map[string]bool{}
		for _, id := range g.desired {
			used[w.node(id).zone] = true
		}
		if len(used) < min(3, len(zones)) {
			t.Fatalf("group %s is in %d zones, there are %d", g.id, len(used), len(zones))
		}
	}
}

// checkEven: without domains, what nodes hold is within one of the mean.
func (w *world) checkEven(t *rapid.T) {
	for _, n := range w.nodes {
		if n.zone != "" || n.rack != "" {
			return
		}
	}
	for _, g := range w.groups {
		if !g.settled {
			return
		}
	}
	held, low, high := w.held(), 1<<30, 0
	for _, n := range w.open() {
		low, high = min(low, held[n]), max(high, held[n])
	}
	if len(w.open()) > 0 && high-low > 1 {
		t.Fatalf("uneven: %s", fmt.Sprint(held))
	}
}
