// Package dc is the vocabulary floor: the names, identifiers, errors and limits that every
// other package shares. It imports only the standard library and knows nothing of files, Raft or disks.
//
// Concepts defined here: [NodeID], [GroupID], [Index], [Term], [Revision], [Error] with its [Kind],
// [Principal] (who speaks), [RequestID] (what makes a retried command apply once).
package dc
