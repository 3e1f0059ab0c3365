// Package consensus is agreement: many Raft groups in one process over one transport. It is the only user of hashicorp/raft.
// It sees commands as bytes and state machines as [StateMachine]; it has never heard of Badger or of files.
//
// Concepts defined here: [Host] (all groups of a node), [Group] (one replica of one Raft group), [Entry] (a batch of
// commands under one clock), [StateMachine], the read barrier (ReadIndex).
//
// What a group promises: Propose returns nil error only for a command that is fsynced on a majority and applied here; ReadBarrier
// returns nil only if everything acknowledged before the call is applied here. Retrying a command that may have been applied is the
// caller's affair: the state machine drops doubles by request id.
//
// Lock order: Host.mu, then Group.mu; neither is held across Raft calls, I/O or channel sends.
package consensus
