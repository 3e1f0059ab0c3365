// Package filelock is the lock table of a data group's leader: who holds and who waits for which bytes of which file. It is memory only, and knows no
// clocks, leases or messages.
//
// Concepts: a holder is an owner within a mount's session. A waiter has a number within its session, by which it is asked about and taken back. Waiters are served in their
// order, as far as holders let them, whenever something of their file becomes free.
//
// Lock order: Table.mu only.
package filelock
