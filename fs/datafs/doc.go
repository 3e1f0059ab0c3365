// Package datafs is the room of /dc/data: the cluster filesystem as the kernel sees it. It implements go-fuse's raw interface with
// inode numbers as node ids, keeps nothing of files that nobody has open, and answers every other question from the metadata service.
//
// Concepts:
//   - An inode here is an open file: how often it is open, what is known of its content, and what has been written on this
//     node and not published yet. It lives from the first open to the last release.
//   - Written data is first dirty, then (while a flush runs) flushing, then committed. A reader on this node sees dirty over flushing
//     over committed, so a write is visible here at once. Other nodes see committed content only: at close, fsync, or after
//     two seconds.
//   - A flush publishes everything written so far in one command: small data inline in the inode, else as new blocks, written first. So the
//     size never covers data that is not there, and another node sees a prefix of what was written.
//   - Data written to an O_APPEND handle waits apart, as the pending tail; where it goes is decided when its command is applied. Each
//     write(2) stays whole (up to 1 MiB), whoever else appends.
//
// Coherence: the kernel caches no names and no attributes (TTL 0) and checks a file's mtime and size before each cached read, so each
// call sees what other nodes had published when it began. The one answer that is given without asking is to a GETATTR right
// behind the LOOKUP of the same inode by the same thread: the kernel's own permission check within one system call.
//
// Errors of a flush are given to the close, fsync or write that caused it. The data stays until a later flush succeeds or the file is
// released for the last time; data lost beyond that (its inode is gone; an append whose outcome is unknown) is reported
// once to the next call on the file.
//
// flock and fcntl locks are kept among the processes of this mount. mmap works, except MAP_SHARED on an O_APPEND descriptor.
//
// Lock order: an inode's flush turn, then FS.mu or inode.mu, which are never held together and never across an RPC.
package datafs
