package storage

import (
	"iter"

	"missingos/srv/dc"
)

// A Reader reads one consistent state of a shard. A disk fault inside a Reader panics with *Fault; the shard turns that
// into an error at its boundary (View) or stops the process (Apply), so machines stay free of error plumbing.
type Reader interface {
	// Get returns a copy of the value of key that the caller may keep.
	Get(key []byte) (value []byte, ok bool)
	// Scan yields the rows of a span in key order. Key and value are valid until the next step of the loop only.
	Scan(s Span) iter.Seq2[[]byte, []byte]
}

// A Span selects keys k with Start <= k < End; a nil End means no upper bound (use tuple.PrefixEnd for prefixes).
type Span struct {
	Start, End []byte
	Reverse    bool // yield from the last key down to the first
	KeysOnly   bool // values are not read; the yielded value is nil
}

// A Tx is the transaction in which a machine applies one command. It reads its own writes. Keys starting with '!' belong to
// the shard itself; a machine must not touch them.
type Tx interface {
	Reader
	Set(key, value []byte)
	Delete(key []byte)
	// Clock is the leader's hybrid logical clock carried by the entry: Unix milliseconds, never going back.
	// It is the only time a machine may know.
	Clock() int64
	// Index is the raft index of the entry; several commands can share one.
	Index() dc.Index
	// Emit hands an event to the shard's observers once the transaction is committed, on every replica.
	Emit(event any)
}

// A Machine is a deterministic state machine: the same commands in the same order give the same state on every replica.
// No clock, randomness, map order, floats or I/O besides tx.
//
// Apply executes one command. An error (a *dc.Error) is the command's result and is replicated as such; a command
// must check everything first and write after: returning an error after Set, Delete or Emit is a broken invariant and panics.
// A body that does not decode, or of an unknown version, must panic: divergence is worse than a crash.
// A command's work is bounded (a few hundred writes, 2 MiB); long work is split into commands by the service.
type Machine interface {
	Apply(tx Tx, body []byte) (result []byte, err error)
}

// An Entry is one committed raft entry: a batch of encoded commands (see package command) under one clock.
type Entry struct {
	Index    dc.Index
	Term     dc.Term
	Clock    int64 // the leader's hybrid clock, Unix milliseconds
	Commands [][]byte
}

// A Result is the outcome of one command: what Apply returned, now or at the first delivery of the same request id.
type Result struct {
	Body []byte
	Err  error // *dc.Error or nil
}

// A Fault is a failure of the disk or of the shard's integrity.
type Fault struct{ Err error }

func (f *Fault) Error() string { return "storage fault: " + f.Err.Error() }

// Unwrap gives the cause.
func (f *Fault) Unwrap() error { return f.Err }
