// Package topic serves topics: logs of messages that are appended to and followed, and consumer groups that hand each message
// to one reader.
//
// Concepts:
//   - [Service] answers requests of the topic groups that this node leads. Publishing and consuming are commands of
//     storage/machine/topic; a publish is idempotent by its request id.
//   - A *hub* (one a group, on every replica) lets followers and readers wait for what Applied tells. A reader that waits is woken
//     for a message of its own, first come first served; it looks again every two seconds whatever it was told, so that a reader
//     which was woken and died costs the others no more than that.
//   - A *term* is this node's time as leader: deadlines of leases in memory, and the sweeping of what was dropped. A new leader gives
//     every lease its full visibility timeout again, so a message never goes to another reader too early, only later.
//
// Lock order: Service.mu, term.mu, hub.mu are never held together. Applied takes each in turn and does not block.
//
// What it does not do: partitions, retention, compaction, delayed delivery (they answer Unsupported in the room).
package topic
