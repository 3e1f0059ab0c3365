// Package meta is the state machine of the meta group: who is of the cluster, which groups there are and where they should be, what tables
// and topics are called.
//
// Concepts defined here:
//   - A node is admitted with a join token, which is consumed in the same command; its id is never used again, and the record of a removed node
//     stays, so that its certificate is refused for ever.
//   - A group's record says which nodes should hold a replica. It is desire, not fact: each group's leader makes it so, step by step, and
//     nothing of a change in flight is stored. A record is replaced only by one made of the version it replaces.
//   - Bootstrap names the one node that may make a group of nothing; once the group has run, nobody may.
//   - A descriptor gives a table or topic an id that is never used again. Dropping frees the name at once; the record stays until the rows are gone.
//
// It holds the authority's key: meta's voters are the nodes that may admit others. It does not know which nodes are alive, and moves nothing by itself.
package meta
