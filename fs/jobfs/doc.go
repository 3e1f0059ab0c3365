// Package jobfs is the room /dc/jobs: `new` and `plan` take specs, `rejected` tells the caller which of its specs were refused, and each job is a
// directory with its spec, status, control file, streams and tasks.
//
// A job's directory comes with its submission and goes with rmdir, once the job has ended; removing never stops a job. Output of tasks is read from
// the node that ran them. The room keeps nothing but the last refusals of each user, on this node.
package jobfs
