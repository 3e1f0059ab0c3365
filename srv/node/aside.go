package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"missingos/consensus"
	"missingos/consensus/logstore"
	"missingos/srv/dc"
	"missingos/srv/dcpb"
	"missingos/storage"
)

// asideDir holds states of replicas that were found to be wrong, for people to look at: one a group, the last. Nothing reads them.
const asideDir = "aside"

// aside makes room for the state of a group's replica and gives the path where it may be put.
func (r *replicas) aside(g dc.GroupID) (path string, err error) {
	dir := filepath.Join(filepath.Dir(r.dir), asideDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	old, err := filepath.Glob(filepath.Join(dir, g.String()+"-*"))
	for _, path := range old {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return filepath.Join(dir, g.String()+"-"+time.Now().UTC().Format("20060102T150405.000")), err
}

// openShard opens a replica's state. One that is damaged is set aside, if there are other replicas to fetch it from: the replica begins with nothing and is
// rebuilt before it applies or answers anything.
func (r *replicas) openShard(m *member, rec *dcpb.MetaMapGroup) error {
	dir, raft := filepath.Join(m.dir, "shard"), filepath.Join(m.dir, "raft")
	alone := len(rec.Nodes) < 2
	err := r.tryShard(m, dir, alone)
	if err == nil || alone || !damage(err) {
		return err
	}
	r.log.Error("the state of a replica is damaged", "group", m.id.String(), "name", rec.Name, "err", err)
	if err := consensus.MarkWrong(raft, fmt.Sprintf("it could not be opened: %v", err), nil); err != nil {
		return err
	}
	path, failed := r.aside(m.id)
	if failed == nil {
		failed = os.Rename(dir, path)
	}
	if failed == nil {
		failed = logstore.SyncDir(m.dir)
	}
	if failed != nil {
		return errors.Join(err, failed)
	}
	r.log.Error("the damaged state is kept, to be looked at", "group", m.id.String(), "path", path)
	return r.tryShard(m, dir, alone)
}

// tryShard opens the files in dir. What cannot be seen before somebody needs them ends the process then, after the replica was marked; the next start
// looks at once.
func (r *replicas) tryShard(m *member, dir string, alone bool) (err error) {
	raft := filepath.Join(m.dir, "raft")
	var used atomic.Bool
	m.shard, err = storage.Open(dir, m.kind.Machine(), storage.Config{
		Log: r.log.With("group", m.id.String()), CacheBytes: m.kind.CacheBytes,
		Fatal: func(err error) {
			if used.Load() {
				r.fatal(err)
			}
		},
		Damaged: func(err error) {
			if alone || !used.Load() || !damage(err) {
				return
			}
			if err := consensus.MarkWrong(raft, fmt.Sprintf("it could not be opened: %v", err), nil); err != nil {
				r.log.Error("a damaged replica is not marked", "group", m.id.String(), "err", err)
			}
		},
	})
	if err == nil && consensus.MarkedWrong(raft) {
		if err = m.shard.Ready(); err != nil {
			_ = m.shard.Close()
		}
	}
	used.Store(true)
	return err
}

// damage tells whether err is about what is in the files, and not about getting at them: no room, no permission, another process.
func damage(err error) bool {
	if _, of := errors.AsType[syscall.Errno](err); of || strings.Contains(err.Error(), "directory lock") {
		return false
	}
	_, fault := errors.AsType[*storage.Fault](err)
	return fault || dc.KindOf(err) == dc.Corrupt
}
