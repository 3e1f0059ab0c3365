// Package topic is the state machine of a topic group: the logs of topics and their consumer groups.
//
// Concepts:
//   - A *message* is a line: bytes without a newline. A topic's *log* is its messages, each followed by a newline; a message
//     has an *offset* (its number, from 0) and lies at a *byte* of the log.
//   - A *batch* is a row: some consecutive messages of one publish, at most about 32 KiB unless one message is larger. Its key is the byte
//     where it begins, so that the log is read like a file; a sparse index leads from offsets to bytes.
//   - A *consumer group* hands every message to one of its readers. Messages below its *cursor* have been delivered; those delivered and not
//     acknowledged are *in flight*, under a *lease* or *returned* (waiting to be delivered again). An *epoch* names the rows of a
//     group, so that a seek or a drop is one small command and the rows go later, by sweeps.
//
// Deadlines of leases are not here: the leader keeps them (srv/topic) and says when one has passed (TopicSettle with EXPIRED).
//
// The functions that read (State, Bytes, Messages, Find, Group, ...) are for srv/topic, on any storage.Reader. The log is reached
// through append, locate and scan in log.go alone, so that segment files can take the place of rows.
//
// What it does not do: partitions (a topic is one), retention, compaction, keys.
package topic
