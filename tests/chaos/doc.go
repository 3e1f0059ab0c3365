// Package chaos breaks a real cluster while it is being written to: three dcd processes on this machine, killed with -9, stopped where they
// are (SIGSTOP), stopped cleanly and started again, at random, while writers on all three mounts write to every tree with plain system
// calls. In the end every write that was acknowledged must be there exactly once, every write whose outcome was unknown at
// most once, nothing else, and the same on all nodes.
//
// Counters are also incremented under flock(2), through the descriptor that holds the lock: no two acknowledged increments may have
// written the same number, whatever happened to the holders' nodes.
//
// Build tag long (`make test-long`). DC_CHAOS_TIME says for how long (default 2m), DC_CHAOS_SEED repeats a schedule of faults (not the
// interleaving), DC_CHAOS_TREES names the trees (default all: kv lock topics data).
package chaos
