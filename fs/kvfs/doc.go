// Package kvfs is the room /dc/kv: a directory a table, a file a row, directories in any depth for wide rows.
//
// A write(2) that returns is committed. The first write of a file opened to be replaced (O_TRUNC, or made by this open) replaces the value, so
// readers see the old value or the new one, never an empty one between; further writes of the same descriptor go in at their offsets.
// O_APPEND is an append at the leader, atomic among all nodes. Truncating to nothing commits nothing by itself.
//
// Names: a slash parts a key's segments; what a file name cannot hold (NUL, and the names ".", ".." and, in a table, ".dc") is
// percent-escaped, as is a percent sign that would read as such an escape.
//
// It holds no state of the tables and does not cache; the services behind [Store] decide everything.
package kvfs
