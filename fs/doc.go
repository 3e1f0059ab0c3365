// Package fs is the mount: the root of /dc and the way of a kernel request to the room that answers it.
//
// Concepts:
//   - The root directory lists the rooms it was given (data, kv, topics, lock, jobs, nodes) and has a hidden `.dc` with
//     errors, whoami, stat, stat.json and ctl.
//   - Two servers share one FUSE connection and are told apart by node id: ids with [synth.IDBit], and the root's, are
//     synthetic files (fs/synth); all others are inode numbers of the cluster filesystem (fs/datafs), whose root is [DataRoot].
//   - [Mount] attaches the tree to a directory, after clearing away what a killed daemon left there; [Mounted.Unmount] detaches
//     it within a deadline, cutting the connection if somebody will not let go.
//
// The kernel checks permission bits (default_permissions) with the groups of the caller, which FUSE does not tell a server; who may do what
// beyond that is decided in srv. Nothing is cached by the kernel: what one node has committed, all see at their next call.
//
// A process that serves a mount must not start another with its working directory or its program inside that mount: between
// fork and exec the child shares its memory and stops it from collecting garbage, while it waits for the answer that the
// same process owes it. Task drivers start a helper outside, which goes there by itself.
//
// Lock order: none of its own. What it does not do: it never touches its own mount (a daemon that waits for itself hangs), but for
// go-fuse's one poll at the start, and it executes nothing but fusermount3, which ordinary users need to mount and unmount.
package fs
