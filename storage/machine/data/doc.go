// Package data is the state machine of a data group: the metadata of /dc/data. It holds inodes, directory entries, which bytes of a
// file lie in which block, and which nodes hold a block; file content itself is in the block stores, except for small files and
// small tails of files, which live in their inode.
//
// Concepts:
//   - an inode has at most one inline run, the lowest layer of its content; extents lie above it and never overlap each other;
//     a byte under neither is zero (a hole);
//   - a block row counts the extents that point into a block and names the nodes that hold it; when the last goes, garbage rows
//     (one a node) ask for its deletion;
//   - an orphan is an inode without names that waits to be purged: at once if no node has it open, else when the last closes it
//     (who has what open is known to the service, not here).
//
// Keys start with the two bytes of the inode's slot, so that a slot is one contiguous range that can move between groups. All times are the
// caller's, carried in the command. Permissions are checked here, in the command that needs them, so that the check and the change are one.
//
// It does not know sessions, open files, block stores or FUSE.
package data
