// Bench measures a local three-node cluster and prints a table: operations a second and their latencies through the Go client and through the
// mount, beside the floors that they stand on, all in one run on one machine:
//
//   - fsync: one goroutine that writes 4 KiB and calls fdatasync, again and again. A replicated write cannot be faster than two of these.
//   - null FUSE: the same system calls on a FUSE server that keeps everything in memory. What the mount adds is above this.
//   - disk: the same on the file system that the cluster's own directories are on, without fsync.
//
// All three nodes, the floors and the callers share the machine, so figures of different machines do not compare; the ratios to the floors do.
//
//	make bench                                  # everything, about four minutes
//	make bench BENCHFLAGS='-time 1s -only kv,lock'
//	make bench BENCHFLAGS='-dir .dc-local'      # a cluster that runs already
//
// The client speaks to the nodes as node 1, whose key it reads from the cluster's directory.
package main
