// Package lockfs is the room /dc/lock: the consistent store as files. A file is read and replaced whole, its version is an
// xattr, flock(2) is the lock call, and hidden control files watch, compare-and-set and show who holds what.
//
// Concepts:
//   - A file's key, and so its inode number, is its path. An open file is bound to the file that it found there: once that is
//     removed or replaced, reading and writing through the descriptor is ESTALE, as on NFS.
//   - A lock is on the name and belongs to the open file. A write through a descriptor that holds the lock is applied only if it still
//     holds it then. Once the node's session is lost, every operation of a descriptor that held a lock is ESTALE for ever.
//   - In an ephemeral directory a file lives while somebody holds it open for writing.
//   - Every write(2) commits. Opening with O_TRUNC, and truncating to nothing, commits nothing; the write that follows replaces the value.
//
// Hidden in every directory is `.dc`: watch, events, locks, ctl; at the root also txn, sessions, stat.
//
// Lock order: handle.turn, then handle.mu; neither is held across a call to the store but for the turn, which orders the lock calls (and, for a
// value written in pieces, the writes) of one descriptor.
package lockfs
