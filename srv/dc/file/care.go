package file

import (
	"time"

	"missingos/srv/dc"
)

// A Hold says what the metadata know of a block on one node.
type Hold uint8

// What a Hold can be.
const (
	Unreferenced Hold = iota // no file references it, or none yet: it may have been written a moment ago
	Here                     // files reference it, and the node should have it
	Elsewhere                // files reference it, but the node does not count: its copy is surplus
	Ordered                  // its deletion on the node is ordered: no copy there can come to count before that is done
)

// A Fetch is a block that a node is to copy from others.
type Fetch struct {
	Block BlockID
	Bytes int
	From  []dc.NodeID // best first
}

// A Store tells how much room a node has for blocks, in bytes.
type Store struct {
	Used, Free int64
	Blocks     int64
}

// A BadCopy is a block that a node should have, and has not, or not as it was written.
type BadCopy struct {
	Block BlockID
	Node  dc.NodeID
}

// Replicas is how many nodes hold a block, if there are as many.
const Replicas = 3

// Limits of the care for blocks.
const (
	// KeepFetched is how long a node deletes nothing that it has fetched for the sake of another's order: the command that names it may be under way.
	KeepFetched = 2 * time.Minute
	// RelocateWithin is how long after the beginning of a fetch the command may take effect that names the copy.
	RelocateWithin = time.Minute
	// SettledAge is how old a block that no file references must be before a node that is to be emptied deletes it: well beyond CommitWithin.
	SettledAge = CommitWithin + time.Minute
	// MaxFetch is how many blocks a node is asked to fetch at a time, MaxFetchBytes how many bytes, unless it is one block.
	MaxFetch      = 64
	MaxFetchBytes = 16 * dc.MiB
	// MaxBad is how many bad copies one report may name.
	MaxBad = 512
)
