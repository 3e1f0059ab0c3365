// Package logstore keeps a group's Raft log and its vote on disk. [Store] is what consensus needs; [Open] gives it over one
// hashicorp/raft-wal a group and a vote file beside it. A shared log for all groups of a node can stand in its place.
//
// An error of the disk ends the process (Fatal): after a failed fsync the kernel may report lost pages as written, so nothing that this process
// would do next could be trusted. A vote is one record: written as three, a crash between them can leave a new term with an old
// candidate, which is then voted for without a look at its log.
package logstore
