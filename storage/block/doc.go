// Package block stores immutable file blocks on one node: append-only segment files, an index in memory, checksums on every read.
//
// Concepts:
//   - A [Store] owns a directory. Blocks are written once under a [file.BlockID], read in part, and deleted; they never change.
//   - A segment is a file of records; a record is a header, a CRC32C for each 64 KiB of data, and the data. Records start at multiples of
//     4 KiB, so that a deleted one can be punched out of the file. The newest segment is written to, the others are sealed; a
//     sealed segment without blocks is removed.
//   - The index is rebuilt at Open: a checkpoint file lists the blocks and how far each segment has been taken in; what lies
//     beyond is scanned and its data verified. What a crash tore is cut off or skipped.
//
// Put returns when the data is in the page cache of this node. Sync makes everything put before durable; callers at the same time share
// one fdatasync. A background round syncs once a second, so that a power cut costs little. After a failed fsync nothing
// can be trusted: the store refuses everything and calls Config.Fatal.
//
// Lock order: syncMu before mu. No I/O is done under mu except the creation of a segment.
//
// It does not know files, replicas, or who may read what; which blocks are garbage it is told.
package block
