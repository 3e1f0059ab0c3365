// Package storage is the disk: deterministic state in Badger shards. A shard holds one replica of one group's
// state; a [Machine] says what commands do to it. The package has never heard of Raft: it is handed entries in
// order, applies each once, and says up to which index its state goes.
//
// Concepts defined here: [Entry], [Machine], [Reader], [Tx], [Shard].
package storage
