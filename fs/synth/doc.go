// Package synth serves synthetic files to the kernel: files whose content is made by code when somebody reads, and whose
// writes are commands. The rooms of the tree (kvfs, topicfs, lockfs, jobfs, nodefs) describe their files with the small
// interfaces of this package and know nothing of FUSE.
//
// Concepts:
//   - [Node], [Dir], [File], [Handle]: what a room implements. A Node value is light and made anew by every lookup; its
//     [Node.Key] is its identity.
//   - [Door]: what every request of a mount comes in through, as a ctx with a principal, a deadline and the kernel's
//     interrupt, and every error goes out through, as an errno; the full texts stay readable at /dc/.dc/errors. The
//     translation from kind to errno exists here and nowhere else.
//   - [Server]: the fuse.RawFileSystem for all synthetic files of one mount: node table, handles, paged directories, locks.
//   - Ready-made nodes: [Static], [Value], [Status], [Ctl], [Clone], [Stream]; and the [Source] that a stream or the
//     answer of a clone file is read from.
//
// Two kinds of operation: a *bounded* one (everything but the next) gets the deadline dc.OpTimeout and, when a signal
// interrupts the caller, a grace of [InterruptGrace] to finish, because Go programs and shells get signals all the time and the outcome
// of a cancelled change is unknown; a *blocking* one (reads of a stream, waiting for a lock) has no deadline and ends at
// once with EINTR. At most dc.MaxBlockedReads of those wait in one mount; one more answers EAGAIN.
//
// Lock order: Server.mu, then nothing; a handle's own lock, then nothing. No lock is held while a room's code runs, but for the one that
// orders the reads of one stream handle, which is given up on interrupt.
//
// What it does not do: no symbolic links, no hard links, no kernel caching (entry and attribute timeouts are 0), no mmap of
// writes, no renames between rooms (EXDEV).
package synth
