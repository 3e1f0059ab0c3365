// Package meta is the service of the meta group: it admits and removes nodes, tells every node the map of the cluster, knows who is
// alive, and says where groups should be.
//
// Concepts defined here:
//   - The map is what every node knows of the cluster: nodes and groups. Any replica of the group serves it, as a whole first, then change by change.
//   - A heartbeat tells the leader once a second that a node lives and how its replicas are. It is kept in memory only: a new leader knows nobody,
//     and gives every node the full grace again.
//   - The controller, on the leader, looks at nodes, groups and heartbeats and edits desire (which nodes should hold a group), one change of a group at a
//     time; the group's own leader makes it so. It also spreads leaderships, by asking nodes in the answer to their heartbeat. Its decisions are pure functions of
//     what it sees ([view]), so nothing is remembered of a change in flight.
//
// Locks: a hub's mu and a term's mu are leaves; neither is held across a proposal, a read of the shard or a send.
//
// It moves no replica itself and opens none: srv/node does.
package meta
