// Package logstore keeps Raft logs and votes on disk. [Shared] is a node's one write-ahead log, for all its groups: entries, votes and
// truncations in the order they came, in segment files; [Store] is one group's part of it, which is what consensus needs. See docs/design/0016.
//
// What follows what: [Shared.Open] or, for groups that have a log of the first kind still, [Shared.Adopt] (adopt.go) gives a [Store] (group.go); it
// adds records (record.go) to the next batch; the writer (shared.go) makes batches durable, begins and retires segments, and moves what quiet groups
// need out of old ones; recover.go reads it all at start, and says what is a torn write and what is damage.
//
// An error of the disk ends the process (Fatal): after a failed fsync the kernel may report lost pages as written, so nothing that this process
// would do next could be trusted. A vote is one record: written as three, a crash between them can leave a new term with an old
// candidate, which is then voted for without a look at its log.
//
// What it does not do: several disks, encryption, keeping entries for followers (consensus says what may go).
package logstore
