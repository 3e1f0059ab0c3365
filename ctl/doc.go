// Package ctl is dcctl: `noun verb` commands over the tree and over a node's admin socket, with help, man pages, text and JSON.
//
// Concepts defined here: [Command] (one noun and verb with its help), [Env] (what a command may touch of its process).
//
// Whatever a command does over the tree can be done with echo and cat, and its help says how. The package holds no state
// and no cluster logic; ctl/local runs the development cluster.
package ctl
