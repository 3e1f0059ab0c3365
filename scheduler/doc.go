// Package scheduler decides which tasks go to which nodes. [Process] is a pure function of what is asked and a snapshot of the nodes: the same
// input gives the same plan, so it is tested by properties and can be run by anybody at any time. The plan is optimistic: whoever commits it
// checks it again against the state of that moment.
//
// Concepts defined here: [Node] and [Ask] (the snapshot), [Plan], [Placement], [Reason] (why a task is not placed).
//
// The package does no I/O and knows no clock. scheduler/jobspec reads specs, scheduler/agent makes tasks run, scheduler/driver runs processes.
package scheduler
