package storage

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/pb"
	"github.com/dgraph-io/ristretto/v2/z"

	"missingos/srv/dc"
)

// Restore replaces the whole state by the snapshot that r streams. The new state is built in a directory of its own and made
// durable there; the rename of CURRENT is the moment it counts, so a crash at any time leaves the old state or the new.
// Views that are open keep reading the old state. A stream that is damaged or cut short is refused (dc.Corrupt) and changes nothing.
// Observers get [Restored].
func (s *Shard) Restore(ctx context.Context, r io.Reader) error {
	s.apply.Lock()
	defer s.apply.Unlock()
	s.checkpoint.Lock()
	defer s.checkpoint.Unlock()
	s.mu.Lock()
	old, failed := s.gen, s.failed
	s.mu.Unlock()
	if failed != nil {
		return failed
	}
	g, l, err := s.receive(ctx, successor(old.path), r)
	if err != nil {
		return dc.Wrap(err, "storage.restore", s.dir)
	}
	s.mu.Lock()
	old.remove = true
	old.unrefLocked()
	s.mu.Unlock()
	s.adopt(g, l)
	for _, fn := range s.observers {
		fn(l.applied, []any{Restored{}})
	}
	return nil
}

// successor names the generation after the one at path.
func successor(path string) string {
	n, _ := strconv.Atoi(strings.TrimPrefix(filepath.Base(path), generationPrefix))
	return filepath.Join(filepath.Dir(path), generationPrefix+strconv.Itoa(n+1))
}

// receive builds the next generation at path and makes it the current one on disk.
func (s *Shard) receive(ctx context.Context, path string, r io.Reader) (g *generation, l *ledger, err error) {
	if err := s.cfg.hooks.at("receive"); err != nil {
		return nil, nil, err
	}
	sr, err := openSnapshot(r)
	if err != nil {
		return nil, nil, err
	}
	if err := errors.Join(os.RemoveAll(path), os.Mkdir(path, 0o700)); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		// Without CURRENT naming it the directory is rubbish. If it is named, the failure came after the rename and is reported
		// while the old state goes on; so the name is taken back.
		err = errors.Join(err, replaceFile(filepath.Join(s.dir, currentFile), []byte(filepath.Base(s.gen.path)+"\n")), os.RemoveAll(path))
	}()
	if err := s.fill(ctx, path, sr); err != nil {
		return nil, nil, err
	}
	if err := s.cfg.hooks.at("swap"); err != nil {
		return nil, nil, err
	}
	if g, err = openGeneration(path, &s.cfg, &s.open); err != nil {
		return nil, nil, err
	}
	closeNew := func() error { s.open.Done(); return g.db.Close() }
	if l, err = g.load(s.machine); err != nil {
		return nil, nil, errors.Join(err, closeNew())
	}
	if err := replaceFile(filepath.Join(s.dir, currentFile), []byte(filepath.Base(path)+"\n")); err != nil {
		return nil, nil, errors.Join(err, closeNew())
	}
	return g, l, nil
}

// fill loads the stream into a new Badger directory as sorted tables, without going through memtables, and checkpoints it.
func (s *Shard) fill(ctx context.Context, path string, sr *snapshotReader) (err error) {
	db, err := badger.OpenManaged(badgerOptions(path, &s.cfg, true))
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, db.Close())
		if err == nil {
			err = errors.Join(syncAll(path), writeCheckpoint(path, sr.mark, s.cfg.BootID))
		}
	}()
	if err := load(ctx, db, sr); err != nil {
		return err
	}
	if err := s.cfg.hooks.at("rows"); err != nil {
		return err
	}
	w := writer{db: db, version: uint64(sr.mark.Index)}
	w.set([]byte(appliedKey), encodeApplied(sr.mark, sr.clock, s.cfg.BootID), 0)
	w.commit()
	return w.err
}

// load writes the rows of the stream at the version of the snapshot.
func load(ctx context.Context, db *badger.DB, sr *snapshotReader) error {
	w := db.NewStreamWriter()
	defer w.Cancel()
	if err := w.PrepareIncremental(); err != nil { // Prepare would first drop everything, which takes 0.1 s even when there is nothing
		return err
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		rows, done, err := sr.next()
		if err != nil {
			return err
		}
		if done {
			return w.Flush()
		}
		buf := z.NewBuffer(frameBytes+dc.KiB, "storage.restore")
		for _, r := range rows {
			badger.KVToBuffer(&pb.KV{Key: r.key, Value: r.value, UserMeta: []byte{r.meta}, Version: uint64(sr.mark.Index), StreamId: 1}, buf)
		}
		err = w.Write(buf)
		if err = errors.Join(err, buf.Release()); err != nil {
			return err
		}
	}
}
