// Package agent makes what runs on this node match what the jobs leader has allocated to it.
//
// Concepts defined here: an [Allocation] is one attempt of one task, placed on this node under the node's lease; [Orders] are all of them; an [Outcome] is what
// became of one.
//
// The lease. Registering opens it under a new epoch, every Sync that is answered renews it. The agent counts it from the moment it sent the request that was
// answered, on a clock that counts suspended time, and takes dc.JobLeaseMargin off. Each task's shim holds that deadline and kills its task at it, so
// the lease is kept also when this process is stopped, stuck or dead. When a lease has ended, the agent registers anew only after everything that ran under it is gone.
//
// An allocation is started at most once: the orders are linearizable, and what has ended here is remembered while they still name it.
//
// Lock order: session.mu, then task.mu; Agent.mu, then nothing. Orders to a shim are written without any.
//
// What it does not do: it decides nothing about placement, retries or restarts; it only tells what happened.
package agent
