package meta

import (
	"google.golang.org/protobuf/proto"

	"missingos/srv/dc"
	"missingos/storage"
	"missingos/storage/tuple"
)

// Rows by first byte:
//
//	c                   MetaCluster
//	n<id>               MetaNode
//	t<hash>             MetaToken
//	g<id>               MetaGroup
//	d<kind><name>       the id of the descriptor with that name
//	i<kind><id>         MetaDescriptor
const (
	rowNode       = 'n'
	rowToken      = 't'
	rowGroup      = 'g'
	rowName       = 'd'
	rowDescriptor = 'i'
)

var clusterKey = []byte{'c'}

func nodeKey(id dc.NodeID) []byte   { return tuple.AppendUint([]byte{rowNode}, uint64(id)) }
func groupKey(id dc.GroupID) []byte { return tuple.AppendUint([]byte{rowGroup}, uint64(id)) }
func tokenKey(hash []byte) []byte   { return append([]byte{rowToken}, hash...) }

func nameKey(kind, name string) []byte {
	return tuple.AppendString(tuple.AppendString([]byte{rowName}, kind), name)
}

func descriptorKey(kind string, id uint64) []byte {
	return tuple.AppendUint(tuple.AppendString([]byte{rowDescriptor}, kind), id)
}

func prefix(p []byte) storage.Span { return storage.Span{Start: p, End: tuple.PrefixEnd(p)} }

// load reads the record at key into m; false if there is none.
func load(r storage.Reader, key []byte, m proto.Message) bool {
	value, ok := r.Get(key)
	if ok {
		decode(value, m)
	}
	return ok
}

func decode(value []byte, m proto.Message) {
	if err := proto.Unmarshal(value, m); err != nil {
		panic("meta: record does not decode: " + err.Error())
	}
}

// encode is the same on every replica, also of messages with maps.
func encode(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic("meta: encode: " + err.Error())
	}
	return b
}
