package logstore

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// Until version 0.1 each group had a log of its own (raft-wal) and a file for its vote, in its directory.
const (
	oldLogDir   = "wal"
	oldVoteFile = "vote"
	adoptedDir  = "wal.adopted" // taken over; to be removed
	adoptBatch  = 256
)

// Adopt opens a group's part of the log. If the group's directory holds a log of the first kind, its entries and its vote are taken over first, and
// the old files removed once that is durable. A crash at any moment leaves one of the two logs whole, and the next call goes on.
func (s *Shared) Adopt(cfg Config) (Store, error) {
	old := filepath.Join(cfg.Dir, oldLogDir)
	_, err := os.Stat(old)
	switch {
	case err == nil:
		if err := s.takeOver(cfg); err != nil {
			return nil, err
		}
		// From here on the new log is the group's.
		if err := errors.Join(os.Rename(old, filepath.Join(cfg.Dir, adoptedDir)), SyncDir(cfg.Dir)); err != nil {
			return nil, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	err = os.Remove(filepath.Join(cfg.Dir, oldVoteFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err = errors.Join(err, os.RemoveAll(filepath.Join(cfg.Dir, adoptedDir))); err != nil {
		return nil, err
	}
	return s.Open(cfg.Group), nil
}

// takeOver copies a log of the first kind. What an earlier attempt copied is dropped.
func (s *Shared) takeOver(cfg Config) (err error) {
	if err := s.Drop(cfg.Group); err != nil {
		return err
	}
	from, err := openOld(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	to := s.Open(cfg.Group)
	first, err1 := from.FirstIndex()
	last, err2 := from.LastIndex()
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	s.cfg.Log.Info("taking over a log of the first kind", "group", cfg.Group.String(), "first", first, "last", last)
	for i := max(first, 1); i <= last; {
		var logs []*raft.Log
		for ; i <= last && len(logs) < adoptBatch; i++ {
			l := &raft.Log{}
			if err := from.GetLog(i, l); err != nil {
				return err
			}
			logs = append(logs, l)
		}
		if err := to.StoreLogs(logs); err != nil {
			return err
		}
	}
	return copyVote(from, to)
}

// copyVote copies term and vote.
func copyVote(from, to Store) error {
	term, err1 := from.GetUint64([]byte(keyTerm))
	voteTerm, err2 := from.GetUint64([]byte(keyVoteTerm))
	if err := errors.Join(err1, err2, to.SetUint64([]byte(keyTerm), term)); err != nil {
		return err
	}
	candidate, err := from.Get([]byte(keyCandidate))
	if errors.Is(err, errNotFound) {
		return nil
	}
	return errors.Join(err, to.SetUint64([]byte(keyVoteTerm), voteTerm), to.Set([]byte(keyCandidate), candidate))
}
