// Package lease keeps the leases on files and directories of one data group, in the memory of its leader: who may answer from memory about which
// inodes, and which changes must not be seen yet because somebody still may. See docs/design/0030-leases-on-files.md.
//
// A [Table] lives as long as the replica; it grants between [Table.Lead] and [Table.Resign], and at other times only notes what changes.
// Every change goes through [Table.Applying], before it can be read, and [Table.Applied], after. Everybody who answers about inodes
// calls [Table.Settle] with them between reading and answering.
//
// There is one lock, the table's; nothing under it blocks.
package lease
