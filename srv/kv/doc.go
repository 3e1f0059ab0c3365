// Package kv is the leader-side logic of the kv groups: it admits requests, checks limits, turns them into commands, answers reads from
// linearizable views, and sweeps dropped tables while it leads.
//
// What rows and directories are is storage/machine/kv's part; which group a table is in, and the names of tables, are meta's.
// The service keeps no state of its own. Service.mu guards only what wakes the sweep, and is never held across a call.
package kv
