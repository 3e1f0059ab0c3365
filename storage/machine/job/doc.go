// Package job is the state machine of the jobs group: jobs, their tasks, and the nodes that run them.
//
// Concepts defined here: a task that waits is an evaluation to be made (fresh ones are a count in the job's record, later ones a row each);
// a placement is an allocation: a task on a node, with an attempt number and a fencing token that grow; a node's epoch is its lease: what was placed
// under an older epoch is lost.
//
// A plan is checked here again, placement by placement, so the scheduler may be optimistic. Deadlines of leases are the leader's business: the state only
// knows that a lease has ended when a JobExpire says so. Parsing specs is the service's part; the machine sees their shape.
package job
