package storage

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"missingos/srv/dc"
)

// Files of a shard's directory:
//
//	CURRENT            the name of the generation in use
//	INCOMING           rows of a snapshot that is received; see incoming.go
//	db-<n>/            a generation: a Badger directory with
//	db-<n>/CHECKPOINT  how far the state is on stable storage, and in which boot of the machine it is written
const (
	currentFile      = "CURRENT"
	checkpointFile   = "CHECKPOINT"
	generationPrefix = "db-"
)

// A checkpointRecord is the content of CHECKPOINT, JSON so that a person can read it.
type checkpointRecord struct {
	Index dc.Index `json:"index"`
	Term  dc.Term  `json:"term"`
	Boot  string   `json:"boot"`
	Clock *int64   `json:"clock,omitempty"` // of the log, Unix milliseconds; earlier versions did not write it
}

func (r checkpointRecord) mark() Mark { return Mark{r.Index, r.Term} }

// Checkpoint puts the state as it is now on stable storage: after a power cut the shard opens with it or a later one. It blocks for some
// fsyncs; entries are applied meanwhile.
//
// Badger's own Sync covers only the log of the active memtable; those of full memtables that wait to be written as tables would
// be lost. So every *.mem file is synced through a descriptor of our own (fsync writes what was dirtied through the memory map, too).
// A log that vanishes meanwhile has become a table, which Badger has synced.
func (s *Shard) Checkpoint() error { return s.checkpointWith(false) }

// checkpointWith is Checkpoint; with clock, CHECKPOINT is also written if it lacks only the clock.
func (s *Shard) checkpointWith(clock bool) error {
	s.checkpoint.Lock()
	defer s.checkpoint.Unlock()
	s.mu.Lock()
	err, done := s.failed, false
	if err == nil {
		done = s.applied == s.durable && (s.gen.clocked || !clock)
	}
	s.mu.Unlock()
	if err != nil || done {
		return err
	}
	p, err := s.Pin()
	if err != nil {
		return err
	}
	defer p.Release()
	if err := s.persist(p); err != nil {
		err = dc.Wrap(err, "storage.checkpoint", s.dir)
		s.fail(err)
		return err
	}
	if s.receiving.TryLock() {
		defer s.receiving.Unlock()
		if s.incoming != 0 { // the log may have been quicker
			if s.incoming, err = leftIncoming(s.dir, p.Index); err != nil {
				return dc.Wrap(err, "storage.checkpoint", s.dir)
			}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gen != p.gen {
		return nil // a snapshot has replaced the state meanwhile, and is durable
	}
	s.durable, p.gen.clocked = p.Mark, true
	p.gen.discardLocked(p.Index)
	return nil
}

func (s *Shard) persist(p *Pinned) error {
	if err := s.cfg.hooks.at("sync logs"); err != nil {
		return err
	}
	if err := s.cfg.hooks.syncLogs(p.gen.path); err != nil {
		return err
	}
	if s.Durable().Index == 0 { // the first: Badger has not synced all that it made when it began
		if err := syncAll(p.gen.path); err != nil {
			return err
		}
	}
	if err := s.cfg.hooks.at("write checkpoint"); err != nil {
		return err
	}
	return writeCheckpoint(p.gen.path, p.Mark, &p.Clock, s.cfg.BootID)
}

func syncLogs(path string) error {
	logs, err := filepath.Glob(filepath.Join(path, "*.mem"))
	if err != nil {
		return err
	}
	for _, name := range logs {
		if err := syncPath(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return syncPath(path)
}

// syncAll syncs every file of a directory and the directory.
func syncAll(path string) error {
	files, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := syncPath(filepath.Join(path, f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return syncPath(path)
}

func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// replaceFile writes a file so that after a crash there is the old content or the new.
func replaceFile(path string, content []byte) error { return hooks{}.replaceFile(path, content) }

func (h hooks) replaceFile(path string, content []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := h.at("written " + filepath.Base(tmp)); err != nil {
		return err
	}
	if err := errors.Join(os.Rename(tmp, path), syncPath(filepath.Dir(path))); err != nil {
		return err
	}
	return h.at("renamed " + filepath.Base(path))
}

// writeCheckpoint replaces CHECKPOINT; clock may be nil, unknown.
func writeCheckpoint(path string, m Mark, clock *int64, boot string) error {
	return hooks{}.writeCheckpoint(path, m, clock, boot)
}

func (h hooks) writeCheckpoint(path string, m Mark, clock *int64, boot string) error {
	content, err := json.Marshal(checkpointRecord{Index: m.Index, Term: m.Term, Boot: boot, Clock: clock})
	if err != nil {
		return err
	}
	return h.replaceFile(filepath.Join(path, checkpointFile), append(content, '\n'))
}

func readCheckpoint(path string) (r checkpointRecord, err error) {
	name := filepath.Join(path, checkpointFile)
	content, err := os.ReadFile(name)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(content, &r); err != nil {
		return r, dc.Errorf(dc.Corrupt, "", name, "%w", err)
	}
	return r, nil
}

// readCurrent reads the name of the generation in use; "" in a new shard.
func readCurrent(dir string) (string, error) {
	content, err := os.ReadFile(filepath.Join(dir, currentFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	name := strings.TrimSpace(string(content))
	if err == nil && !strings.HasPrefix(name, generationPrefix) {
		err = dc.Errorf(dc.Corrupt, "", filepath.Join(dir, currentFile), "%q is not the name of a generation", name)
	}
	return name, err
}

// create makes the first generation, empty.
func (s *Shard) create() (string, error) {
	name := generationPrefix + "1"
	if err := removeOthers(s.dir, ""); err != nil {
		return "", err
	}
	path := filepath.Join(s.dir, name)
	if err := os.Mkdir(path, 0o700); err != nil {
		return "", err
	}
	if err := writeCheckpoint(path, Mark{}, new(int64), s.cfg.BootID); err != nil {
		return "", err
	}
	return name, replaceFile(filepath.Join(s.dir, currentFile), []byte(name+"\n"))
}

// removeOthers removes the generations that are not in use: what a crash left of a restore.
func removeOthers(dir, keep string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if strings.HasPrefix(f.Name(), generationPrefix) && f.Name() != keep {
			if err := os.RemoveAll(filepath.Join(dir, f.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// bootID asks Linux for the id it made up at boot.
func bootID() (string, error) {
	const file = "/proc/sys/kernel/random/boot_id"
	content, err := os.ReadFile(file)
	return strings.TrimSpace(string(content)), dc.Wrap(err, "storage.open", file)
}
