// Package lock is the state machine of the lock group: the small consistent store at /dc/lock. Files and directories, locks with
// fair queues and fencing tokens, sessions of nodes, and the history that watches are served from, all under one revision.
//
// Concepts defined here:
//   - A revision numbers the changes of the whole store. A file's version is the revision of its last change; a lock's fencing token
//     is the revision of its acquisition, so it grows with every one.
//   - A lock is on a name, not on a file: removing or replacing a locked file does not open the lock to anybody else, as it would with
//     flock(2) on a local filesystem. Whoever holds or waits is a (session, owner): a node and one of its open files.
//   - A session is a node's. It ends when its node says so, when the node's next daemon begins one, or when the leader has heard nothing for
//     its TTL. What it held is released in bounded steps (reaping); from its end on nothing is granted to it any more. If the end was not the
//     node's own wish (lost), its locks stay free for the lock-delay, so that writes of the old holder still under way settle.
//   - History is one row a revision, holding all its events; compaction forgets a prefix.
//
// Every command is staged first and written at its end, so a refused one has written nothing. Deadlines of sessions are not here:
// the leader counts them (srv/lock) and proposes the end under its epoch, which a later leader's take-over makes void.
package lock
