// Package kv is the state machine of the kv groups: tables of rows ordered by path.
//
// Concepts defined here: a key is a path of segments; a row is a value at a key; a directory is a key that was made one, or that has rows
// below it. Every change takes the next revision of the group, which is the version of the rows it touches.
//
// A range is a part of a table between two rows; a row and its columns are in one. A table is one range until it is split (KVSplit). Bounds change
// with the epoch. What a range is for is told in docs/design/0025.
//
// A table needs no creation here: any id is a table until it carries a tombstone (KVDrop), after which every command and read of
// it answers not found and its rows are removed by KVSweep in bounded steps. Who may do what is srv/kv's part.
package kv
