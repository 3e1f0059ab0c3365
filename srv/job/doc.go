// Package job is the leader-side logic of the jobs group: it takes specs, lets the scheduler place tasks, keeps the nodes' leases, and
// answers people and agents.
//
// Concepts defined here: a term (what a leader knows beside the replicated state: until when each node's lease is good, who waits for news).
// A lease is counted from the receipt of a renewal, and a renewal is answered only after a confirmed round of leadership; the node counts from before it
// sent it, so its view ends first. A new leader gives every node a full lease.
//
// Placement itself is package scheduler; what a command does is storage/machine/job; running tasks is scheduler/agent.
// Lock order: Service.mu, then term.mu; neither is held across a proposal or a view.
package job
