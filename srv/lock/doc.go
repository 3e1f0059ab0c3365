// Package lock is the service of /dc/lock, run by the leader of the lock group: it admits requests, turns changes into commands of
// storage/machine/lock, answers reads from a linearizable view, counts sessions out, and tells watchers what happened.
//
// Concepts defined here:
//   - A term (of leadership) is this node's time as leader of one group. It has the leases: how long each session may still be silent,
//     by this node's monotonic clock. Nothing of that is replicated. A new leader gives every session its full TTL again and takes over under
//     a new epoch, so that an end counted by an earlier leader can no longer apply.
//   - A keep-alive is answered only after a round of confirmed leadership that began after its arrival (replica.View): a deposed leader
//     renews nothing. The client counts its TTL from when it sent the request, the leader from when it confirmed, so the client stops first.
//   - A hub keeps the latest revisions in memory. A watch is a cursor: it reads from the hub, or from stored history if it has fallen behind,
//     and never has a queue that could overflow, be dropped or be re-ordered.
//
// Why the session of a caller that got an answer is safe: let it send at s, let the round confirm at c >= s. Whoever leads later began
// after c and counts the full TTL from there; the same leader counts it from after c. Both end after s+TTL, when the caller has long stopped
// (it stops dc.LockSessionMargin earlier still). Once an end has been proposed its session is never renewed again in that term,
// as the proposal may yet commit.
//
// Lock order: Service.mu, then hub.mu or term.mu; the last two are leaves. None is held across a proposal, a view or a send.
package lock
