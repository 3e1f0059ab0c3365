// Package sim runs the real consensus package in virtual time (testing/synctest) on a network, disks and processes that fail by a seed: messages and
// answers late, lost and held back, partitions in one direction and in both, nodes paused and killed. Clients append and read and write a register
// meanwhile; afterwards every acknowledged append must be there exactly once, and the register's history must be linearizable.
//
// A failing schedule names its seed; DC_SIM_SEED=N runs that one alone, DC_LONG=1 many more. The faults of a seed are always the same; the order
// in which Go runs goroutines at the same virtual instant is not, so a seed may have to be run several times.
//
// One schedule is not random: it holds answers back across a change of leaders, which finds a reader that believes old answers. It is run
// against a deliberately wrong ReadBarrier, to show that the simulation notices.
package sim
