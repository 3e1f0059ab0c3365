// Package command holds what is replicated and stored: the commands of each service's state machine, the records they
// leave in a shard (protobuf, one file a service, versioned), and the envelope that every command travels in ([Encode]).
//
// A command is evaluated on every replica, possibly years after it was written and by a newer program: fields are only
// added, numbers are never reused, and a machine that meets a version it does not know stops its replica.
//
// The package does not apply commands; that is storage/machine.
package command
