// Package locktable keeps the advisory locks of one mount among its own processes: flock(2) locks and fcntl(2) record
// locks, the two of which ignore each other as they do in the kernel. Files whose locks are the cluster's (those in /dc/lock) do not
// come here.
//
// Concepts: a [Lock] is a byte range of a file held by an owner, the number by which the kernel names an open file
// (flock) or a process's file table (fcntl). Waiters are woken whenever a lock of their file goes, and compete.
//
// Lock order: Table.mu only. What it does not do: no deadlock detection between fcntl owners (the kernel does none for FUSE
// either; a signal ends the wait), no order among waiters.
package locktable
