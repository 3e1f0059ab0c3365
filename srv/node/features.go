package node

import (
	"strconv"
	"strings"

	"missingos/srv/dc"
)

// A feature puts something into logs or states that earlier versions do not know. Until every node of the cluster runs a version that does, it is refused: a
// replica that meets what it does not know stops. Nodes say at each start what they run, so this can be told of nodes that are down, too. When
// something new is put into a log, it gets a line here, and its door asks allows.
type feature struct {
	name  string
	since version
}

var fencedWrites = feature{"writes under a fencing token", version{0, 2, 0}}

type version [3]int

// parseVersion reads major.minor.patch; anything else, as builds without a version have, counts as the newest.
func parseVersion(s string) (v version, ok bool) {
	parts := strings.SplitN(strings.SplitN(strings.TrimPrefix(s, "v"), "-", 2)[0], ".", 3)
	for i, p := range parts {
		n, err := strconv.Atoi(p)
		if err != nil || n < 0 {
			return v, false
		}
		v[i] = n
	}
	return v, len(parts) == 3
}

func (v version) before(o version) bool {
	for i := range v {
		if v[i] != o[i] {
			return v[i] < o[i]
		}
	}
	return false
}

// allows says dc.Unsupported while some node of the cluster runs a version that does not know f.
func (d *directory) allows(f feature) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range d.nodes {
		if v, ok := parseVersion(n.Version); !n.Removed && ok && v.before(f.since) {
			return dc.Errorf(dc.Unsupported, f.name, "", "node %s runs version %s, which does not know them; all nodes must run %d.%d.%d or later", n.Name, n.Version, f.since[0], f.since[1], f.since[2])
		}
	}
	return nil
}
