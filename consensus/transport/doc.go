// Package transport carries what replicas of Raft groups say to each other: one connection a node pair for all groups, mutual TLS
// (the node's dialer and server bring it), a deadline on every call, heartbeats past the queue of entries, and the rounds of ReadIndex.
//
// Concepts defined here: [Transport] (a node's end of all connections), [Lane] (one group's raft.Transport over it).
//
// Server ids and addresses of Raft are node ids ("n3"); where a node really is, the dialer knows.
// Lock order: Transport.mu is a leaf, never held across a call.
package transport
