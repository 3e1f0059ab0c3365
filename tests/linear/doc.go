// Package linear checks that /dc/kv and /dc/lock are linearizable while nodes fail: concurrent clients record what they asked, when,
// and what was answered, and porcupine looks for an order that explains all of it. Register, create-if-absent, delete, compare-and-swap and counter
// of a row are one model (a row is any of them); a lock with its fencing tokens is the other.
//
// An operation whose outcome is unknown (dc.Unavailable; EIO and the like of a mount) may take effect at any later time, or never. A read
// without an answer says nothing and is left out.
//
// The histories run twice: through srv/client on an in-process cluster whose leaders are killed, cut off and stalled, and with open,
// read, write, flock and getxattr on the mounts of three real daemons that are killed with SIGKILL. DC_LONG=1 makes them minutes long.
//
// Not covered: topics (their logs are checked in srv/topic), transactions over several rows, and /dc/data.
package linear
