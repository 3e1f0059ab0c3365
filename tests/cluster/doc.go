// Package cluster runs a whole cluster in one test process: real nodes on the loopback interface with their own directories, certificates and disks,
// without mounts. Tests speak to it through the nodes' clients.
//
//	c := cluster.Start(t, 3)              // three nodes, every group on all of them
//	c.Client(1)                           // node 1's client, for client.NewKV and so on
//	c.Kill(2); c.Restart(2)               // a crash (nothing is handed over), and back
//	c.Cut(1, 2); c.Isolate(3); c.Heal()   // connections end and new ones fail
//	c.Stall(3); c.Heal()                  // connections stay and carry nothing: what a paused machine looks like from outside
//
// Everything ends with the test; goroutines that are left over are the node's fault, not the harness's.
package cluster
