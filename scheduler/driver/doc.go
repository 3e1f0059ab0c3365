// Package driver runs tasks as processes of this machine, and makes sure that they end.
//
// Concepts defined here:
//   - A shim is a process of its own a task ("dcd shim"): it starts the task, keeps what the task writes, enforces its limits, reports how it ended.
//     It is what makes a lease true: it learns the deadline over a pipe, on a clock that counts suspended time, and kills the whole task when
//     the deadline passes or the pipe ends, whatever has become of the daemon (stopped, killed, stuck).
//   - A task's processes are those of its cgroup in the v2 hierarchy, which needs no controllers and works beside v1; it is killed as a whole (cgroup.kill).
//     Limits come from v2 controllers, or from v1 ones where those are mounted. Without access to cgroups a task is the shim's descendants, limits of
//     memory and cpu are not enforced, and the task's Note says so.
//   - A task ends when its first process does: what that leaves behind is killed.
//   - Where the daemon is root, a task has a mount namespace in which this node's tree is at /dc and its working directory at /run/dc/task.
//
// The daemon must not touch its own mount, or it waits for itself: whatever looks at /dc, the look-up of the program included, happens in the shim.
//
// Lock order: Process.mu, then nothing. Output files are written by the shim alone and read by the daemon without locks.
//
// What it does not do: no images, no network or pid namespaces, no system call filter; a task does not survive its daemon.
package driver
