package meta

import (
	"iter"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/command"
	"missingos/storage/tuple"
)

// Cluster reads the totals; false before the cluster is made.
func Cluster(r storage.Reader) (*command.MetaCluster, bool) {
	c := &command.MetaCluster{}
	return c, load(r, clusterKey, c)
}

// Node reads one node.
func Node(r storage.Reader, id dc.NodeID) (*command.MetaNode, bool) {
	n := &command.MetaNode{}
	return n, load(r, nodeKey(id), n)
}

// Nodes yields all nodes by id, removed ones included.
func Nodes(r storage.Reader) iter.Seq[*command.MetaNode] {
	return func(yield func(*command.MetaNode) bool) {
		for _, value := range r.Scan(prefix([]byte{rowNode})) {
			n := &command.MetaNode{}
			if decode(value, n); !yield(n) {
				return
			}
		}
	}
}

// Group reads one group.
func Group(r storage.Reader, id dc.GroupID) (*command.MetaGroup, bool) {
	g := &command.MetaGroup{}
	return g, load(r, groupKey(id), g)
}

// Groups yields all groups by id.
func Groups(r storage.Reader) iter.Seq[*command.MetaGroup] {
	return func(yield func(*command.MetaGroup) bool) {
		for _, value := range r.Scan(prefix([]byte{rowGroup})) {
			g := &command.MetaGroup{}
			if decode(value, g); !yield(g) {
				return
			}
		}
	}
}

// Descriptor reads a descriptor by id, one that is being dropped too.
func Descriptor(r storage.Reader, kind string, id uint64) (*command.MetaDescriptor, bool) {
	d := &command.MetaDescriptor{}
	return d, load(r, descriptorKey(kind, id), d)
}

// Named reads the descriptor that has a name now.
func Named(r storage.Reader, kind, name string) (*command.MetaDescriptor, bool) {
	value, ok := r.Get(nameKey(kind, name))
	if !ok {
		return nil, false
	}
	return Descriptor(r, kind, descriptorID(value))
}

// List gives up to limit descriptors in name order, strictly after a name ("" for the start).
func List(r storage.Reader, kind, after string, limit int) []*command.MetaDescriptor {
	span := prefix(tuple.AppendString([]byte{rowName}, kind))
	if after != "" {
		span.Start = append(nameKey(kind, after), 0)
	}
	var all []*command.MetaDescriptor
	for _, value := range r.Scan(span) {
		if len(all) == limit {
			break
		}
		if d, ok := Descriptor(r, kind, descriptorID(value)); ok {
			all = append(all, d)
		}
	}
	return all
}

func descriptorID(value []byte) uint64 {
	id, _, ok := tuple.TakeUint(value)
	if !ok {
		panic("meta: the row of a name holds no id")
	}
	return id
}
