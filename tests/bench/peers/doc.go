// Peers runs one load on three real dcd and on three etcd servers, in turns in one run on one disk, and prints the ratios. It is a module of its own,
// because etcd's client is nothing the project needs.
//
//	make bench-peers                             # about five minutes; etcd must be installed (apt-get install etcd-server)
//	make bench-peers BENCHFLAGS='-only put,get -time 2s -rounds 5'
//
// What is compared, and how:
//
//   - Both clusters run all the time; a measurement alternates between them, round by round, and the ratio is that of the medians. What else the
//     machine does meets both.
//   - Both fsync every write before it is acknowledged. etcd has its data directories beside those of dcd.
//   - Both are spoken to by their Go client from this process, straight to the leader: dcd with mutual TLS, as it always does, etcd without.
//   - put: a value of 128 bytes into a file (key) of each caller's own. get: linearizable. lock: etcd's concurrency recipe, a key with the session's
//     lease and its deletion; dcd's Acquire and Release.
//   - watch: from just before a put is sent until a watcher of the directory (prefix) has its event, one put at a time.
//   - cpu: user and system time of the three servers per put. gap: the longest time between two acknowledged puts of one writer around kill -9 of the
//     leader. memory: growth of the servers' anonymous memory while keys are made, by keys.
package main
