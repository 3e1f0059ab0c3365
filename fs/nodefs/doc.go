// Package nodefs is the room /dc/nodes: a directory a machine of the cluster, with `status`, `status.json` and `ctl`
// (`drain`, `undrain`, `label KEY=VALUE ...`, `rm`).
//
// Nodes come and go by dcd join and `rm`, not by mkdir and rmdir. Everything shown is what the meta group's leader knows; nothing is kept here.
package nodefs
