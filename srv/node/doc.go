// Package node wires one member of the cluster: it opens the rooms in order (identity, transport, replicas, services, mount, admin socket) and
// closes them in reverse. It alone introduces consensus, storage, the services and the mount to each other.
//
// Concepts defined here:
//   - [Init] and [Join] make a directory a node's; [Run] is that node's life. One daemon holds a directory at a time.
//   - A replica joins a consensus.Group and a storage.Shard into what services see (replica.Replica). While it leads, its kind's Lead runs.
//   - The directory is what this node knows of the cluster (nodes, groups and who should hold them): a cache of meta's map, kept fresh by a
//     stream from any replica of meta, kept on disk for the next start.
//   - Desire: the node opens the replicas that the map says it should hold; a group's leader changes its membership towards the map, one step
//     at a time; a replica that the map does not want here is destroyed only when meta's leader has seen that the group works without it.
//
// Locks: replicas.mu, directory.mu, conns.mu and each replica's mu are leaves; none is held across an RPC, a proposal or an open.
//
// It decides nothing about the cluster (srv/meta does) and serves no request itself but joining, the map and the admin socket.
package node
