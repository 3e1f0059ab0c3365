package node

import "missingos/srv/dc"

// A feature puts something into logs or states that earlier versions do not know. Until every node of the cluster runs a version that does, it is refused: a
// replica that meets what it does not know stops. Nodes say at each start what they run, so this can be told of nodes that are down, too, and
// meta's leader admits and registers none that is older than all others ([meta.Service.Register]): what was allowed once stays so. When
// something new is put into a log, it gets a line here, and its door asks allows.
type feature struct {
	name  string
	since dc.Version
}

var (
	fencedWrites   = feature{"writes under a fencing token", dc.Version{0, 2, 0}}
	movedBlocks    = feature{"moves of blocks", dc.Version{0, 3, 0}}
	fullFiles      = feature{"access control lists, clones and files without names in /dc/data", dc.Version{0, 3, 0}}
	rowsExpire     = feature{"rows with a time to live", dc.Version{0, 3, 0}}
	kvRanges       = feature{"tables of more than one range", dc.Version{0, 3, 0}}
	fileLocks      = feature{"locks of files in /dc/data across nodes", dc.Version{0, 4, 0}}
	topicRetention = feature{"retention of topics", dc.Version{0, 3, 0}}
	fileLeases     = feature{"leases on files", dc.Version{0, 4, 0}}
)

// allows says dc.Unsupported while some node of the cluster runs a version that does not know f.
func (d *directory) allows(f feature) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range d.nodes {
		if v, ok := dc.ParseVersion(n.Version); !n.Removed && ok && v.Before(f.since) {
			return dc.Errorf(dc.Unsupported, f.name, "", "node %s runs version %s, which does not know that; all nodes must run %s or later", n.Name, n.Version, f.since)
		}
	}
	return nil
}
