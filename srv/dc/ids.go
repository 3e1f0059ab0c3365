package dc

import (
	"fmt"
	"strconv"
	"strings"
)

// A NodeID identifies one machine of the cluster for ever; ids are allocated by the meta group from 1
// and never reused. Zero is "no node".
type NodeID uint64

// String gives the form used in Raft configurations, logs and directories: "n3".
func (n NodeID) String() string { return "n" + strconv.FormatUint(uint64(n), 10) }

// ParseNodeID reads the form that [NodeID.String] writes.
func ParseNodeID(s string) (NodeID, error) {
	digits, ok := strings.CutPrefix(s, "n")
	v, err := strconv.ParseUint(digits, 10, 64)
	if !ok || err != nil || v == 0 {
		return 0, &Error{Op: "parse node id", Path: s, Kind: Invalid, Err: fmt.Errorf("want n and a number from 1 on: n1")}
	}
	return NodeID(v), nil
}

// A GroupID identifies one Raft group. [MetaGroup] is fixed, the others are allocated by the meta group.
type GroupID uint64

// MetaGroup is the group that holds nodes, group placement and descriptors of tables and topics.
const MetaGroup GroupID = 1

// String gives the form used in logs and directories: "g7".
func (g GroupID) String() string { return "g" + strconv.FormatUint(uint64(g), 10) }

// An Index is a position in one group's Raft log, from 1.
type Index uint64

// A Term is a Raft term of one group.
type Term uint64

// A Revision orders the changes of one group's state for its users (versions, watches); from 1.
type Revision uint64

// Group kinds. A group's name is its kind, or kind "/" number where there can be several ("kv/1").
const (
	KindMeta  = "meta"
	KindLock  = "lock"
	KindJobs  = "jobs"
	KindData  = "data"
	KindKV    = "kv"
	KindTopic = "topic"
)

// A RequestID names one mutation of one client. A retry carries the same id and takes effect once.
type RequestID struct {
	Client uint64 // random, one per client process
	Seq    uint64 // grows by one with every mutation of that client, from 1
	Done   uint64 // every Seq below Done has been answered; their results may be forgotten
	Issued int64  // when the mutation was first issued, cluster clock, Unix milliseconds
	Fence  Fence  // a condition on the mutation
}
