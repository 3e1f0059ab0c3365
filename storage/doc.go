// Package storage is the disk: deterministic state in Badger shards. A shard holds one replica of one group's
// state; a [Machine] says what commands do to it. The package has never heard of Raft: it is handed entries in
// order, applies each once, and says up to which index its state goes.
//
// Concepts defined here: [Entry], [Machine], [Reader], [Tx], [Shard], [Volatile] (a shard without a disk), [Mark] (a place in the log),
// [Pinned] (a state held readable), [Fault].
//
// What follows what, from a command to the disk: [Shard.Apply] (commit.go) runs entries through the ledger (apply.go), which
// asks the table of answers whether a command is a repetition (dedupe.go) and else the machine, over an overlay of unwritten
// rows (overlay.go, rows.go); the generation (generation.go) writes the overlay to Badger at version "index"; [Shard.Checkpoint]
// (checkpoint.go) makes it durable; snapshot.go and restore.go carry a whole state to another replica.
//
// What holds: a view shows the state after some entry and nothing of a later one; a process that is killed goes on from its last
// entry; after a power cut the shard opens at its last checkpoint, and replaying the log from there gives the same state,
// whatever of the unsynced writes survived. See [Shard] for why.
//
// Lock order of a Shard: apply, checkpoint, mu. No lock but apply and checkpoint is held over I/O; observers run under apply.
//
// What it does not do: fsync per entry (the log has that), free space (srv/node), choosing when to checkpoint or what to
// apply (consensus, through srv/node).
package storage
