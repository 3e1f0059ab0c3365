// Package topicfs is the room /dc/topics: topics as directories, their logs as files that are appended to and followed,
// consumer groups as directories whose `next` gives each reader the next message.
//
// Concepts: see INTERFACE.md (docs/man) for the files and storage/machine/topic for topic, message, offset and lease.
//
// Lines and writes. A message is a line, and what a write(2) to `log` returns nil for is committed: every complete line of it, all at once, and
// also a last line without a newline (printf, Python's f.write), which gets one. One case is different: a write of a whole number of 4 KiB
// pages that does not end in a newline is taken for a part of something longer, as cat and cp send it and as the kernel splits
// large writes. Its last line waits for the next write of the same descriptor, or for the close, which reports an error if
// it cannot be committed. A line may be dc.MaxValueBytes long.
//
// Reading `next`. One read gives at most one message, in as many reads as the reader likes; the read after its last byte
// acknowledges it and asks for the next. A message that was not read at all when the file is closed goes to another reader at once; one
// that was (even in part) when the visibility timeout has passed, because the reader may be working on it. While there is no leader
// to ask, `next` and `take` wait.
//
// What it does not do: partitions other than 0, retention, compaction, keys, delays and headers; the control files that will
// set them answer Unsupported.
package topicfs
