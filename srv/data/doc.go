// Package data serves /dc/data: metadata on the leader of a data group ([Service]), blocks on every node ([Blocks]).
//
// Concepts:
//   - The metadata service turns requests into commands of the data machine, which checks permissions as it applies them, and
//     answers reads from a linearizable view.
//   - Open files are known to the leader by what the mounts say: each open names the mount's session, and every few seconds a mount
//     lists what it has open. An unlinked inode is purged when no session has it open. A new leader purges nothing until it has
//     led for file.OpenGrace, by when every living mount has reported to it; a mount silent for that long loses its claim. So an open costs no
//     command, and unlinked files stay readable across a change of leader.
//   - Blocks that lost their last reference are garbage rows in the state; the leader tells each node which to delete, a page at a
//     time, and forgets them when the node has. Blocks that were never referenced (their writer died) are found by
//     [Blocks.CollectOrphans], by which a node asks the leader about its old blocks.
//
// Nodes trust each other with blocks: a node of the cluster may read and delete any block by its name; who may read a file is decided where
// its block names are given out.
//
// Lock order: opens.mu only, held briefly. It does not route to leaders, and does not repair blocks that have lost a replica.
package data
