package consensus

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/hashicorp/raft"

	"missingos/srv/dc"
)

// What leaders send may arrive late, twice, or after this replica has compacted its log. hashicorp/raft v1.8.0 takes three of such messages
// for what they are not, so they are looked at here before it sees them. The transport hands in one at a time, and the next only when Raft
// has answered: what is found true of the log stays true until Raft acts on it.
//
//   - An offer of a snapshot that ends before what this replica has. Raft would restore it, go back to its index, and empty the log: entries that
//     this replica acknowledged, and others counted on, would be gone; and it would panic when it then applied entries it no longer has. The paper
//     keeps the log that follows (section 7), and so does [replica.Offered].
//   - Entries that begin in the compacted part of the log. Raft cannot look up the one before them, refuses, and gets a snapshot, again and again.
//     They are committed, so they are here: [replica.Arriving] lets Raft compare from the first that need not be.
//   - A commit index beyond the entries that come with it. Raft would commit what follows them in its log, which nobody has compared.

// Arriving makes entries fit for Raft.
func (r replica) Arriving(ctx context.Context, a *raft.AppendEntriesRequest) error {
	g := r.g
	if err := g.awaitStart(ctx); err != nil {
		return err
	}
	sent := a.PrevLogEntry + uint64(len(a.Entries))
	a.LeaderCommitIndex = min(a.LeaderCommitIndex, sent)
	first, err := g.store.FirstIndex()
	if err != nil {
		return err
	}
	applied := g.raft.AppliedIndex()
	there := first != 0 && a.PrevLogEntry >= first // or it comes after the log's end, which Raft refuses
	if there || a.PrevLogEntry == g.raft.LastIndex() || a.PrevLogEntry > applied || sent == 0 {
		return nil
	}
	for len(a.Entries) > 0 && a.Entries[0].Index <= applied {
		a.Entries = a.Entries[1:]
	}
	// All up to applied is the leader's too. Raft knows the term of the entry before only if that is its last, or in its log: it is told its last,
	// which always passes, and compares the entries that come one by one.
	a.PrevLogEntry, a.PrevLogTerm, err = lastEntry(g.raft)
	return err
}

// lastEntry is what Raft takes for the end of its log.
func lastEntry(r *raft.Raft) (index, term uint64, err error) {
	var log, snap [2]uint64
	stats := r.Stats()
	for key, to := range map[string]*uint64{
		"last_log_index": &log[0], "last_log_term": &log[1], "last_snapshot_index": &snap[0], "last_snapshot_term": &snap[1],
	} {
		if *to, err = strconv.ParseUint(stats[key], 10, 64); err != nil {
			return 0, 0, fmt.Errorf("raft's %s: %w", key, err)
		}
	}
	if log[0] >= snap[0] {
		return log[0], log[1], nil
	}
	return snap[0], snap[1], nil
}

// Offered tells whether this replica has all that a snapshot would bring it.
func (r replica) Offered(ctx context.Context, s *raft.InstallSnapshotRequest) (has bool, err error) {
	g := r.g
	if err := g.awaitStart(ctx); err != nil {
		return false, err
	}
	if s.Term < g.raft.CurrentTerm() {
		return false, nil // Raft refuses it
	}
	if s.LastLogIndex <= g.raft.AppliedIndex() {
		return true, nil
	}
	var l raft.Log
	err = g.store.GetLog(s.LastLogIndex, &l)
	switch {
	case err == nil && l.Term == s.LastLogTerm:
		return true, nil // it will be applied from the log
	case err == nil || g.raft.LastIndex() > s.LastLogIndex:
		// What follows was written by a leader that was deposed, and nobody else has it. Raft would empty the log and go on as if it were full.
		return false, dc.Errorf(dc.Unavailable, "install snapshot", g.cfg.ID.String(),
			"this replica's log ends at entry %d with entries of a deposed leader: it needs a snapshot beyond that, not of %d", g.raft.LastIndex(), s.LastLogIndex)
	case !errors.Is(err, raft.ErrLogNotFound):
		return false, err
	}
	return false, nil
}

// awaitStart waits until Raft runs: messages can come in before NewRaft has returned.
func (g *Group) awaitStart(ctx context.Context) error {
	select {
	case <-g.started:
		return nil
	case <-g.ctx.Done():
		return raft.ErrTransportShutdown
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reconcile makes the log fit the snapshot, before Raft starts. A process that ended between the record of a snapshot from the leader and the emptying
// of the log leaves a log that ends before the snapshot, or does not hold it.
func (g *Group) reconcile() error {
	first, err := g.store.FirstIndex()
	if err != nil || first == 0 {
		return err
	}
	last, err := g.store.LastIndex()
	if err != nil {
		return err
	}
	var snap snapshotFile
	if g.snaps.current != nil {
		snap = *g.snaps.current
	}
	if first > snap.Index+1 {
		return dc.Errorf(dc.Corrupt, "open", g.cfg.ID.String(), "the log begins at entry %d and the snapshot ends at %d: what lies between is missing", first, snap.Index)
	}
	if last > snap.Index && first > snap.Index {
		return nil
	}
	if last >= snap.Index {
		var l raft.Log
		if err := g.store.GetLog(snap.Index, &l); err != nil || l.Term == snap.Term || snap.Index == 0 {
			return err
		}
	}
	g.log.Info("the log up to the snapshot is emptied", "from", first, "to", last, "snapshot", snap.Index)
	return g.store.DeleteRange(first, last)
}
