package storage

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/pb"
	"github.com/dgraph-io/ristretto/v2/z"

	"missingos/srv/dc"
)

// A Fetch opens a stream of what is asked for, from any sender. dc.Stale means that no sender has the state asked for any more.
type Fetch func(ctx context.Context, p Pull) (io.ReadCloser, error)

const (
	fetchTries = 4                      // in a row that bring nothing
	fetchPause = 250 * time.Millisecond // after the first of them; after each further one twice as long
)

// A Receipt is how far a snapshot is that a shard receives.
type Receipt struct {
	Index dc.Index // of the entry whose state it is
	Bytes uint64   // of rows, before compression, that are there
	Size  uint64   // of all, about; 0 if the sender does not say
	Whole bool     // all are there: they are being put in place
}

// Receiving tells how far the snapshot is that is being received; false if none is.
func (s *Shard) Receiving() (Receipt, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.receipt == nil {
		return Receipt{}, false
	}
	return *s.receipt, true
}

// received says so; nil is the end.
func (s *Shard) received(in *incoming) {
	var r *Receipt
	if in != nil {
		r = &Receipt{in.mark.Index, in.taken, in.size, in.whole}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.receipt = r
}

// Restore replaces the whole state by a snapshot of entry atLeast or a later one. First the rows are received into a file (incoming.go). When a stream
// breaks off, Restore asks for what is missing; when it gives up or the process ends, the next Restore does. Then the
// new state is built in a directory of its own and made durable there; the rename of CURRENT is the moment it counts, so a crash at any time
// leaves the old state or the new. Views that are open keep reading the old state, and entries may be applied until
// the rows are complete. A stream that is damaged is refused (dc.Corrupt) and changes nothing. Observers get [Restored].
func (s *Shard) Restore(ctx context.Context, atLeast dc.Index, fetch Fetch) error {
	s.receiving.Lock()
	defer s.receiving.Unlock()
	s.mu.Lock()
	failed, distrust := s.failed, s.distrust
	s.mu.Unlock()
	if failed != nil {
		return failed
	}
	in, err := openIncoming(s.dir, s.cfg.hooks)
	if err != nil {
		return dc.Wrap(err, "storage.restore", s.dir)
	}
	defer in.file.Close()
	if distrust {
		if err := in.clear(); err != nil {
			return dc.Wrap(err, "storage.restore", s.dir)
		}
		s.mu.Lock()
		s.distrust = false
		s.mu.Unlock()
	}
	in.grown = s.received
	s.received(in)
	defer s.received(nil)
	err = s.receive(ctx, in, atLeast, fetch)
	if err == nil {
		err = s.install(ctx, in)
	}
	if errors.Is(err, dc.Corrupt) {
		err = errors.Join(err, in.clear()) // the next try must not begin with the same
	}
	if s.incoming = in.mark.Index; err != nil {
		return dc.Wrap(err, "storage.restore", s.dir)
	}
	if err := errors.Join(os.Remove(in.path), syncPath(s.dir), s.cfg.hooks.at("incoming removed")); err != nil {
		s.cfg.Log.Warn("the rows of a restored snapshot are not removed", "err", err) // Checkpoint and Open try again
	} else {
		s.incoming = 0
	}
	return nil
}

// receive makes in whole.
func (s *Shard) receive(ctx context.Context, in *incoming, atLeast dc.Index, fetch Fetch) error {
	pause := s.cfg.hooks.pause
	for try := 1; !in.whole || in.mark.Index < atLeast; try++ {
		got, err := s.ask(ctx, in, fetch)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, dc.Stale) && in.want().At != 0:
			s.cfg.Log.Info("a snapshot is begun anew: nobody has the state any more", "index", uint64(in.mark.Index), "rows", in.rows)
			if err := in.clear(); err != nil {
				return err
			}
		case errors.Is(err, dc.Corrupt), ctx.Err() != nil:
			return err
		case got:
			try, pause = 0, s.cfg.hooks.pause
		case try == fetchTries:
			return err
		default:
			select {
			case <-time.After(pause):
			case <-ctx.Done():
			}
			pause *= 2
		}
	}
	return nil
}

// ask has one sender stream. got tells whether less is missing than before.
func (s *Shard) ask(ctx context.Context, in *incoming, fetch Fetch) (got bool, err error) {
	empty := in.rows == 0
	r, err := fetch(ctx, in.want())
	if err != nil {
		return false, err
	}
	goesOn, got, err := in.take(ctx, r)
	return got && (goesOn || empty), errors.Join(err, r.Close())
}

// install makes the state that in holds the shard's.
func (s *Shard) install(ctx context.Context, in *incoming) error {
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
	g, l, err := s.build(ctx, successor(old.path), in)
	if err != nil {
		return err
	}
	s.mu.Lock()
	for s.paused { // the old files are being opened
		s.free.Wait()
	}
	old.remove, old.keep = true, s.aside
	s.aside = ""
	old.unrefLocked()
	s.adoptLocked(g, l)
	s.mu.Unlock()
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

// build makes the next generation at path and the current one on disk.
func (s *Shard) build(ctx context.Context, path string, in *incoming) (g *generation, l *ledger, err error) {
	sr, err := in.stream()
	if err != nil {
		return nil, nil, err
	}
	if err := errors.Join(os.RemoveAll(path), os.Mkdir(path, 0o700), s.cfg.hooks.at("generation made")); err != nil {
		return nil, nil, err
	}
	current := filepath.Join(s.dir, currentFile)
	defer func() {
		if err == nil {
			return
		}
		// Without CURRENT naming it the directory is rubbish. If it is named, the failure came after the rename and is reported
		// while the old state goes on; so the name is taken back.
		err = errors.Join(err, replaceFile(current, []byte(filepath.Base(s.gen.path)+"\n")), os.RemoveAll(path))
	}()
	if err := s.fill(ctx, path, sr); err != nil {
		return nil, nil, err
	}
	if g, err = openGeneration(path, &s.cfg, &s.open); err != nil {
		return nil, nil, err
	}
	closeNew := func() error { defer s.open.Done(); return g.db.Close() }
	if l, err = g.load(s.machine); err != nil {
		return nil, nil, errors.Join(err, closeNew())
	}
	if err := errors.Join(s.cfg.hooks.at("generation opened"), s.cfg.hooks.replaceFile(current, []byte(filepath.Base(path)+"\n"))); err != nil {
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
		err = errors.Join(err, db.Close(), s.cfg.hooks.at("generation closed"))
		if err == nil {
			err = errors.Join(syncAll(path), syncPath(s.dir), s.cfg.hooks.at("generation synced"))
		}
		if err == nil {
			err = s.cfg.hooks.writeCheckpoint(path, sr.mark, &sr.clock, s.cfg.BootID)
		}
	}()
	if err := s.load(ctx, db, sr); err != nil {
		return err
	}
	if err := s.cfg.hooks.at("rows loaded"); err != nil {
		return err
	}
	w := writer{db: db, version: uint64(sr.mark.Index)}
	w.set([]byte(appliedKey), encodeApplied(sr.mark, sr.clock, s.cfg.BootID), 0)
	w.commit()
	return w.err
}

// load writes the rows of the stream at the version of the snapshot.
func (s *Shard) load(ctx context.Context, db *badger.DB, sr *snapshotReader) error {
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
		if err = errors.Join(err, buf.Release(), s.cfg.hooks.at("rows written")); err != nil {
			return err
		}
	}
}
