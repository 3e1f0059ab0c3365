// Package restore tests how a replica gets the whole state of a group: consensus and storage together, on real directories, over connections in
// memory that break when told to. Its tests look after a receiver that dies at each step and senders that do.
package restore
