// Package local runs a cluster of real daemons on one machine, for development, tests and the demo: one directory, a sub-directory a
// node (n1, n2, ...) with its data, log and pid file, all on loopback.
//
// It knows processes by pid and start time, so it never signals a stranger that got a dead daemon's pid. One command at a time works on a
// directory (a lock file). It decides nothing about the cluster: it runs `dcd init`, `dcd join` and `dcd run`, and looks at what `dcd` says on its
// admin socket.
package local
