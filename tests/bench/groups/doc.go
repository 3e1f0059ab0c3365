// Groups measures what many idle groups cost: three nodes, each a process of its own with consensus and storage and nothing else, hold a replica of
// each of a thousand groups. It prints how long it takes from the start of the processes until every group has a leader that is ready, in new
// directories and again after a restart; what the idle nodes then cost; and how long the first write of every group takes. All writes are counted
// by the state machines, and the counts must be right in the end.
//
//	make bench-groups                                # a thousand groups, about two minutes
//	make bench-groups BENCHFLAGS='-groups 100'
//
// All nodes share the machine. Memory is the resident set without pages of files (they go when memory is short), and with them.
package main
